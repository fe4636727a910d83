"""A folder of awkward files, and exactly what a corpus of clips of 5 s must make of each: one table."""

import io

import numpy as np
import soundfile


def music(seconds, rate=16000, channels=1, seed=0, level=0.1):
    rng = np.random.default_rng(seed)
    return np.clip(level * rng.standard_normal((round(seconds * rate), channels)), -0.99, 0.99)


def encoded(samples, rate=16000, format="WAV", subtype=None, **settings):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype, **settings)
    return buffer.getvalue()


def cut(data, share=0.7):
    return data[: int(share * len(data))]


def with_number(data, place, number):
    """A file with another number of four bytes at a place."""
    return data[:place] + number.to_bytes(4, "little") + data[place + 4 :]


def with_wav_bytes(data, stated):
    """A wav whose header states so many bytes of samples."""
    return with_number(data, data.find(b"data") + 4, stated)


def with_flac_samples(data, stated):
    """A FLAC whose header states so many samples; 0 is allowed and means unknown."""
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | stated
    return data[:18] + packed.to_bytes(8, "big") + data[26:]


def without_table(mp3):
    """An mp3 without the first frame, which states its length."""
    return mp3[mp3.find(mp3[:2], 2) :]


def join(*parts):
    return np.concatenate(parts)


def not_finite(value):
    return join(music(10, seed=21)[:-1], [[value]])


def loud_then_quiet():
    return join(music(9, 44100, seed=22, level=0.4), np.zeros((44100 * 5, 1)))


MP3_44, OGG_44, WAV_16 = (44100, "MP3"), (44100, "OGG", "VORBIS"), (16000, "WAV", "PCM_16")
MOSTLY_ONES = np.sign(np.sin(np.arange(16000 * 5) / 50))[:, None]
STEREO = music(5, seed=23)
FIVE = [(0, 5)]
CODEC = "codec missing: this format needs the `codecs` extra"

