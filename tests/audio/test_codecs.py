"""What torchcodec reads (extra `codecs`), beside what the ffmpeg command makes of the same files."""

import subprocess
import warnings
from shutil import which

import numpy as np
import pytest
import soundfile

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import AudioReader, read_audio
from music2vec_hf.corpus.loading import load_corpus, read_clip
from music2vec_hf.corpus.prepare import prepare_corpus

pytestmark = pytest.mark.skipif(which("ffmpeg") is None, reason="there is no ffmpeg command")

RATE, SECONDS = 44_100, 7

# name -> what ffmpeg is told to make it with, samples of silence of the codec before the audio, noise in dB.
FILES = {
    "song.m4a": ("-c:a aac -b:a 192k", 0, -20),
    "fast.m4a": ("-c:a aac -b:a 192k -movflags +faststart", 0, -20),
    "lossless.m4a": ("-c:a alac", 0, -90),
    "bare.aac": ("-c:a aac -b:a 192k", 1024, -20),
    "song.wma": ("-c:a wmav2 -b:a 192k", None, -20),
    "sound.mka": ("-c:a libvorbis -q:a 6", 0, -20),
    "lossless.mka": ("-c:a flac", 0, -90),
    "sound.webm": ("-c:a libopus -b:a 160k", 0, -20),
    "sound.wv": ("-c:a wavpack", 0, -90),
    "film.mp4": ("-c:v mpeg4 -c:a aac -b:a 192k", 0, -20),
    "film.mkv": ("-c:v mpeg4 -c:a ac3 -b:a 192k", 256, -18),
}
PICTURE = ("-f", "lavfi", "-i", f"testsrc=duration={SECONDS}:size=64x48:rate=10")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec (extra `codecs`) does not load: {str(error)[:60]}")
    folder = tmp_path_factory.mktemp("media")
    rng, time = np.random.default_rng(0), np.arange(SECONDS * RATE) / RATE
    sweep = 0.2 * np.sin(2 * np.pi * (200 * time + 150 * time**2)) * np.sin(2 * np.pi * 0.7 * time) ** 2
    sweep += 0.01 * rng.standard_normal(len(time))
    soundfile.write(folder / "original.flac", np.stack([sweep, 0.5 * sweep], 1), RATE)
    for name, (settings, _, _) in FILES.items():
        picture = PICTURE if name.startswith("film") else ()
        ffmpeg(*picture, "-i", folder / "original.flac", *settings.split(), folder / name)
    return folder


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


def difference_db(got, expected):
    assert abs(len(got) - len(expected)) < 1200
    length = min(len(got), len(expected)) - 100
    return 10 * np.log10(np.mean((got[:length] - expected[:length]) ** 2) / np.mean(expected**2) + 1e-12)


