"""Opening an audio file of any format and reading it frame by frame, before mixing and resampling.

soundfile reads wav, flac, ogg, opus, mp3, aiff and their kin. What it cannot read goes to torchcodec where that
optional package is installed; FFmpeg is never required. The first half of row 1 of the data's way in the design.
"""

import io
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from music2vec_hf.audio.codecs import TorchcodecDecoder, mp3_streams, one_line
from music2vec_hf.audio.streams import DAMAGED, PiecedFile, Stream, container_streams, flac_from, skip_tags
from music2vec_hf.common.files import printable

SOUNDFILE_SUFFIXES = frozenset(
    ".wav .wave .w64 .rf64 .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .caf".split()
)
CODEC_SUFFIXES = frozenset(".m4a .m4b .mp4 .aac .wma .webm .mka .mkv .mov .ac3 .wv .ape".split())
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | CODEC_SUFFIXES

# A header may state any rate; outside this range it is damage, not audio (and would cost unbounded memory).
MIN_RATE, MAX_RATE = 2_000, 768_000

# Frames read at a time near damage at first; about one FLAC block.
SMALL_READ = 4_096

# How the containers that only torchcodec reads begin: (offset, bytes).
_CODEC_MAGIC = (
    (4, b"ftyp"),  # m4a, mp4, mov
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # wma
    (0, b"\x1a\x45\xdf\xa3"),  # mka, mkv, webm
    (0, b"\xff\xf1"),  # aac (ADTS, MPEG-4)
    (0, b"\xff\xf9"),  # aac (ADTS, MPEG-2)
)

