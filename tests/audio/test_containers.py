"""All that a player plays of a file is read, nothing else, and what is missing is told, in every container."""

import io
import struct
import subprocess
from shutil import which

import numpy as np
import pytest
from awkward import encoded, music
from test_damage import mutate

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.metadata import read_table
from music2vec_hf.audio.reading import AudioReader, read_audio

# name -> what soundfile calls it; suffix.
CONTAINERS = {
    "wav": ("WAV", "PCM_16", "wav"),
    "wav24": ("WAV", "PCM_24", "wav"),
    "aiff": ("AIFF", "PCM_16", "aiff"),
    "au": ("AU", "PCM_16", "au"),
    "caf": ("CAF", "PCM_16", "caf"),
    "w64": ("W64", "PCM_16", "w64"),
    "rf64": ("RF64", "PCM_16", "wav"),
    "flac": ("FLAC", "PCM_16", "flac"),
    "vorbis": ("OGG", "VORBIS", "ogg"),
    "opus": ("OGG", "OPUS", "opus"),
    "mp3": ("MP3", "MPEG_LAYER_III", "mp3"),
}
# Those that may hold several streams, one after the other; of the others a player plays the first file.
CHAINED = ("au", "flac", "vorbis", "opus", "mp3")

NOISE = np.random.default_rng(5).integers(0, 256, 90_000, dtype=np.uint8).tobytes()


def id3(content):
    """An ID3v2 tag."""
    size = len(content)
    return b"ID3\x03\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + content


SMALL_TAG, PICTURE, TAG = id3(bytes(1000)), id3(NOISE), b"TAG" + b"title".ljust(125, b"\0")
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 232, 1, 0) + bytes(8 + 200)


def sound(name, seconds, rate=None, channels=1, seed=0):
    """A tone in noise, encoded."""
    rate = rate or (48_000 if name == "opus" else 44_100)
    rng, time = np.random.default_rng(seed), np.arange(round(seconds * rate)) / rate
    samples = 0.2 * np.sin(2 * np.pi * (300 + 200 * seed) * time)[:, None]
    return encoded(samples + 0.05 * rng.standard_normal((len(time), channels)), rate, *CONTAINERS[name][:2])


def variants(name):
    """Yield what is done to files of 3 and 4 s: its name, the bytes, the seconds to be read, whether it is told."""
    one, two, other = sound(name, 3), sound(name, 4, seed=1), sound(name, 4, 16_000, 2, 2)
    joined = (7.0, False) if name in CHAINED else (3.0, True)
    yield "whole", one, 3.0, False
    yield "cut", one[: int(0.6 * len(one))], None, True
    yield "odd cut", one[: int(0.6 * len(one)) | 1], None, True
    for what, before in {"tag": PICTURE, "two tags": SMALL_TAG + PICTURE, "padded": SMALL_TAG + bytes(33)}.items():
        yield f"{what} before", before + one, 3.0, False
    yield "zeros before", bytes(4096) + one, 3.0, False
    for what, behind in {"TAG": TAG, "APE": APE, "ID3": PICTURE, "zeros": bytes(200_000), "noise": NOISE}.items():
        yield f"{what} behind", one + behind, 3.0, False
    yield "joined", one + two, *joined
    yield "joined with another rate", one + other, *joined
    yield "joined with tags", SMALL_TAG + one + TAG + PICTURE + two + TAG, *joined
    odd = sound(name, 1.9999)
    yield "odd size", odd, 2.0, False
    yield "odd size, tag behind", odd + PICTURE, 2.0, False


def seconds_by_ffmpeg(data, suffix, folder):
    """What the ffmpeg command decodes."""
    path = folder / f"mutant.{suffix}"
    path.write_bytes(data)
    words = ["ffmpeg", "-v", "quiet", "-nostdin", "-i", path, "-f", "s16le", "-ac", "1", "-ar", "16000", "-"]
    return len(subprocess.run(words, stdout=subprocess.PIPE).stdout) / 32_000


def read(data):
    """Seconds that are read, and what is told."""
    with AudioReader(data) as reader:
        return sum(map(len, reader.blocks())) / 16_000, reader.shortfall


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_in_every_state(name):
    for what, data, expected, is_told in variants(name):
        seconds, told = read(data)
        assert (told is not None) == is_told, (what, told)
        assert 0.8 < seconds < 1.9 if expected is None else seconds == pytest.approx(expected, abs=0.1), what


