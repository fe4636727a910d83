"""Embeddings: equal to the model's own hidden states, whatever they are batched with and however they are cut."""

import array
import copy
import io
import shutil

import numpy as np
import pytest
import soundfile
import torch
from accelerate import cpu_offload
from awkward import encoded
from datasets import Dataset, Features, Value
from toy_audio import noise

from music2vec_hf import (
    Music2VecAudioClassificationPipeline,
    Music2VecFeatureExtractor,
    Music2VecForSequenceClassification,
    embed,
)
from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import read_audio
from music2vec_hf.features import encoders, windows
from music2vec_hf.features.encoders import Encoder
from music2vec_hf.features.windows import LoadedTrack, WindowPlan, load_tracks


def hears(encoder):
    return Encoder(encoder, Music2VecFeatureExtractor())


def test_embeddings_are_the_models_hidden_states(encoder):
    input_values = Music2VecFeatureExtractor()(noise(2), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        states = torch.cat(encoder(input_values, output_hidden_states=True).hidden_states).numpy()
        conv = encoder.feature_extractor(input_values)[0].T.numpy()
    for settings, expected in (
        ({}, states.mean(1)),
        ({"layers": 2}, states[2].mean(0)),
        ({"layers": [0, 3]}, states[[0, 3]].mean(1)),
        ({"layers": "conv"}, conv.mean(0)),
        ({"pool": "none"}, states),
    ):
        np.testing.assert_allclose(embed(encoder, noise(2), **settings), expected, atol=1e-5)


def test_company_changes_nothing(encoder):
    clips = [noise(1.0), noise(2.3, 1), noise(0.4, 2), noise(2.3, 3)]
    for clip, row in zip(clips, embed(encoder, clips), strict=True):
        np.testing.assert_allclose(row, embed(encoder, clip), atol=1e-6)


def test_bf16_is_near_float32_and_not_equal(encoder):
    exact, rounded = embed(encoder, noise(2)), embed(encoder, noise(2), precision="bf16")
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("layer, computed", [("conv", 0), (0, 0), (1, 1), (3, 3)])
def test_layers_above_the_last_that_is_asked_for_are_not_computed(encoder, monkeypatch, layer, computed):
    expected = embed(encoder, noise(1))[layer] if layer != "conv" else None
    heard = []
    for number, each in enumerate(encoder.encoder.layers):
        forward = each.forward
        monkeypatch.setattr(each, "forward", lambda *a, f=forward, n=number: heard.append(n) or f(*a))
    found = embed(encoder, noise(1), layers=layer)
    assert heard == list(range(computed))
    assert expected is None or np.array_equal(found, expected)


def test_windows_weigh_by_their_length(encoder):
    samples = noise(2.5)
    normalised = torch.tensor(Music2VecFeatureExtractor()(samples, sampling_rate=16_000)["input_values"][0])
    with torch.no_grad():
        pieces = [encoder(window[None]).last_hidden_state[0].numpy() for window in normalised.split(16_000)]
    assert [len(piece) for piece in pieces] == [49, 49, 24]
    expected = np.concatenate(pieces).mean(0)
    np.testing.assert_allclose(embed(encoder, samples, layers=3, window_seconds=1.0), expected, atol=1e-5)
    # A rest shorter than a frame is left out.
    longer = np.concatenate([noise(1.0), samples[:200]])
    assert embed(encoder, longer, pool="none", window_seconds=1.0).shape == (4, 49, 16)


@pytest.mark.parametrize("num_samples", [400, 16_000, 40_000, 40_199, 48_000, 48_321, 100_000])
@pytest.mark.parametrize("seconds", [(1.0, 0.1), (1.0, 0.5), (1.003, 0.02), (0.5, 0.25)])
def test_overlapping_windows_give_every_frame_once(encoder, num_samples, seconds):
    config = encoder.config
    plan = WindowPlan.from_seconds(config, *seconds)
    found = plan.windows(num_samples)
    times = np.concatenate([plan.frame_times(window) for window in found])
    np.testing.assert_allclose(times, config.frame_times(config.num_frames(num_samples)), atol=1e-9)
    assert found[-1].stop == num_samples or num_samples - found[-1].stop < 320
    assert max(window.stop - window.start for window in found) <= round(seconds[0] * 16_000)
    for window in found:
        assert window.skip + window.num_frames <= config.num_frames(window.stop - window.start)


def test_of_shared_frames_each_window_gives_those_nearer_to_its_middle(encoder):
    first, second = WindowPlan.from_seconds(encoder.config, 2.0, 1.0).windows(48_000)
    assert (first.start, first.stop, second.start, second.stop) == (0, 32_000, 16_000, 48_000)
    # Frames 50 to 98 are in both: the first gives up to 73, whose centre is 1.4725 s, of the shared 1.0 to 2.0 s.
    assert (first.skip, first.num_frames, second.skip, second.num_frames) == (0, 75, 25, 74)


def test_overlap_brings_windows_near_the_whole_and_means_are_those_of_the_frames(encoder):
    samples = noise(9)
    whole = embed(encoder, samples, pool="none")
    distances = []
    for overlap in (0.02, 2.0):
        cut = {"window_seconds": 4, "overlap_seconds": overlap}
        frames, times = embed(encoder, samples, pool="none", **cut, return_times=True)
        assert frames.shape == whole.shape
        np.testing.assert_allclose(times, 0.02 * np.arange(len(times)) + 0.0125)
        np.testing.assert_allclose(embed(encoder, samples, **cut), frames.mean(1), atol=1e-5)
        distances.append(np.abs(frames - whole))
    # Each layer's frames have a deviation of 1. The positional convolution sees 0.9 s to either side: with an overlap
    # of 2 s only attention, which hears 4 s instead of 9 s, makes a difference.
    assert distances[0].max() > 1 and distances[0].mean() > 0.05
    assert distances[1].max() < 0.2 and distances[1].mean() < 0.004


def test_a_track_that_is_not_held_is_the_same_track(encoder, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", 0.3 + noise(25, 5), 22_050)
    cut = {"pool": "none", "window_seconds": 4, "overlap_seconds": 1}
    held = embed(encoder, tmp_path / "a.flac", **cut)
    monkeypatch.setattr(windows, "HELD_SECONDS", 3.0)
    loaded = LoadedTrack(tmp_path / "a.flac", hears(encoder))
    assert loaded._prepared is None and loaded.num_samples == len(read_audio(tmp_path / "a.flac"))
    with open(tmp_path / "a.flac", "rb") as file:  # can be read once only
        for source in (tmp_path / "a.flac", file):
            np.testing.assert_array_equal(embed(encoder, source, **cut), held)
        assert not file.closed
    normalised = Music2VecFeatureExtractor()(read_audio(tmp_path / "a.flac"), sampling_rate=16_000)
    pieces = np.concatenate([samples for _, samples in loaded.windows(WindowPlan.from_seconds(encoder.config, 4))])
    np.testing.assert_allclose(pieces, normalised["input_values"][0], atol=1e-6)


def test_the_pipeline_hears_what_embed_hears(encoder, tmp_path):
    soundfile.write(tmp_path / "a.flac", np.stack([noise(9), 0.5 * noise(9, 1)], axis=1), 44_100)
    model = Music2VecForSequenceClassification(encoder.config)
    pipeline = Music2VecAudioClassificationPipeline(model=model, feature_extractor=Music2VecFeatureExtractor())
    heard = pipeline.preprocess(tmp_path / "a.flac", window_seconds=1.5)["windows"]
    expected = LoadedTrack(tmp_path / "a.flac", hears(encoder)).windows(WindowPlan.from_seconds(encoder.config, 1.5))
    for row, (_, samples) in zip((row for part in heard for row in part), expected, strict=True):
        np.testing.assert_array_equal(row, samples)


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
    monkeypatch.setattr(Encoder, "device", torch.device("meta"))  # any but the CPU
    loaded = list(load_tracks(paths, hears(encoder), lambda number, error: refused.append((number, str(error)))))
    assert [track.number for track in loaded] == [0, 1, 2, 3, *range(5, 12)]
    assert [track.source for track in loaded] == [path for path in paths if path != paths[4]]
    assert [number for number, _ in refused] == [4] and "4.wav" in refused[0][1]
    with pytest.raises(AudioError, match=r"4\.wav"):
        list(load_tracks(paths, hears(encoder)))


SAMPLES = np.round(32_767 * np.clip(noise(1), -1, 1)) / 32_768  # fit into 16 bits


class Decoded:
    """What `datasets` hands out where torchcodec is installed."""

    def get_all_samples(self):
        self.data, self.sample_rate = torch.tensor(SAMPLES)[None], 16_000
        return self


FILE = encoded(SAMPLES, subtype="PCM_16")
ONE_TRACK = {
    "bytes": lambda: FILE,
    "bytearray": lambda: bytearray(FILE),
    "memoryview": lambda: memoryview(FILE),
    "file": lambda: io.BytesIO(FILE),
    "buffered file": lambda: io.BufferedReader(io.BytesIO(FILE)),
    "float64": lambda: SAMPLES,
    "16 bits": lambda: np.int16(SAMPLES * 32_768),
    "32 bits": lambda: np.int32(SAMPLES * 2.0**31),
    "tensor": lambda: torch.tensor(SAMPLES, requires_grad=True),
    "channels first": lambda: np.stack([SAMPLES, SAMPLES]),
    "channels last": lambda: torch.tensor(np.stack([SAMPLES] * 6, axis=1)),
    "list of numbers": lambda: SAMPLES.tolist(),
    "tuple of numbers": lambda: tuple(SAMPLES),
    "array.array": lambda: array.array("d", SAMPLES),
    "memoryview of numbers": lambda: memoryview(array.array("d", SAMPLES)),
    "decoder": Decoded,
    "row with an array": lambda: {"array": SAMPLES, "sampling_rate": 16_000, "path": None},
    "row with raw": lambda: {"raw": SAMPLES.tolist(), "sampling_rate": 16_000},
    "row with bytes": lambda: {"bytes": memoryview(FILE), "path": "a.wav"},
    "row of a data set": lambda: {"audio": {"bytes": FILE, "path": None}, "label": 1},
    "row with a decoder": lambda: {"audio": Decoded(), "label": 1},
}


@pytest.mark.parametrize("kind", ONE_TRACK)
def test_one_track_of_any_kind(encoder, kind):
    expected = embed(encoder, np.float32(SAMPLES), layers=3)
    for audio, found in ((ONE_TRACK[kind](), np.s_[:]), ([ONE_TRACK[kind]()], 0)):
        np.testing.assert_allclose(embed(encoder, audio, layers=3)[found], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("audio", "sentence"),
    [
        (None, "`audio` is a NoneType. Give the path"),
        (3, "`audio` is a int"),
        ([None], "A clip has shape"),
        (np.zeros((1, 1, 16_000)), "A clip has shape \\(1, 1, 16000\\)"),
        (np.array(["a"] * 500), "A clip has shape"),
        (SAMPLES > 0, "type bool"),
        (SAMPLES + 0j, "type complex64"),
        (np.zeros(0), "is empty"),
        (SAMPLES[:100], "one frame needs 400"),
        ([np.full(16_000, np.nan)], "NaN or infinite"),
        (np.frombuffer(FILE, np.uint8), "array with the bytes of a file"),
        (torch.frombuffer(bytearray(FILE), dtype=torch.uint8), "array with the bytes of a file"),
        (io.StringIO("text"), "Open it with 'rb'"),
        (b"", "0 bytes"),
        ({}, "a row with nothing"),
        ({"bytes": None, "path": None}, "a row with 'bytes', 'path'"),
        ({"array": SAMPLES}, "no `sampling_rate` beside it"),
        ({"array": SAMPLES, "sampling_rate": "8k"}, "`sampling_rate` is '8k'"),
        ("missing.wav", "missing.wav: it cannot be opened"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_track_is_refused_in_a_sentence_about_it(encoder, audio, sentence):
    with pytest.raises(ValueError, match=sentence):
        embed(encoder, audio)


def test_several_tracks_of_any_kind(encoder, tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    soundfile.write(folder / "a.wav", noise(1), 16_000, subtype="FLOAT")
    soundfile.write(folder / "b.wav", np.stack([noise(1.5, 1)] * 2, axis=1), 16_000, subtype="FLOAT")
    expected = [embed(encoder, noise(1)), embed(encoder, noise(1.5, 1))]
    rows = [{"bytes": (folder / "a.wav").read_bytes(), "path": None}, {"bytes": None, "path": str(folder / "b.wav")}]
    dataset = Dataset.from_dict(
        {"sound": rows}, Features({"sound": {"bytes": Value("binary"), "path": Value("string")}})
    )
    dataset.to_parquet(tmp_path / "set.parquet")
    several = {
        "paths": [folder / "a.wav", str(folder / "b.wav")],
        "arrays": (audio for audio in (torch.tensor(noise(1)), {"array": noise(1.5, 1), "sampling_rate": 16_000})),
        "folder": folder,
        "rows": rows,
        "data set": dataset,
        "Parquet": tmp_path / "set.parquet",
    }
    for name, audio in several.items():
        np.testing.assert_allclose(embed(encoder, audio), expected, atol=1e-5, err_msg=name)
    assert embed(encoder, []) == []
    assert embed(encoder, {"array": noise(1), "sampling_rate": 8_000}, pool="none").shape == (4, 99, 16)
    assert embed(encoder, noise(2.75625), sampling_rate=44_100, pool="none").shape == (4, 49, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_callers_model_is_left_as_it_was(encoder, dtype):
    model = copy.deepcopy(encoder).to(dtype).train()
    model.encoder.layers[0].eval()
    weights = {name: (weight.dtype, weight.data_ptr()) for name, weight in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    stored = copy.deepcopy(model).float().eval()
    with torch.autocast("cpu", torch.bfloat16):  # the caller's, which is not asked for
        found = embed(model, noise(1))
    np.testing.assert_array_equal(found, embed(stored, noise(1)))
    assert found.dtype == np.float32 and np.abs(found - embed(encoder, noise(1))).max() < 0.05
    assert weights == {name: (weight.dtype, weight.data_ptr()) for name, weight in model.named_parameters()}
    assert modes == [module.training for module in model.modules()] and torch.is_grad_enabled()


def test_a_model_whose_weights_are_elsewhere_is_heard(encoder):
    offloaded = cpu_offload(copy.deepcopy(encoder), execution_device="cpu")
    assert next(offloaded.parameters()).device.type == "meta"
    np.testing.assert_allclose(embed(offloaded, noise(1)), embed(encoder, noise(1)), atol=1e-5)


def test_a_model_with_a_head_is_heard_without_it(encoder):
    model = Music2VecForSequenceClassification(encoder.config)
    model.data2vec_audio.load_state_dict(encoder.state_dict())
    np.testing.assert_array_equal(embed(model, noise(1)), embed(encoder, noise(1)))
    with pytest.raises(ValueError, match=r"`model` is a Linear. Give a folder, a Hub id or a loaded audio model"):
        embed(torch.nn.Linear(2, 2), noise(1))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_changes_nothing(encoder):
    expected = embed(encoder, [noise(2.5), noise(1.3, 1)], window_seconds=2)
    model = copy.deepcopy(encoder)
    found = embed(model, [noise(2.5), noise(1.3, 1)], window_seconds=2, compile=True)
    assert list(model.state_dict()) == list(encoder.state_dict())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_where_torch_cannot_compile_one_sentence_says_so(encoder, monkeypatch):
    def fail(*args, **kwargs):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

    monkeypatch.setattr(encoder.encoder.layers[0], "forward", fail)
    with pytest.raises(ValueError, match=r"torch.compile fails here \(no compiler at all\)"):
        embed(encoder, noise(1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layers": 4}, "There is no layer 4. This model has conv, 0, 1, 2, 3"),
        ({"layers": []}, "No layer is named. This model has conv, 0, 1, 2, 3"),
        ({"window_seconds": float("nan")}, "`window_seconds` is nan"),
        ({"layers": ["conv", 0]}, "Ask for it alone"),
        ({"device": "tpu"}, "Use one of auto, cpu, cuda, mps"),
        ({"pool": "max"}, "`pool` is 'max'"),
        ({"window_seconds": 0.01}, "`window_seconds` is 0.01. Use at least 0.025 s"),
        ({"overlap_seconds": 15.1}, "`overlap_seconds` is 15.1. Use a value from 0 to half of the window, 15 s"),
        ({"overlap_seconds": -1}, "`overlap_seconds` is -1"),
        ({"overlap": 1}, "overlap"),
    ],
)
def test_mistakes_are_refused(encoder, arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        embed(encoder, noise(1), **arguments)
