"""Decoding: what comes out of every format, what resampling lets through, what is refused and how."""

import sys
import types

import numpy as np
import pytest
import torch
from awkward import encoded

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import encode_flac, find_audio_files, read_audio, read_flac_crop
from music2vec_hf.audio.resampling import SAMPLING_RATE

RATES_ABOVE = [22050, 32000, 44100, 48000, 96000]


def tone(frequency, seconds=2.0, rate=SAMPLING_RATE, level=0.5):
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def noise(num_samples, channels=1, seed=0, level=0.1):
    return np.clip(level * np.random.default_rng(seed).standard_normal((num_samples, channels)), -0.99, 0.99)


def gain_db(samples, level=0.5):
    """Level of a tone against `level`, the ends left out, where the filter runs in and out."""
    inner = samples[2000:-2000].astype(np.float64)
    return 20 * np.log10(max(inner.std() * np.sqrt(2) / level, 1e-12))


@pytest.mark.parametrize("rate", [8000, 11025, *RATES_ABOVE, 44099])
def test_a_tone_below_the_cutoff_passes(rate):
    for frequency in (50, 1000, 3000, *([7500] if rate in RATES_ABOVE else [])):
        samples = read_audio(encoded(tone(frequency, rate=rate), rate, subtype="FLOAT"))
        assert gain_db(samples) == pytest.approx(0, abs=0.1), frequency


@pytest.mark.parametrize("rate", RATES_ABOVE)
def test_a_tone_above_8_khz_vanishes(rate):
    for frequency in (8001, 8100, 8500, 9000, 10000, 0.49 * rate):
        samples = read_audio(encoded(tone(frequency, rate=rate), rate, subtype="FLOAT"))
        assert gain_db(samples) < -80, frequency


def test_a_tone_keeps_frequency_and_phase():
    got = read_audio(encoded(tone(440, rate=44100), 44100, subtype="FLOAT"))
    expected = tone(440)
    assert len(got) == len(expected)
    np.testing.assert_allclose(got[500:-500], expected[500:-500], atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 22050, 44099, 44100, 48000])
def test_a_part_is_the_slice_of_the_whole(rate):
    data = encoded(noise(rate * 13 + 11, 2), rate, subtype="FLOAT")
    whole = read_audio(data)
    assert len(whole) == pytest.approx((13 + 11 / rate) * SAMPLING_RATE, abs=1.1)
    for start, seconds in [(0.0, 2.0), (0.0041, 1.0), (3.14159, 5.0), (10.5, None), (12.9, 5.0)]:
        first = round(start * SAMPLING_RATE)
        last = None if seconds is None else first + round(seconds * SAMPLING_RATE)
        np.testing.assert_allclose(read_audio(data, start, seconds), whole[first:last], atol=2e-6)


def test_blocks_join_without_a_seam():
    # 25 s are three blocks; a seam would show beside the resampling of the whole at once.
    import torchaudio

    samples = noise(44100 * 25)[:, 0].astype(np.float32)
    whole = torchaudio.functional.resample(
        torch.from_numpy(samples),
        44100,
        SAMPLING_RATE,
        lowpass_filter_width=96,
        rolloff=0.965,
        resampling_method="sinc_interp_kaiser",
        beta=7.5,
    )
    np.testing.assert_allclose(read_audio(encoded(samples, 44100, subtype="FLOAT")), whole.numpy(), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_averaged(channels):
    samples = noise(SAMPLING_RATE, channels)
    got = read_audio(encoded(samples, subtype="FLOAT"))
    np.testing.assert_allclose(got, samples.astype(np.float32).mean(axis=1), atol=1e-6)
    assert got.dtype == np.float32 and got.shape == (SAMPLING_RATE,)


@pytest.mark.parametrize(
    "format, subtype, tolerance",
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-22),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 1e-6),
        ("WAV", "DOUBLE", 1e-6),
        ("RF64", "PCM_16", 2**-15),
        ("W64", "PCM_16", 2**-15),
        ("AIFF", "PCM_16", 2**-15),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-22),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_format_gives_the_tone_back(format, subtype, tolerance):
    samples = tone(440, seconds=3)
    got = read_audio(encoded(samples, format=format, subtype=subtype))
    assert len(got) == pytest.approx(len(samples), abs=2400)
    inner = slice(4000, 40000)
    np.testing.assert_allclose(got[inner], samples[inner], atol=tolerance)


def test_peaks_beyond_full_scale_are_clipped():
    assert np.abs(read_audio(encoded(tone(100, level=1.5), subtype="FLOAT"))).max() == 1.0


def test_start_beyond_the_end_is_refused():
    data = encoded(noise(8000))
    with pytest.raises(AudioError, match="ends before 3 s"):
        read_audio(data, start=3.0)
    with pytest.raises(ValueError, match="at least 0"):
        read_audio(data, start=-1.0)
    with pytest.raises(ValueError, match="above 0"):
        read_audio(data, seconds=0.0)


