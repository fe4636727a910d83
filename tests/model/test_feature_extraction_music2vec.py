"""The feature extractor takes audio as it comes and refuses what cannot be audio, in one sentence each."""

import io
from array import array

import numpy as np
import pytest
import soundfile
import torch

from music2vec_hf import Music2VecFeatureExtractor
from music2vec_hf.audio.reading import read_audio


@pytest.fixture
def extractor():
    return Music2VecFeatureExtractor()


def tone(seconds=0.5, rate=16_000, frequency=440.0, level=0.3):
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_zero_mean_unit_variance_with_the_references_epsilon(extractor):
    quiet = tone(level=1e-3) + 0.2
    values = extractor(quiet, sampling_rate=16_000, return_tensors="np").input_values[0]
    expected = torch.nn.functional.layer_norm(torch.tensor(quiet, dtype=torch.float64), quiet.shape).numpy()
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert values.dtype == np.float32


CONTAINERS = {
    "float32": lambda x: x, "float64": lambda x: x.astype(np.float64), "list": lambda x: x.tolist(),
    "memoryview": memoryview, "array": lambda x: array("f", x), "tensor": torch.tensor,
    "leaf": lambda x: torch.tensor(x, requires_grad=True), "batch": lambda x: [x],
    "batch of a tensor": lambda x: [torch.tensor(x)], "batch of a list": lambda x: [x.tolist()],
    "row": lambda x: x[None], "column": lambda x: x[:, None], "channels first": lambda x: np.stack([x, x]),
    "channels last": lambda x: np.stack([x, x], axis=1), "six channels": lambda x: [np.stack([x] * 6)],
    "channels of a tensor": lambda x: torch.tensor(np.stack([x, x])),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_clip(extractor, kind):
    expected = extractor(tone(), sampling_rate=16_000, return_tensors="pt").input_values
    values = extractor(CONTAINERS[kind](tone()), sampling_rate=16_000, return_tensors="pt").input_values
    assert values.shape == (1, 8_000)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint8, np.int8])
def test_integer_pcm_is_scaled_by_its_width(kind):
    extractor = Music2VecFeatureExtractor(do_normalize=False)
    info = np.iinfo(kind)
    zero = 128 if kind == np.uint8 else 0
    half = np.full(800, zero + (info.max - zero) // 2 + 1, dtype=kind)
    np.testing.assert_allclose(extractor(half, sampling_rate=16_000)["input_values"][0], 0.5, atol=0.01)
    whole_numbers = extractor([16_384] * 800, sampling_rate=16_000)["input_values"][0]  # 16 bits
    np.testing.assert_allclose(whole_numbers, 0.5)


def test_stereo_is_averaged():
    extractor = Music2VecFeatureExtractor(do_normalize=False)
    left, right = tone(), tone(frequency=1_000.0)
    values = extractor(np.stack([left, right]), sampling_rate=16_000)["input_values"][0]
    np.testing.assert_allclose(values, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_056, 44_100, 48_000])
def test_an_array_is_resampled_as_a_file_is(rate):
    """Without torchaudio, which reads files into corpora and embeddings."""
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, rate + 17).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noise, rate, format="WAV", subtype="FLOAT")
    samples = Music2VecFeatureExtractor().to_samples(noise, rate)
    np.testing.assert_allclose(samples, read_audio(file.getvalue()), atol=1e-4)


def test_a_batch_is_normalised_clip_by_clip_and_padded_with_zeros(extractor):
    clips = [tone(0.5), tone(0.3, level=0.01) + 0.5]
    batch = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    assert batch.input_values.shape == batch.attention_mask.shape == (2, 8_000)
    assert batch.attention_mask.sum(1).tolist() == [8_000, 4_800]
    assert batch.input_values[1, 4_800:].eq(0).all()
    alone = extractor(clips[1], sampling_rate=16_000, return_tensors="pt").input_values[0]
    torch.testing.assert_close(batch.input_values[1, :4_800], alone)


def test_a_wider_array_is_a_batch_as_in_transformers(extractor):
    clips = np.stack([tone(frequency=f) for f in (200, 300, 400)])
    one_by_one = [extractor(clip, sampling_rate=16_000)["input_values"][0] for clip in clips]
    np.testing.assert_allclose(extractor(clips, sampling_rate=16_000)["input_values"], one_by_one)
    tensor = extractor(torch.tensor(clips), sampling_rate=16_000, return_tensors="np").input_values
    np.testing.assert_allclose(tensor, one_by_one)


def test_settings_survive_a_round_trip(tmp_path):
    Music2VecFeatureExtractor(norm_eps=1e-7, receptive_field=800).save_pretrained(tmp_path)
    reloaded = Music2VecFeatureExtractor.from_pretrained(tmp_path)
    assert (reloaded.norm_eps, reloaded.receptive_field, reloaded.return_attention_mask) == (1e-7, 800, True)


@pytest.mark.parametrize(
    "audio, rate, sentence",
    [
        (np.zeros(0), 16_000, "The audio is empty"),
        ([], 16_000, "The audio is empty"),
        (np.zeros((2, 0)), 16_000, "The audio is empty"),
        (np.array([0.0] * 500 + [np.nan]), 16_000, "1 samples that are NaN or infinite"),
        (np.array([0.0] * 500 + [np.inf, -np.inf]), 16_000, "2 samples that are NaN or infinite"),
        (np.zeros(399), 16_000, "has 399 samples at 16000 Hz but one frame needs 400 \\(25 ms\\)"),
        (np.zeros(1_000), 44_100, "has 363 samples at 16000 Hz"),
        (np.array(["a", "b"]), 16_000, "Give real numbers"),
        (np.zeros(800, dtype=complex), 16_000, "Give real numbers"),
        (np.zeros((2, 3, 4, 5)), 16_000, "has shape \\(2, 3, 4, 5\\)"),
        (np.zeros(800), 0, "`sampling_rate` is 0"),
        (np.zeros(800), 44.1, "`sampling_rate` is 44.1. Give the audio's rate in Hz, for example 44100"),
        (b"RIFF", 16_000, "The audio is 4 bytes \\(bytes\\), not samples"),
        (bytearray(800), 16_000, "The audio is 800 bytes \\(bytearray\\), not samples"),
        (memoryview(bytes(800)), 16_000, "The audio is 800 bytes \\(memoryview\\), not samples"),
        ([bytearray(800)], 16_000, "The audio is 800 bytes"),
        (io.BytesIO(bytes(800)), 16_000, "The audio is a file \\(BytesIO\\), not samples"),
        ([io.BufferedReader(io.BytesIO(bytes(800)))], 16_000, "The audio is a file \\(BufferedReader\\)"),
        ("song.wav", 16_000, "The audio is a path \\('song.wav'\\), not samples"),
        ({"array": np.zeros(800)}, 16_000, "The audio is a dict with 'array', not samples"),
    ],
)
def test_bad_audio_is_refused_in_one_sentence(extractor, audio, rate, sentence):
    with pytest.raises(ValueError, match=sentence):
        extractor(audio, sampling_rate=rate)


def test_clips_of_different_length_need_padding(extractor):
    with pytest.raises(ValueError, match="4800 to 8000 samples, which make no single tensor"):
        extractor([tone(0.5), tone(0.3)], sampling_rate=16_000, return_tensors="pt")