@pytest.mark.skipif(which("ffmpeg") is None, reason="there is no ffmpeg command")
@pytest.mark.slow
@pytest.mark.parametrize("count", [44, 2000])
def test_mutants_hold_as_much_as_ffmpeg_finds(count, tmp_path):
    names = list(CONTAINERS)
    whole = {name: [sound(name, 1.5, rate, channels) for rate, channels in ((16_000, 1), (None, 2))] for name in names}
    for seed in range(count):
        name = names[seed % len(names)]
        data = mutate(whole[name][seed // len(names) % 2], np.random.default_rng(seed))
        try:
            seconds, told = read(data)
        except AudioError:
            continue
        found = seconds_by_ffmpeg(data, CONTAINERS[name][2], tmp_path)
        assert told is not None or seconds > found - 0.2, (name, seed, seconds, found)
        assert seconds < max(found, 1.5) + 0.2, (name, seed, seconds, found)


def test_a_path_and_what_is_like_bytes_is_an_encoded_file(tmp_path):
    data, path = encoded(music(1), format="FLAC"), tmp_path / "Größe 音楽.flac"
    path.write_bytes(data)
    for source in (path, str(path), bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(read_audio(source), read_audio(data))


def test_a_file_object_is_read_from_where_it_stands_and_stays_open():
    data = encoded(music(1), format="FLAC")
    file = io.BufferedReader(io.BytesIO(b"before" + data))
    file.seek(6)
    np.testing.assert_array_equal(read_audio(file), read_audio(data))
    assert not file.closed and file.seek(0) == 0
    for source, sentence in [(3, "int; give a path"), (io.StringIO("text"), "open it in binary mode")]:
        with pytest.raises(TypeError, match=sentence):
            read_audio(source)


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "an HTML page"),
        (b'{"error": "not found"}', "JSON text"),
        (b"PK\x03\x04" + bytes(60), "a ZIP archive"),
        (b"Not found. " * 20, "no decoder reads it"),
    ],
)
def test_what_is_no_audio_gets_our_own_sentence(data, sentence, tmp_path):
    (tmp_path / "song.mp3").write_bytes(data)
    with pytest.raises(AudioError, match=sentence) as caught:
        read_audio(tmp_path / "song.mp3")
    text = str(caught.value)
    assert "pipe" not in text and caught.value.kind == "undecodable"
    assert str(tmp_path / "song.mp3") in text and text.endswith(".") and "\n" not in text


TEXT = 'file_name,split,title\n0.wav,train,Café\n1.wav,test,"Noël, live"\n'


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace(",", "\t").replace('"Noël\t live"', "Noël, live").encode("utf-8-sig"),
        b"sep=;\r\n" + TEXT.replace(",", ";").replace('"Noël; live"', "Noël, live").encode(),
        TEXT.replace(",", ";").replace('"Noël; live"', "Noël, live").encode(),
    ],
)
def test_a_table_is_read_in_every_form(data, tmp_path):
    (tmp_path / "metadata.csv").write_bytes(data)
    rows = read_table(tmp_path / "metadata.csv").rows
    assert [tuple(row.values()) for row in rows] == [("0.wav", "train", "Café"), ("1.wav", "test", "Noël, live")]


@pytest.mark.parametrize(
    "data, sentence",
    [
        (TEXT.encode("latin-1"), "metadata.csv is not in UTF-8: line 2 holds the byte 0xE9"),
        (TEXT.encode("utf-16-le"), "UTF-8"),
        (b'file_name,title\n0.wav,"open\n1.wav,b\n', "line 3 cannot be read"),
        (b"file_name,title\n0.wav,a,b\n", "line 2 has 3 fields, its header 2"),
        (b"file_name,x,x\n0.wav,a,b\n", "the column 'x' twice"),
        (b"name,x\n0.wav,a\n", "none named file_name, path, file"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_what_is_wrong(data, sentence, tmp_path):
    (tmp_path / "metadata.csv").write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_table(tmp_path / "metadata.csv")
    assert str(tmp_path / "metadata.csv") in str(caught.value)