@pytest.mark.parametrize("format", ["FLAC", "MP3"])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_truncated_file_gives_what_can_be_decoded_and_says_so(format, share):
    data = encoded(noise(44100 * 12), 44100, format=format)
    whole = read_audio(data)
    with pytest.warns(UserWarning, match=r"only \d+\.\d s of the 12\.0 s that its header states"):
        got = read_audio(data[: int(share * len(data))])
    assert 0.6 * share < len(got) / len(whole) <= 1.05 * share
    np.testing.assert_allclose(got[:-2000], whole[: len(got) - 2000], atol=1e-6)


def test_torchcodec_reads_what_soundfile_cannot(tmp_path, monkeypatch):
    samples = torch.from_numpy(noise(48000 * 12, 2).astype(np.float32)).T  # [channels, n]

    class AudioDecoder:
        """torchcodec's decoder as far as it is used: codec frames of 1000 samples, a clock that starts at 0.5 s."""

        def __init__(self, source):
            self._decoder = self
            self.metadata = types.SimpleNamespace(
                sample_rate=48000,
                num_channels=2,
                codec="aac",
                duration_seconds_from_header=12.0,
                duration_seconds=12.0,
                begin_stream_seconds_from_header=0.5,
            )

    def get_frames(decoder, start_seconds, stop_seconds):
        first = max(0, int((start_seconds - 0.5) * 48)) * 1000
        last = samples.shape[1] if stop_seconds is None else -(-int((stop_seconds - 0.5) * 48000) // 1000) * 1000
        if first >= min(last, samples.shape[1]):
            raise RuntimeError("No audio frames were decoded.")
        return samples[:, first:last], torch.tensor(0.5 + first / 48000)

    streams = types.SimpleNamespace(streams=[None], duration_seconds_from_header=None)
    core = types.SimpleNamespace(
        get_container_metadata=lambda decoder: streams, get_frames_by_pts_in_range_audio=get_frames
    )
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec._core", core)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.SimpleNamespace(AudioDecoder=AudioDecoder))
    monkeypatch.setattr("music2vec_hf.audio.codecs.CODEC_STEP", 3.7)
    path = tmp_path / "song.m4a"
    path.write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(200))
    expected = read_audio(encoded(samples.T.numpy(), 48000, subtype="FLOAT"))
    np.testing.assert_allclose(read_audio(path), expected, atol=1e-6)
    np.testing.assert_allclose(read_audio(path, 5.0, 2.0), expected[80000:112000], atol=1e-6)


def test_flac_holds_the_nearest_sixteen_bit_value():
    samples = np.concatenate([noise(50000)[:, 0], [1.0, -1.0, 0.0, 2.0]]).astype(np.float32)
    data = encode_flac(samples)
    expected = np.clip(np.rint(samples * 32768), -32768, 32767) / 32768
    np.testing.assert_array_equal(read_audio(data), expected.astype(np.float32))
    assert encode_flac(samples) == data


def test_a_crop_is_the_slice_of_the_whole_decode():
    data = encode_flac(noise(480000)[:, 0].astype(np.float32))
    whole = read_audio(data)
    rng = np.random.default_rng(1)
    starts = [0, 1, 4095, 4096, 400000, *rng.integers(0, 400000, 20)]
    for start in starts:
        np.testing.assert_array_equal(read_flac_crop(data, int(start), 80000), whole[start : start + 80000])


def test_crops_outside_the_clip_and_foreign_clips_are_refused():
    data = encode_flac(noise(16000)[:, 0])
    for start, length in [(-1, 10), (0, 16001), (16000, 1), (0, 0)]:
        with pytest.raises(ValueError, match="does not lie inside a clip of 16000 samples"):
            read_flac_crop(data, start, length)
    with pytest.raises(AudioError, match="2 channels at 44100 Hz"):
        read_flac_crop(encoded(noise(44100, 2), 44100, "FLAC"), 0, 10)
    with pytest.raises(AudioError, match="damaged"):
        read_flac_crop(data[: len(data) // 4], 8000, 4000)
    with pytest.raises(ValueError, match="NaN or infinite"):
        encode_flac(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"shape \(num_samples,\)"):
        encode_flac(np.zeros((2, 100)))


def test_files_are_found_in_order_and_loops_end(tmp_path):
    for name in ["b/2.WAV", "b/1.mp3", "a.flac", "notes.txt", ".hidden/x.wav", "c/.y.wav", "é.ogg", "b-side/z.m4a"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "c" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    names = [path.relative_to(tmp_path).as_posix() for path in find_audio_files(tmp_path)]
    assert names == ["a.flac", "b/1.mp3", "b/2.WAV", "b-side/z.m4a", "c/gone.wav", "é.ogg"]
    with pytest.raises(ValueError, match="is not a folder"):
        find_audio_files(tmp_path / "a.flac")
