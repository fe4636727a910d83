"""Encoders: any audio model's hidden states, heard at its own rate, normalised whole, never padded."""

import json
import shutil
import weakref

import numpy as np
import pytest
import soundfile
import torch
import transformers
from toy_audio import noise
from toy_model import SIZES
from transformers import Wav2Vec2FeatureExtractor

from music2vec_hf.features import windows
from music2vec_hf.features.encoders import load_encoder
from music2vec_hf.features.windows import hear_tracks, load_tracks

TINY = SIZES | {"num_hidden_layers": 2}
OTHERS = {
    # Base models of both kinds: group norm over time in the front end, and layer norm over channels.
    "wav2vec2": ("Wav2Vec2", "group"),
    "hubert": ("Hubert", "layer"),
    "wavlm": ("WavLM", "group"),
    "data2vec-audio": ("Data2VecAudio", "layer"),
}
OURS = "data2vec-audio"  # which our own class computes, with `conv` before the layers

# A repository that brings its own model, laid out as MERT's: config, model and, in config.json, where they are.
REMOTE_CONFIG = """
from transformers import HubertConfig

class ToyMERTConfig(HubertConfig):
    model_type = "toy_mert_model"
"""
REMOTE_MODEL = """
from transformers import HubertModel
from .configuration_toy import ToyMERTConfig

class ToyMERTModel(HubertModel):
    config_class = ToyMERTConfig
"""


def save_other(kind, folder, rate=16_000):
    name, norm = OTHERS[kind]
    config_class, model_class = (getattr(transformers, f"{name}{part}") for part in ("Config", "Model"))
    torch.manual_seed(0)
    model_class(config_class(**TINY, num_conv_pos_embeddings=16, feat_extract_norm=norm)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=True).save_pretrained(folder)
    return folder


