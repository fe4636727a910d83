"""Embeddings: equal to the model's own hidden states, whatever they are batched with and however they are cut."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset, Features, Value
from toy_audio import noise
from transformers import Data2VecAudioModel, Wav2Vec2FeatureExtractor

from music2vec_hf import Music2VecFeatureExtractor, embed
from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import read_audio
from music2vec_hf.features import encoders, windows
from music2vec_hf.features.encoders import Encoder, choose_device, load_model, model_hash
from music2vec_hf.features.windows import LoadedTrack, WindowPlan, load_tracks
from music2vec_hf.hub.conversion import export_data2vec_audio


def hidden_states(encoder, samples):
    input_values = Music2VecFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        states = encoder(input_values, output_hidden_states=True).hidden_states
        return [frames[0].numpy() for frames in states], encoder.feature_extractor(input_values)[0].T.numpy()


def test_mean_pooled_layers_are_the_models_hidden_states(encoder):
    states, conv = hidden_states(encoder, noise(2))
    expected = np.stack([frames.mean(0) for frames in states])
    np.testing.assert_allclose(embed(encoder, noise(2)), expected, atol=1e-5)
    np.testing.assert_allclose(embed(encoder, noise(2), layers=2), expected[2], atol=1e-5)
    np.testing.assert_allclose(embed(encoder, noise(2), layers=[0, 3]), expected[[0, 3]], atol=1e-5)
    np.testing.assert_allclose(embed(encoder, noise(2), layers="conv"), conv.mean(0), atol=1e-5)


def test_frames_are_the_models_hidden_states(encoder):
    states, _ = hidden_states(encoder, noise(2))
    np.testing.assert_allclose(embed(encoder, noise(2), pool="none"), np.stack(states), atol=1e-5)


def test_company_changes_nothing(encoder):
    clips = [noise(1.0), noise(2.3, 1), noise(0.4, 2), noise(2.3, 3)]
    together = embed(encoder, clips)
    for clip, row in zip(clips, together, strict=True):
        np.testing.assert_allclose(row, embed(encoder, clip), atol=1e-6)


def test_bf16_is_near_float32_and_not_equal(encoder):
    exact, rounded = embed(encoder, noise(2)), embed(encoder, noise(2), precision="bf16")
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_windows_weigh_by_their_length(encoder):
    samples = noise(2.5)
    normalised = Music2VecFeatureExtractor()(samples, sampling_rate=16_000)["input_values"][0]
    pieces = []
    for start in (0, 16_000, 32_000):
        with torch.no_grad():
            pieces.append(encoder(torch.tensor(normalised[None, start : start + 16_000])).last_hidden_state[0].numpy())
    assert [len(piece) for piece in pieces] == [49, 49, 24]
    expected = np.concatenate(pieces).mean(0)
    np.testing.assert_allclose(embed(encoder, samples, layers=3, window_seconds=1.0), expected, atol=1e-5)


def test_a_rest_shorter_than_a_frame_is_left_out(encoder):
    samples = noise(1.0)
    longer = np.concatenate([samples, samples[:200]])
    assert embed(encoder, longer, pool="none", window_seconds=1.0).shape == (4, 49, 16)


def test_files_of_any_rate_and_arrays_agree(encoder, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([noise(2), noise(2)], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(embed(encoder, tmp_path / "a.wav"), embed(encoder, noise(2)), atol=1e-5)
    time = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    assert embed(encoder, tone, sampling_rate=44_100, pool="none").shape == (4, 49, 16)


def test_a_folder_or_loaded_model_and_random_weights(encoder, encoder_folder):
    assert model_hash(load_model(encoder_folder)[0]) == model_hash(encoder)
    np.testing.assert_allclose(embed(encoder_folder, noise(1)), embed(encoder, noise(1)), atol=1e-6)
    one, two = (load_model(encoder_folder, random_init=True, seed=seed)[0] for seed in (1, 2))
    assert len({model_hash(m) for m in (encoder, one, two)}) == 3
    assert model_hash(load_model(encoder_folder, random_init=True, seed=1)[0]) == model_hash(one)


@pytest.mark.parametrize("num_samples", [400, 16_000, 40_000, 40_199, 48_000, 48_321, 100_000])
@pytest.mark.parametrize("seconds", [(1.0, 0.1), (1.0, 0.5), (1.003, 0.02), (0.5, 0.25)])
def test_overlapping_windows_give_every_frame_once(tiny_config, num_samples, seconds):
    plan = WindowPlan.from_seconds(tiny_config, *seconds)
    windows = plan.windows(num_samples)
    times = np.concatenate([plan.frame_times(window) for window in windows])
    np.testing.assert_allclose(times, tiny_config.frame_times(tiny_config.num_frames(num_samples)), atol=1e-9)
    assert windows[-1].stop == num_samples or num_samples - windows[-1].stop < 320
    assert max(window.stop - window.start for window in windows) <= round(seconds[0] * 16_000)
    for window in windows:
        assert window.skip + window.num_frames <= tiny_config.num_frames(window.stop - window.start)


def test_of_shared_frames_each_window_gives_those_nearer_to_its_middle(tiny_config):
    first, second = WindowPlan.from_seconds(tiny_config, 2.0, 1.0).windows(48_000)
    assert (first.start, first.stop, second.start, second.stop) == (0, 32_000, 16_000, 48_000)
    # Frames 50 to 98 are in both: the first gives up to 73, whose centre is 1.4725 s, of the shared 1.0 to 2.0 s.
    assert (first.skip, first.num_frames, second.skip, second.num_frames) == (0, 75, 25, 74)


def test_overlap_brings_windows_near_the_whole(encoder):
    samples = noise(9)
    whole = embed(encoder, samples, pool="none")
    distances = []
    for overlap in (0.02, 2.0):
        frames, times = embed(
            encoder, samples, pool="none", window_seconds=4, overlap_seconds=overlap, return_times=True
        )
        assert frames.shape == whole.shape
        np.testing.assert_allclose(times, 0.02 * np.arange(len(times)) + 0.0125)
        distances.append(np.abs(frames - whole))
    # Each layer's frames have a deviation of 1. The positional convolution sees 0.9 s to either side: with an overlap
    # of 2 s only attention, which hears 4 s instead of 9 s, makes a difference.
    assert distances[0].max() > 1 and distances[0].mean() > 0.05
    assert distances[1].max() < 0.2 and distances[1].mean() < 0.004


def test_the_mean_with_overlap_is_that_of_the_frames(encoder):
    cut = {"window_seconds": 1, "overlap_seconds": 0.3}
    expected = embed(encoder, noise(3.3), pool="none", **cut).mean(1)
    np.testing.assert_allclose(embed(encoder, noise(3.3), **cut), expected, atol=1e-5)


def test_padding_changes_plain_transformers_and_company_does_not_change_ours(encoder, encoder_folder, tmp_path):
    short, long = noise(1.0), noise(2.5, 1)
    plain = Data2VecAudioModel.from_pretrained(export_data2vec_audio(encoder_folder, tmp_path / "plain")).eval()
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)

    def plain_embedding(clips):
        inputs = extractor(clips, sampling_rate=16_000, return_tensors="pt", padding=True)
        with torch.no_grad():
            return plain(**inputs).last_hidden_state[0, :49].mean(0).numpy()

    alone, padded = plain_embedding([short]), plain_embedding([short, long])
    assert np.abs(padded - alone).max() > 0.01
    ours, in_company = embed(encoder, short, layers=3), embed(encoder, [short, long], layers=3)[0]
    np.testing.assert_allclose(ours, alone, atol=1e-3)  # the extractors add another epsilon to the variance
    np.testing.assert_allclose(in_company, ours, atol=1e-6)


def test_a_track_that_is_not_held_is_the_same_track(encoder, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", 0.3 + noise(25, 5), 22_050)
    held = embed(encoder, tmp_path / "a.flac", pool="none", window_seconds=4, overlap_seconds=1)
    monkeypatch.setattr(windows, "HELD_SECONDS", 3.0)
    loaded = LoadedTrack(tmp_path / "a.flac", Encoder(encoder, Music2VecFeatureExtractor()))
    assert loaded._prepared is None and loaded.num_samples == len(read_audio(tmp_path / "a.flac"))
    streamed = embed(encoder, tmp_path / "a.flac", pool="none", window_seconds=4, overlap_seconds=1)
    np.testing.assert_array_equal(streamed, held)
    normalised = Music2VecFeatureExtractor()(read_audio(tmp_path / "a.flac"), sampling_rate=16_000)
    plan = WindowPlan.from_seconds(encoder.config, 4)
    pieces = np.concatenate([samples for _, samples in loaded.windows(plan)])
    np.testing.assert_allclose(pieces, normalised["input_values"][0], atol=1e-6)


def test_the_front_end_in_pieces_is_the_front_end(encoder, monkeypatch):
    whole = embed(encoder, noise(3), layers="conv", pool="none")
    monkeypatch.setitem(encoders._FRONT_END_SECONDS, "cpu", 0.3)
    np.testing.assert_allclose(embed(encoder, noise(3), layers="conv", pool="none"), whole, atol=1e-6)


def test_threads_that_decode_ahead_change_nothing(encoder, tmp_path, monkeypatch):
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], noise(0.1 + 0.1 * (number % 3), number), 16_000)
    paths[4].write_text("not audio")
    refused = []
    hears = Encoder(encoder, Music2VecFeatureExtractor())
    monkeypatch.setattr(Encoder, "device", torch.device("meta"))  # any but the CPU
    loaded = list(load_tracks(paths, hears, lambda number, error: refused.append((number, str(error)))))
    assert [track.number for track in loaded] == [0, 1, 2, 3, *range(5, 12)]
    assert [track.source for track in loaded] == [path for path in paths if path != paths[4]]
    assert [number for number, _ in refused] == [4] and "4.wav" in refused[0][1]
    with pytest.raises(AudioError, match=r"4\.wav"):
        list(load_tracks(paths, hears))


def test_every_kind_of_input_is_the_same_track(encoder, tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    soundfile.write(folder / "a.wav", noise(1), 16_000, subtype="FLOAT")
    soundfile.write(folder / "b.wav", noise(1.5, 1), 16_000, subtype="FLOAT")
    one, two = embed(encoder, noise(1)), embed(encoder, noise(1.5, 1))
    data = [(folder / name).read_bytes() for name in ("a.wav", "b.wav")]
    rows = [{"bytes": data[0], "path": None}, {"bytes": None, "path": str(folder / "b.wav")}]
    dataset = Dataset.from_dict(
        {"sound": rows}, Features({"sound": {"bytes": Value("binary"), "path": Value("string")}})
    )
    dataset.to_parquet(tmp_path / "set.parquet")
    several = {
        "list": [folder / "a.wav", str(folder / "b.wav")],
        "bytes and rows": [data[0], {"array": noise(1.5, 1), "sampling_rate": 16_000}],
        "tensors": [torch.tensor(noise(1)), noise(1.5, 1)],
        "folder": folder,
        "rows": rows,
        "data set": dataset,
        "Parquet": tmp_path / "set.parquet",
    }
    for name, audio in several.items():
        found = embed(encoder, audio)
        assert len(found) == 2, name
        np.testing.assert_allclose(found[0], one, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found[1], two, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(embed(encoder, rows[0]), one, atol=1e-5)
    slower = embed(encoder, {"array": noise(1), "sampling_rate": 8_000}, pool="none")
    assert slower.shape == (4, 99, 16)


def test_devices(encoder):
    assert choose_device("cpu").type == "cpu"
    np.testing.assert_array_equal(embed(encoder, noise(1), device="cpu"), embed(encoder, noise(1)))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="`device` is 'cuda', but torch finds none here"):
            embed(encoder, noise(1), device="cuda")
    with pytest.raises(ValueError, match="Use one of auto, cpu, cuda, mps"):
        embed(encoder, noise(1), device="tpu")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_changes_nothing(encoder):
    expected = embed(encoder, [noise(2.5), noise(1.3, 1)], window_seconds=2)
    names = list(encoder.state_dict())
    found = embed(encoder, [noise(2.5), noise(1.3, 1)], window_seconds=2, compile=True)
    assert list(encoder.state_dict()) == names
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_where_torch_cannot_compile_one_sentence_says_so(encoder, monkeypatch):
    def fail(*args, **kwargs):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

    monkeypatch.setattr(encoder.encoder.layers[0], "forward", fail)
    with pytest.raises(ValueError, match=r"torch.compile fails here \(no compiler at all\)"):
        embed(encoder, noise(1))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"layers": 4}, "There is no layer 4. This model has conv, 0, 1, 2, 3"),
        ({"layers": ["conv", 0]}, "Ask for it alone"),
        ({"pool": "max"}, "`pool` is 'max'"),
        ({"window_seconds": 0.01}, "`window_seconds` is 0.01. Use at least 0.025 s"),
        ({"overlap_seconds": 15.1}, "`overlap_seconds` is 15.1. Use a value from 0 to half of the window, 15 s"),
        ({"overlap_seconds": -1}, "`overlap_seconds` is -1"),
    ],
)
def test_mistakes_are_refused(encoder, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        embed(encoder, noise(1), **arguments)


def test_nan_is_refused(encoder):
    with pytest.raises(ValueError, match="NaN or infinite"):
        embed(encoder, [np.full(16_000, np.nan)])