# name: (content, clips as (start, duration), beginnings of the reasons for what was left out)
FILES = {
    # Every format and rate that soundfile reads.
    "formats/wav8.wav": (encoded(music(5, 8000), 8000, "WAV", "PCM_U8"), FIVE, []),
    "formats/wav16.wav": (encoded(music(12, 44100, 2), 44100), [(0, 5), (5, 5), (10, 2)], []),
    "formats/wav24.wav": (encoded(music(6, 48000), 48000, "WAV", "PCM_24"), FIVE, []),  # 1 s is dropped
    "formats/wav32.wav": (encoded(music(5, 96000), 96000, "WAV", "PCM_32"), FIVE, []),
    "formats/float.wav": (encoded(music(5, 22050), 22050, "WAV", "FLOAT"), FIVE, []),
    "formats/double.wav": (encoded(music(5, 11025), 11025, "WAV", "DOUBLE"), FIVE, []),
    "formats/rf64.wav": (encoded(music(5, 32000), 32000, "RF64"), FIVE, []),
    "formats/w64.w64": (encoded(music(5, 192000), 192000, "W64"), FIVE, []),
    "formats/aiff.aiff": (encoded(music(5), 16000, "AIFF"), FIVE, []),
    "formats/flac16.flac": (encoded(music(5, 44100, seed=1), 44100, "FLAC"), FIVE, []),
    "formats/flac24.flac": (encoded(music(5, 88200), 88200, "FLAC", "PCM_24"), FIVE, []),
    "formats/vorbis.ogg": (encoded(music(5, 44100, seed=2), *OGG_44), FIVE, []),
    "formats/opus.opus": (encoded(music(5, 48000, seed=3), 48000, "OGG", "OPUS"), FIVE, []),
    "formats/mp3.mp3": (encoded(music(4, 22050, seed=4), 22050, "MP3"), [(0, 4)], []),
    # What needs the extra, here without it.
    "formats/song.m4a": (b"\x00\x00\x00\x20ftypM4A " + bytes(200), [], [CODEC]),
    "formats/song.wma": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(200), [], [CODEC]),
    "formats/film.mp4": (b"\x00\x00\x00\x20ftypisom" + bytes(200), [], [CODEC]),
    # Channels and names.
    "channels/surround.flac": (encoded(music(5, 48000, 6, 5), 48000, "FLAC"), FIVE, []),
    "channels/cancel.wav": (
        encoded(join(STEREO, 0.98 * -STEREO).reshape(2, -1).T),
        [],
        ["cancelling: its 2 channels cancel each other: their average is 40 dB below them."],
    ),
    "names/Größe 音楽 🎵.ogg": (encoded(music(2.5, seed=6), 16000, "OGG"), [(0, 2.5)], []),
    "names/LOUD NAME.WAV": (encoded(music(3, seed=7)), [(0, 3)], []),
    "names/really_wav.mp3": (encoded(music(3, seed=8)), [(0, 3)], []),
    "names/really_mp3.flac": (encoded(music(4, seed=9), 16000, "MP3"), [(0, 4)], []),
    "names/really_m4a.wav": (b"\x00\x00\x00\x20ftypM4A " + bytes(200), [], [CODEC]),
    # No audio.
    "empty/bytes.mp3": (b"", [], ["empty: it has 0 bytes."]),
    "empty/samples.wav": (encoded(np.zeros((0, 1))), [], ["empty: it holds no samples."]),
    "letter.wav": (
        b"This is a letter, not a song.\n" * 100,
        [],
        ["undecodable: no decoder reads it (Format not recognised)."],
    ),
    "click.wav": (encoded(music(0.05)), [], ["too short: it lasts 0.05 s, at least 2 s are needed."]),
    "nan.wav": (encoded(not_finite(np.nan), *WAV_16[:2], "FLOAT"), [], ["non-finite: it holds samples that are NaN"]),
    "inf.wav": (encoded(not_finite(np.inf), *WAV_16[:2], "FLOAT"), [], ["non-finite: it holds samples that are NaN"]),
    "units.wav": (
        encoded(3e4 * music(5), *WAV_16[:2], "FLOAT"),
        [],
        ["out of range: its samples reach 1.42e+04; float audio must be scaled to [-1, 1]."],
    ),
    "rate.wav": (
        with_number(encoded(music(5)), 24, 1),
        [],
        ["undecodable: it states a sampling rate of 1 Hz, outside 2000 to 768000."],
    ),
    # Silence of all kinds.
    "silent/digital.flac": (encoded(np.zeros(80000), 16000, "FLAC"), [], ["silence: the clip at 0 s (all samples"]),
    "silent/offset.wav": (encoded(np.full(80000, 0.5)), [], ["silence: the clip at 0 s (all samples are equal)."]),
    "silent/nearly.wav": (
        encoded(music(5, level=1e-4), 16000, "WAV", "PCM_24"),
        [],
        ["silence: the clip at 0 s (peak -6"],
    ),
    "silent/half.wav": (
        encoded(join(music(5, seed=10), np.zeros((80000, 1)))),
        FIVE,
        ["silence: the clip at 5 s (all samples are equal)."],
    ),
    "clipped.wav": (encoded(MOSTLY_ONES), [], ["clipped: 100% of the clip at 0 s lie at full scale."]),
    # Cut off: what is there is kept, and it is said how much that is. What is left after 5 s is too short.
    "cut/flac.flac": (cut(encoded(music(10, 44100, seed=11), 44100, "FLAC")), FIVE, ["truncated: only 7.0 s of the"]),
    "cut/mp3.mp3": (cut(encoded(music(10, 44100, seed=12), *MP3_44)), FIVE, ["truncated: only 6.9 s of the 10.0"]),
    "cut/wav.wav": (cut(encoded(music(10, seed=13))), FIVE, ["truncated: only 7.0 s of the 10.0 s"]),
    "cut/rf64.wav": (cut(encoded(music(10, seed=14), 16000, "RF64")), FIVE, ["truncated: only 7.0 s of the 10.0 s"]),
    "cut/w64.w64": (cut(encoded(music(10, seed=15), 16000, "W64")), FIVE, ["truncated: only 7.0 s of the 10.0 s"]),
    "cut/ogg.ogg": (cut(encoded(music(10, 44100, seed=16), *OGG_44)), FIVE, ["truncated: it ends after 6."]),
    # Headers that lie about the length, to both sides. All that is there is read.
    "lies/wav_short.wav": (with_wav_bytes(encoded(music(5, seed=17)), 40_000), FIVE, []),
    "lies/wav_zero.wav": (with_wav_bytes(encoded(music(5, seed=18)), 0), FIVE, []),
    "lies/wav_long.wav": (
        with_wav_bytes(encoded(music(5, seed=19)), 320_000),
        FIVE,
        ["truncated: only 5.0 s of the 10"],
    ),
    "lies/wav_unknown.wav": (with_wav_bytes(encoded(music(5, seed=20)), 0xFFFFFFFF), FIVE, []),
    "lies/flac_unknown.flac": (with_flac_samples(encoded(music(5, seed=24), 16000, "FLAC"), 0), FIVE, []),
    "lies/flac_short.flac": (with_flac_samples(encoded(music(5, seed=25), 16000, "FLAC"), 40_000), FIVE, []),
    "lies/flac_long.flac": (
        with_flac_samples(encoded(music(5, seed=26), 16000, "FLAC"), 160_000),
        FIVE,
        ["truncated: only 5.0 s of the 10.0 s that its header states can be decoded."],
    ),
    # libsndfile takes these for 5 s: it reckons with the bit rate of the beginning, or reads the first table only.
    "lies/mp3_vbr.mp3": (
        without_table(encoded(loud_then_quiet(), *MP3_44, bitrate_mode="VARIABLE", compression_level=0.2)),
        [(0, 5), (5, 5)],
        ["silence: the clip at 10 s ("],
    ),
    "lies/mp3_joined.mp3": (
        encoded(music(5, 44100, seed=27), *MP3_44) + encoded(music(5.2, 44100, seed=28), *MP3_44),
        [(0, 5), (5, 5)],
        [],
    ),
}
# Not files of their own.
LINKS = {
    "gone.wav": ("nowhere.wav", [], ["unreadable: it cannot be opened (No such file or directory)."]),
    "a_folder/loop": (".", [], []),
}
TABLE = {**FILES, **LINKS}


def make_awkward_folder(folder):
    for name, (content, _, _) in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name, (target, _, _) in LINKS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder / target)
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.wav").write_text("not looked at")


def in_order(names):
    """The order of the corpus: by the parts of the path."""
    return sorted(names, key=lambda name: name.split("/"))