@pytest.mark.parametrize("step", [0.5, 60.0])
@pytest.mark.parametrize("name", FILES)
def test_level_length_and_place_are_the_originals(media, name, step, monkeypatch):
    # Many short steps show that none of their seams is heard.
    monkeypatch.setattr("music2vec_hf.audio.codecs.CODEC_STEP", step)
    _, delay, noise_db = FILES[name]
    original, rate = soundfile.read(media / "original.flac", dtype="float32")
    # WMA as ffmpeg writes it begins before time 0.
    original = original[2048:] if delay is None else np.pad(original, ((delay, 0), (0, 0)))
    soundfile.write(media / "expected.wav", original, rate, "FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no false alarm of a cut file
        got = read_audio(media / name)
    assert difference_db(got, read_audio(media / "expected.wav")) < noise_db


@pytest.mark.parametrize("name", FILES)
def test_steps_and_crops_are_slices_of_the_whole(media, name, monkeypatch):
    whole = read_audio(media / name)
    np.testing.assert_array_equal(read_audio((media / name).read_bytes()), whole)
    np.testing.assert_allclose(read_audio(media / name, 2.5, 3.0), whole[40_000:88_000], atol=1e-6)
    monkeypatch.setattr("music2vec_hf.audio.codecs.CODEC_STEP", 0.3)
    stepped = read_audio(media / name)
    # The last codec frames may fall between two time stamps.
    assert len(whole) - 1600 <= len(stepped) <= len(whole)
    np.testing.assert_allclose(stepped[:-100], whole[: len(stepped) - 100], atol=1e-6)


def test_a_stream_that_begins_late_is_read_from_its_beginning(media, tmp_path, monkeypatch):
    for kind in ("mkv", "mp4"):
        path = tmp_path / f"late.{kind}"
        ffmpeg("-itsoffset", 100, "-i", media / "lossless.m4a", "-c", "copy", "-copyts", path)
        monkeypatch.setattr("music2vec_hf.audio.codecs.CODEC_STEP", 1.5)
        np.testing.assert_allclose(read_audio(path), read_audio(media / "lossless.m4a"), atol=1e-6)


def test_a_corpus_of_them_is_whole(media, tmp_path):
    (tmp_path / "source").mkdir()
    for name in FILES:
        (tmp_path / "source" / name).symlink_to(media / name)
    summary = prepare_corpus(tmp_path / "source", tmp_path / "out", clip_seconds=5.0, min_seconds=1.0, progress=False)
    # The same AAC in three containers, and what is lossless in three, are the same samples.
    assert summary["tracks"] == len(FILES) - 4 and summary["rejects"] == {"duplicate": 4}
    assert summary["hours"] * 3600 == pytest.approx(SECONDS * summary["tracks"], abs=0.5)
    rows = load_corpus(tmp_path / "out").filter(lambda row: row["source"] == "lossless.m4a")
    together = np.concatenate([read_clip(row) for row in rows])
    np.testing.assert_allclose(together, read_audio(media / "original.flac"), atol=1e-4)


@pytest.mark.parametrize("name", ["fast.m4a", "bare.aac", "song.wma", "sound.mka", "film.mkv"])
def test_a_cut_file_gives_what_can_be_decoded_and_says_so(media, name, tmp_path):
    whole, data = read_audio(media / name), (media / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    # Nothing states the length of a sound track; what is cut from it is missed by nobody.
    if name == "film.mkv":
        got = read_audio(tmp_path / name)
    else:
        with pytest.warns(UserWarning, match="can be decoded|what follows is damaged"):
            got = read_audio(tmp_path / name)
    assert 0.3 < len(got) / len(whole) < 0.7
    np.testing.assert_allclose(got[:-2000], whole[: len(got) - 2000], atol=1e-4)


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
@pytest.mark.parametrize("step", [0.5, 60.0])
def test_a_hole_in_the_stream_repeats_nothing(media, kind, step, tmp_path, monkeypatch):
    monkeypatch.setattr("music2vec_hf.audio.codecs.CODEC_STEP", step)
    hole, path = "noise=drop='between(n,100,200)'", tmp_path / f"hole.{kind}"
    ffmpeg("-i", media / "original.flac", "-c:a", "aac", "-b:a", "192k", "-bsf:a", hole, path)
    ffmpeg("-i", path, "-c:a", "pcm_f32le", tmp_path / "expected.wav")
    with pytest.warns(UserWarning, match=r"only 4\.\d s of the 7\.0 s"):
        got = read_audio(path)
    assert len(got) == pytest.approx(len(read_audio(tmp_path / "expected.wav")), abs=800)


def test_what_has_no_sound_or_no_index_is_refused_in_a_sentence(media, tmp_path):
    ffmpeg(*PICTURE, "-c:v", "mpeg4", tmp_path / "mute.mp4")
    data = (media / "song.m4a").read_bytes()
    (tmp_path / "headless.m4a").write_bytes(data[: len(data) // 2])
    for name, reason in [("mute.mp4", "audio stream"), ("headless.m4a", "Invalid data")]:
        sentence = rf"^Cannot use the audio of \S+: torchcodec .* says: .*{reason}"
        with pytest.raises(AudioError, match=sentence) as caught:
            AudioReader(tmp_path / name)
        assert caught.value.kind == "undecodable" and ".cpp" not in str(caught.value)