# What is found under the names of audio files: how it begins, in lower case.
_NO_AUDIO = {
    "an HTML page": (b"<!doctype html", b"<html", b"<head", b"<body"),
    "an XML document": (b"<?xml", b"<rss", b"<error"),
    "JSON text": (b'{"', b"{ ", b"{\n", b"{\r", b"[{", b'["', b"{}", b"[]"),
    "a ZIP archive": (b"pk\x03\x04",),
    "a compressed archive": (b"rar!", b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b"),
    "a PDF document": (b"%pdf",),
    "a picture": (b"\x89png", b"\xff\xd8\xff", b"gif8"),
    "a pointer of Git LFS": (b"version https://git-lfs",),
}

# As much of a file's beginning as tells what it is.
HEAD_BYTES = 512

AudioSource = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO


class AudioError(ValueError):
    """Audio that cannot be used. Its text is one sentence that names the file.

    Attributes:
        name (`str`): the file, as the caller named it.
        kind (`str`): one or two words to count by: "unreadable", "empty", "undecodable", "codec missing",
            "non-finite", "out of range", "too short", "cancelling".
        detail (`str`): the sentence without the file's name.
    """

    def __init__(self, name: str, kind: str, detail: str):
        super().__init__(name, kind, detail)
        self.name, self.kind, self.detail = name, kind, detail

    def __str__(self) -> str:
        return f"Cannot use the audio of {self.name}: {self.detail}"


AS_IT_IS = Stream()


class SoundfileDecoder:
    """Reads one stream of a file with libsndfile. `frames` is what it states, or holds where that is more."""

    def __init__(self, source: str | bytes, stream: Stream = AS_IT_IS):
        self._source, self._stream = source, stream
        self._file = self._open(stream)
        self._position = 0
        self.rate, self.channels = self._file.samplerate, self._file.channels
        self.format = f"{self._file.format} {self._file.subtype}"
        self.use(stream)

    def seek(self, frame: int) -> None:
        self._position = self._file.seek(min(frame, self._file.frames))

    def read(self, num_frames: int) -> np.ndarray:
        """The next at most `num_frames` frames, float32 `[n, channels]`; `n` is 0 at the end."""
        position = self._position
        try:
            block = self._file.read(num_frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError:
            block = self._read_up_to_damage(position, num_frames)
            if len(block) == 0 == position and not self._skip_damage():
                raise
        self._position = max(self._position, position + len(block))
        if len(block) < num_frames and self._position < self.frames and self._skip_damage():
            return np.concatenate([block, self.read(num_frames - len(block))])
        return block

    def _read_up_to_damage(self, position: int, num_frames: int) -> np.ndarray:
        """A failed read returns nothing of what it decoded: read again from `position` in ever smaller pieces."""
        pieces, length, step, is_open = [], 0, min(SMALL_READ, num_frames), False
        while length < num_frames and step:
            try:
                if not is_open:
                    # After an error libsndfile reads nothing more.
                    self._reopen(position + length)
                is_open = True
                piece = self._file.read(min(step, num_frames - length), dtype="float32", always_2d=True)
            except soundfile.SoundFileError:
                step, is_open = step // 2, False
                continue
            if len(piece) == 0:
                break
            pieces.append(piece)
            length += len(piece)
        return np.concatenate(pieces) if pieces else np.zeros((0, self.channels), np.float32)

    def _skip_damage(self) -> bool:
        """Go on behind the FLAC frame that holds the position; False if there is no more of it."""
        if not self.format.startswith("FLAC") or not self._open_from(self._position, behind=True):
            return False
        self.note = DAMAGED
        return True

    def _open(self, stream: Stream) -> soundfile.SoundFile:
        if isinstance(self._source, bytes):
            file = io.BytesIO(self._source)
        elif stream.pieces:
            file = open(self._source, "rb")
        else:
            # soundfile encodes a path itself, which fails for a name that is not UTF-8.
            file = self._source if os.name == "nt" else os.fsencode(self._source)
        return soundfile.SoundFile(PiecedFile(file, stream.pieces) if stream.pieces else file)

    def _reopen(self, position: int) -> None:
        if position and self.format.startswith("FLAC") and self._open_from(position, behind=False):
            return
        seeks = self._file.seekable()
        self._file.close()
        self._file = self._open(self._stream)
        if position:
            self._file.seek(position)
        if not seeks:
            self._read_in_order()

    def _open_from(self, sample: int, behind: bool) -> bool:
        """Open a FLAC stream from the frame on that holds a sample, or that behind it; False if there is none."""
        with _mapped(self._source) as data:
            found = flac_from(data, self._stream, sample, behind)
        if found is None:
            return False
        try:
            file = self._open(found[0])
        except soundfile.SoundFileError:
            return False  # too little is left of it
        self._file.close()
        self._file = file
        self._read_in_order()  # a seek fails in a stream whose frames do not count from 0
        if behind:
            self._position = found[1]
        else:
            self._file.read(sample - found[1])
        return True

    def use(self, stream: Stream) -> None:
        """Take what was found out about the file as it is."""
        self.frames, self.note = stream.frames or round(self._file.frames * stream.stated_share), stream.note
        if self.note and self._file.format == "MP3":
            self._read_in_order()  # else what lies behind damage may be given again

    def _read_in_order(self) -> None:
        """Keep soundfile from seeking after every read."""
        self._file.seekable = lambda: False

    def close(self) -> None:
        self._file.close()


Decoder = SoundfileDecoder | TorchcodecDecoder


def is_audio_file(name: str) -> bool:
    """Whether a name has an audio file's suffix and is not hidden."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in AUDIO_SUFFIXES


def source_name(source: AudioSource) -> str:
    """What errors call this source: the path, the file object's name, or the number of bytes."""
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes in memory"
    return str(getattr(source, "name", "a file object"))


def open_decoders(source: AudioSource, name: str) -> list[Callable[[], Decoder]]:
    """Open audio with the first decoder that can.

    Returns:
        For each stream of the file, one after the other, a function that opens its decoder. A decoder has `rate` (Hz),
        `channels`, `format`, `frames` (as the header states, 0 where it does not), `note` (what to say of a cut stream
        whose length nothing states), `seek(frame)`, `read(num_frames)`, `close()`.

    Raises:
        AudioError: if the source cannot be opened, is empty, or is in no format that an installed decoder reads.
        TypeError: if it is none of the above.
    """
    head, source = _first_bytes(source, name)
    plain, refusal = None, ""
    try:
        plain = SoundfileDecoder(source)
    except soundfile.SoundFileError as error:
        refusal = one_line(error)
    streams = _find_streams(source, plain)
    if plain is not None and (not streams or not streams[0].pieces):
        plain.use(streams[0] if streams else AS_IT_IS)
        return [lambda: _checked(plain, name)]
    if plain is not None:
        plain.close()
    if not streams:
        decoder = _open_with_torchcodec(source, name, head, refusal)
        return [lambda: _checked(decoder, name)]
    return [partial(_open_stream, source, stream, name) for stream in streams]


def _find_streams(source: str | bytes, plain: SoundfileDecoder | None) -> list[Stream]:
    """The streams of a file; none where that cannot be told. `plain` is the decoder of the file as it is."""
    with _mapped(source) as data:
        begin = skip_tags(data, 0)
        streams = container_streams(data, begin, refused=plain is None)
        if streams is not None:
            return streams
        if plain is None or plain.format.startswith("MP3"):
            return mp3_streams(data, begin, None if plain is None else plain.frames)
        return [AS_IT_IS]


@contextmanager
def _mapped(source: str | bytes) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a source, mapped where it is a file."""
    if isinstance(source, bytes):
        yield source
        return
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _open_stream(source: str | bytes, stream: Stream, name: str) -> SoundfileDecoder:
    try:
        return _checked(SoundfileDecoder(source, stream), name)
    except soundfile.SoundFileError as error:
        raise AudioError(name, "undecodable", f"no decoder reads it ({one_line(error)}).") from error


def _checked(decoder: Decoder, name: str) -> Decoder:
    if not MIN_RATE <= decoder.rate <= MAX_RATE:
        decoder.close()
        raise AudioError(
            name, "undecodable", f"it states a sampling rate of {decoder.rate} Hz, outside {MIN_RATE} to {MAX_RATE}."
        )
    return decoder


def _first_bytes(source: AudioSource, name: str) -> tuple[bytes, str | bytes]:
    """The first bytes and the source in the form that the decoders take; refuses what cannot be opened or is empty."""
    if isinstance(source, (str, os.PathLike)):
        source = os.fspath(source)
        try:
            if stat.S_ISFIFO(os.stat(source).st_mode):  # opening it would wait for its other end
                raise AudioError(name, "unreadable", "it is a pipe, no file.")
            with open(source, "rb") as file:
                head = file.read(HEAD_BYTES)
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            reason = getattr(error, "strerror", None) or error
            raise AudioError(name, "unreadable", f"it cannot be opened ({reason}).") from error
    else:
        if not isinstance(source, (bytes, bytearray, memoryview)):
            if not hasattr(source, "read"):
                raise TypeError(
                    f"{name} is {type(source).__name__}; give a path, encoded bytes or a binary file object."
                )
            source = source.read()
            if not isinstance(source, (bytes, bytearray, memoryview)):
                raise TypeError(f"{name} gives {type(source).__name__} in place of bytes; open it in binary mode.")
        source = bytes(source)
        head = source[:HEAD_BYTES]
    if not head:
        raise AudioError(name, "empty", "it has 0 bytes.")
    return head, source


def _open_with_torchcodec(source: str | bytes, name: str, head: bytes, reason: str) -> Decoder:
    """The second try, for what soundfile refused with `reason`."""
    suffix = Path(source).suffix.lower() if isinstance(source, str) else ""
    foreign = suffix in CODEC_SUFFIXES or any(head[at : at + len(magic)] == magic for at, magic in _CODEC_MAGIC)
    try:
        return TorchcodecDecoder(source)
    except ImportError as error:
        if foreign:
            raise AudioError(
                name,
                "codec missing",
                "this format needs the `codecs` extra: `pip install 'music2vec_hf[codecs]'`, or convert it to FLAC.",
            ) from error
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        # torchcodec raises these for a damaged file, for one without audio, and where FFmpeg's libraries are missing.
        if foreign:
            raise AudioError(
                name,
                "undecodable",
                f"torchcodec (the `codecs` extra, which needs FFmpeg's shared libraries) says: {one_line(error)}",
            ) from error
    raise AudioError(name, "undecodable", _what_else(head) or f"no decoder reads it ({reason}).")


def _what_else(head: bytes) -> str | None:
    """A sentence about a file that is no audio, where its beginning tells what it is."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kind = next((kind for kind, beginnings in _NO_AUDIO.items() if text.startswith(beginnings)), None)
    return kind and f"it holds {kind}, no audio; fetch or export the audio file itself."
