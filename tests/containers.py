"""Files of every container as they are found: cut, joined, padded, of odd size, with tags before or behind."""

import struct
import subprocess

import numpy as np
from awkward import encoded

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