def save_remote(folder):
    save_other("hubert", folder, rate=24_000)
    (folder / "configuration_toy.py").write_text(REMOTE_CONFIG)
    (folder / "modeling_toy.py").write_text(REMOTE_MODEL)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "toy_mert_model"
    config["auto_map"] = {"AutoConfig": "configuration_toy.ToyMERTConfig", "AutoModel": "modeling_toy.ToyMERTModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def expected_windows(model, extractor, samples, rate, window_seconds):
    """Mean of every hidden state over each window, one window at a time, after normalising the whole."""
    whole = extractor(samples, sampling_rate=rate)["input_values"][0]
    window = round(rate * window_seconds)
    rows = []
    for start in range(0, len(whole), window):
        with torch.no_grad():
            states = model(torch.tensor(whole[None, start : start + window]), output_hidden_states=True).hidden_states
        rows.append([state[0].mean(0).numpy() for state in states])
    return {str(layer): np.stack([row[layer] for row in rows]) for layer in range(len(rows[0]))}


def files(folder, *clips, rate=16_000):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.wav" for number in range(len(clips))]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip, rate, subtype="FLOAT")
    return paths


@pytest.mark.parametrize("kind", OTHERS)
def test_layers_of_other_models_are_their_hidden_states_per_window(kind, tmp_path):
    folder = save_other(kind, tmp_path / kind)
    # Loud, then quiet: normalising each window by itself would give other features.
    clip = np.concatenate([noise(1.0), 0.01 * noise(1.5, 1)])
    encoder = load_encoder(folder)
    rows = encoder.rows(files(tmp_path / "audio", clip), 1.0)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    # Ours adds what the reference does to the variance, and not what transformers does.
    extractor = encoder.extractor if kind == OURS else Wav2Vec2FeatureExtractor.from_pretrained(folder)
    expected = expected_windows(model, extractor, clip, 16_000, 1.0)
    assert list(rows.features) == ["conv"] * (kind == OURS) + ["0", "1", "2"]
    for layer, values in expected.items():
        np.testing.assert_allclose(rows.features[layer], values, atol=1e-5)
    assert rows.offsets.tolist() == [0, 3] and rows.seconds.tolist() == [1.0, 1.0, 0.5]
    assert rows.num_frames.tolist() == [49, 49, 24]
    alone = extractor(clip[16_000:32_000], sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        by_itself = model(alone).last_hidden_state[0].mean(0).numpy()
    # An eighth more or less is far above the tolerance; a group norm takes most of the difference out again.
    assert kind != "hubert" or np.abs(rows.features["2"][1] - by_itself).max() > 1e-3


def test_company_changes_nothing_with_a_group_norm_front_end(tmp_path):
    encoder = load_encoder(save_other("wav2vec2", tmp_path / "model"))
    clips = [noise(seconds, seed) for seed, seconds in enumerate((1.0, 2.3, 0.4, 2.3))]
    together = encoder.rows(clips, 1.0)
    assert together.rows_per_track.tolist() == [1, 3, 1, 3]
    for number, clip in enumerate(clips):
        alone, part = encoder.rows([clip], 1.0), together.take([number])
        for layer, values in alone.features.items():
            np.testing.assert_allclose(part.features[layer], values, atol=1e-5)


def test_tracks_are_read_as_they_are_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(windows.READ_AHEAD_SECONDS, "mean", 2.0)
    encoder = load_encoder(save_other("wav2vec2", tmp_path / "model"))
    alive, counts = set(), []

    def tracks():
        for seed in range(12):
            track = noise(0.5, seed)
            alive.add(seed)
            weakref.finalize(track, alive.remove, seed)
            counts.append(len(alive))
            yield track

    heard = hear_tracks(encoder, tracks(), encoder.plan(30.0), encoder.layers)
    assert (
        sum(len(list(track.windows)) for track in heard) == 12 and max(counts) <= 5
    )  # four of half a second, and the next


def test_random_weights_are_those_of_the_seed(tmp_path):
    folder = save_other("hubert", tmp_path / "model")
    before = torch.get_rng_state()
    ids = [load_encoder(folder, True, seed).hash for seed in (1, 2, 1)]
    assert torch.equal(before, torch.get_rng_state())
    trained = load_encoder(folder).hash
    assert ids[0] == ids[2] and len({*ids, trained}) == 3


def test_the_identity_knows_weights_extractor_settings_and_windows(tmp_path):
    folder = save_other("hubert", tmp_path / "model")
    identities = [load_encoder(folder).identity(*run) for run in ((30.0, "fp32"), (5.0, "fp32"), (30.0, "bf16"))]
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_encoder(copy).identity(30.0) == identities[0]
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(copy)
    identities.append(load_encoder(copy).identity(30.0))
    shutil.copy(folder / "preprocessor_config.json", copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    identities.append(load_encoder(copy).identity(30.0))
    assert len(set(identities)) == 5


def test_remote_code_runs_only_when_trusted_and_hears_its_own_rate(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = save_remote(tmp_path / "mert")
    for random_init in (False, True):
        with pytest.raises(ValueError, match=r"brings Python code of its own.*--trust-remote-code"):
            load_encoder(folder, random_init)
    encoder = load_encoder(folder, trust_remote_code=True)
    assert type(encoder.model).__name__ == "ToyMERTModel" and encoder.sampling_rate == 24_000
    # A tone above what 16 kHz can carry arrives whole.
    times = np.arange(44_100) / 44_100
    (path,) = files(tmp_path / "audio", np.sin(2 * np.pi * 9_000 * times).astype(np.float32), rate=44_100)
    (heard,) = (track._prepared for track in load_tracks([path], encoder))
    spectrum = np.abs(np.fft.rfft(heard))
    assert len(heard) == 24_000 and spectrum.argmax() == 9_000
    rows = encoder.rows([path], 30.0)
    expected = expected_windows(encoder.model, lambda x, **_: {"input_values": [x]}, heard, 24_000, 30.0)
    for layer, values in expected.items():
        np.testing.assert_allclose(rows.features[layer], values, atol=1e-5)
    assert load_encoder(folder, True, trust_remote_code=True).model.config.model_type == "toy_mert_model"
    for name, code, same in (("copy", REMOTE_MODEL, True), ("changed", REMOTE_MODEL + "\n# changed\n", False)):
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / "modeling_toy.py").write_text(code)
        other = load_encoder(tmp_path / name, trust_remote_code=True)
        assert (other.identity(30.0) == encoder.identity(30.0)) is same


def test_what_cannot_be_heard_gets_a_sentence(tmp_path):
    folder = tmp_path / "text"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=9)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"\(BertModel\) does not take raw audio as `input_values`; name a model"):
        load_encoder(folder)
    with pytest.raises(ValueError, match="neither a folder here nor a model that the Hub gives"):
        load_encoder(tmp_path / "nothing")
    encoder = load_encoder(save_other("hubert", tmp_path / "model"))
    paths = files(tmp_path / "audio", noise(0.02))
    with pytest.raises(ValueError, match=r"0.wav: .* 320 samples at 16000 Hz but one frame needs 400"):
        encoder.rows(paths, 30.0)
    with pytest.raises(ValueError, match=r"`window_seconds` is 0.01. Use at least 0.025 s"):
        encoder.rows(paths, 0.01)
