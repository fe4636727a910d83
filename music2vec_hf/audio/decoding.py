"""Opening an audio file of any format and reading it frame by frame, before mixing and resampling.

soundfile reads wav, flac, ogg, opus, mp3, aiff and their kin. What it cannot read goes to torchcodec where that
optional package is installed; FFmpeg is never required. The first half of row 1 of the data's way in the design.
"""

import io
import mmap
import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from music2vec_hf.audio.lengths import Length, PatchedFile, measure_length
from music2vec_hf.common.names import printable

SOUNDFILE_SUFFIXES = frozenset(
    ".wav .wave .w64 .rf64 .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .caf".split()
)
CODEC_SUFFIXES = frozenset(".m4a .m4b .mp4 .aac .wma .webm .mka .mkv .mov .ac3 .wv .ape".split())
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | CODEC_SUFFIXES

# A header may state any rate; outside this range it is damage, not audio (and would cost unbounded memory).
MIN_RATE, MAX_RATE = 2_000, 768_000

# Frames read at a time near damage at first; about one FLAC block.
SMALL_READ = 4_096

# Seconds that torchcodec decodes at a time, and at least near damage, where they become fewer.
CODEC_STEP, MIN_CODEC_STEP = 60.0, 0.2

# Seconds by which a time stamp may be off that its container rounds to milliseconds.
CLOCK_ERROR = 0.002

# Frames passed over at a time.
SKIPPED_READ = 1 << 20

# How the containers that only torchcodec reads begin: (offset, bytes).
_CODEC_MAGIC = (
    (4, b"ftyp"),  # m4a, mp4, mov
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # wma
    (0, b"\x1a\x45\xdf\xa3"),  # mka, mkv, webm
    (0, b"\xff\xf1"),  # aac (ADTS, MPEG-4)
    (0, b"\xff\xf9"),  # aac (ADTS, MPEG-2)
)

AudioSource = str | os.PathLike | bytes | BinaryIO


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


class SoundfileDecoder:
    """Reads with libsndfile. `frames` is what the file states, or holds where that is more."""

    def __init__(self, source: str | bytes):
        self._source, self._length = source, Length()
        self._file = self._open()
        self.rate, self.channels = self._file.samplerate, self._file.channels
        self.format = f"{self._file.format} {self._file.subtype}"
        self._length = self._measure()
        if self._length.patches or self._length.prefix:
            self._reopen(0)
        self.frames, self.note = self._length.frames or self._file.frames, self._length.note

    def seek(self, frame: int) -> None:
        self._file.seek(min(frame, self._file.frames))

    def read(self, num_frames: int) -> np.ndarray:
        """The next at most `num_frames` frames, float32 `[n, channels]`; `n` is 0 at the end."""
        position = self._file.tell()
        try:
            return self._file.read(num_frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError:
            if num_frames == 1:
                raise
        return self._read_up_to_damage(position, num_frames)

    def _read_up_to_damage(self, position: int, num_frames: int) -> np.ndarray:
        """A failed read returns nothing of what it decoded: read again from `position` in ever smaller pieces."""
        pieces, length, step = [], 0, min(SMALL_READ, num_frames)
        self._reopen(position)
        while length < num_frames and step:
            try:
                piece = self._file.read(min(step, num_frames - length), dtype="float32", always_2d=True)
            except soundfile.SoundFileError:
                step //= 2
                # After an error libsndfile reads nothing more.
                self._reopen(position + length)
                continue
            if len(piece) == 0:
                break
            pieces.append(piece)
            length += len(piece)
        return np.concatenate(pieces) if pieces else np.zeros((0, self.channels), np.float32)

    def _measure(self) -> Length:
        kind, frames = self._file.format, self._file.frames
        if isinstance(self._source, bytes):
            return measure_length(self._source, kind, frames, self.rate)
        with open(self._source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return measure_length(data, kind, frames, self.rate)

    def _open(self) -> soundfile.SoundFile:
        in_memory = isinstance(self._source, bytes)
        if not (self._length.patches or self._length.prefix):
            # soundfile encodes a path itself, which fails for a name that is not UTF-8.
            path = self._source if in_memory or os.name == "nt" else os.fsencode(self._source)
            return soundfile.SoundFile(io.BytesIO(self._source) if in_memory else path)
        file = io.BytesIO(self._source) if in_memory else open(self._source, "rb")
        return soundfile.SoundFile(PatchedFile(file, self._length))

    def _reopen(self, position: int) -> None:
        self._file.close()
        self._file = self._open()
        self._file.seek(position)

    def close(self) -> None:
        self._file.close()


class TorchcodecDecoder:
    """Reads with torchcodec. `frames` is what the header states, 0 where it states nothing.

    The stream is decoded once, from its beginning on, in whole codec frames: torchcodec's public ranges are cut by
    time stamps, which many containers round to milliseconds, and each that begins within a codec frame decodes all
    that is before it anew.
    """

    def __init__(self, source: str | bytes):
        self._source = source
        self._rewind()
        metadata = self._decoder.metadata
        self.rate, self.channels = int(metadata.sample_rate), metadata.num_channels
        self.format, self.note = str(metadata.codec).upper(), None
        own, container, streams = self._stated_seconds()
        # A container counts from 0, and to the end of its longest stream.
        self._stated_end = own + self._begin if own else container or np.inf
        self.frames = round((own or (max(0.0, container - self._begin) if streams == 1 else 0.0)) * self.rate)

    def seek(self, frame: int) -> None:
        if frame < self._frame:
            self._rewind()
        while self._frame < frame and len(self.read(min(frame - self._frame, SKIPPED_READ))):
            pass

    def read(self, num_frames: int) -> np.ndarray:
        """The next at most `num_frames` frames, float32 `[n, channels]`; `n` is 0 at the end."""
        parts, missing = [], num_frames
        while missing > 0 and (len(self._held) or not self._ended):
            if len(self._held) == 0:
                self._held = self._decode_step()
            parts.append(self._held[:missing])
            self._held = self._held[missing:]
            missing -= len(parts[-1])
        block = np.concatenate(parts) if parts else np.zeros((0, self.channels), np.float32)
        self._frame += len(block)
        return block

    def close(self) -> None:
        pass

    def _rewind(self) -> None:
        self._open()
        # Recordings of broadcasts begin anywhere; what stands before 0 is no audio.
        self._begin = max(0.0, self._decoder.metadata.begin_stream_seconds_from_header or 0.0)
        self._clock, self._end, self._step = max(0.0, self._begin - 1), 0.0, CODEC_STEP
        self._margin, self._frame, self._ended = CLOCK_ERROR, 0, False
        self._held = np.zeros((0, 0), np.float32)

    def _open(self) -> None:
        # A new one instead of seeking back: torchcodec would then not cut off the encoder's delay.
        from torchcodec.decoders import AudioDecoder

        self._decoder = AudioDecoder(self._source)

    def _stated_seconds(self) -> tuple[float, float, int]:
        """Length of the stream and of its container by the header, 0 where it states none; number of streams."""
        from torchcodec._core import get_container_metadata

        metadata = self._decoder.metadata
        if metadata.begin_stream_seconds_from_header is None:
            # Bare AAC, whose length FFmpeg guesses from its bit rate.
            return 0.0, 0.0, 1
        container = get_container_metadata(self._decoder._decoder)
        lengths = (metadata.duration_seconds_from_header, container.duration_seconds_from_header)
        return lengths[0] or 0.0, lengths[1] or 0.0, len(container.streams)

    def _decode_step(self) -> np.ndarray:
        """The samples that follow, about `CODEC_STEP` seconds or none: `[n, channels]`."""
        stop = self._clock + self._step
        try:
            for limit in (stop, stop, None):
                samples, first = self._decode(limit)
                if samples is not None or self._end > self._stated_end - 0.1:
                    break
                # A time that falls between two codec frames, or in a hole, lets torchcodec run to the end.
                self._open()
            if samples is not None and self._end and first - self._end > CLOCK_ERROR == self._margin:
                # A hole; or a codec frame was passed over since its container does not say how long it is.
                self._open()
                self._clock = self._end - CLOCK_ERROR
                again, time = self._decode(limit)
                if abs(time - self._end) <= CLOCK_ERROR:
                    samples, first, self._margin = again, time, -CLOCK_ERROR
        except RuntimeError as error:
            samples, self._ended = None, self._step <= MIN_CODEC_STEP
            if self._ended and self._end == 0:
                raise soundfile.SoundFileRuntimeError(_one_line(error)) from error
            # A failed call returns nothing of what it decoded: once more from there, in shorter steps.
            self._open()
            self._step /= 20
            self.note = "what follows is damaged."
        else:
            self._ended = samples is None
        if samples is None:
            return np.zeros((0, self.channels), np.float32)
        # What was decoded before, or stands before time 0 as an encoder's delay does, is left out.
        repeated = 0
        if self._end - first > CLOCK_ERROR:
            repeated, self._margin = round((self._end - first) * self.rate), CLOCK_ERROR
        self._end = first + len(samples) / self.rate
        self._clock = max(self._end, stop) + self._margin
        return samples[repeated:]

    def _decode(self, stop: float | None) -> tuple[np.ndarray | None, float]:
        """The codec frames that end after the clock, up to that which holds `stop`: `[n, channels]`, first time."""
        # Not public; the versions that the extra allows have it.
        from torchcodec._core import get_frames_by_pts_in_range_audio

        try:
            samples, first = get_frames_by_pts_in_range_audio(
                self._decoder._decoder, start_seconds=self._clock, stop_seconds=stop
            )
        except RuntimeError as error:
            if "No audio frames were decoded" in str(error):
                return None, 0.0
            raise
        return samples.numpy().T, first.item()


Decoder = SoundfileDecoder | TorchcodecDecoder


def is_audio_file(name: str) -> bool:
    """Whether a name has an audio file's suffix and is not hidden."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in AUDIO_SUFFIXES


def source_name(source: AudioSource) -> str:
    """What errors call this source: the path, the file object's name, or the number of bytes."""
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fspath(source))
    if isinstance(source, bytes):
        return f"{len(source)} bytes in memory"
    return str(getattr(source, "name", "a file object"))


def open_decoder(source: AudioSource, name: str) -> Decoder:
    """Open audio with the first decoder that can.

    Args:
        source: path, encoded bytes, or binary file object (read whole; it is encoded audio, thus small).
        name (`str`): what an error calls the source.

    Returns:
        A decoder with `rate` (Hz), `channels`, `format`, `frames` (as the header states, 0 where it does not), `note`
        (what to say of a cut file whose length nothing states), `seek(frame)`, `read(num_frames)`, `close()`.

    Raises:
        AudioError: if the source cannot be opened, is empty, or is in no format that an installed decoder reads.
    """
    if isinstance(source, (bytearray, memoryview)):
        source = bytes(source)
    if not isinstance(source, (str, os.PathLike, bytes)):
        source = source.read()
    head, source = _first_bytes(source, name)
    try:
        decoder: Decoder = SoundfileDecoder(source)
    except soundfile.SoundFileError as error:
        decoder = _open_with_torchcodec(source, name, head, _one_line(error))
    if not MIN_RATE <= decoder.rate <= MAX_RATE:
        decoder.close()
        raise AudioError(
            name, "undecodable", f"it states a sampling rate of {decoder.rate} Hz, outside {MIN_RATE} to {MAX_RATE}."
        )
    return decoder


def _first_bytes(source: str | os.PathLike | bytes, name: str) -> tuple[bytes, str | bytes]:
    """The first bytes and the source in the form that the decoders take; refuses what cannot be opened or is empty."""
    if isinstance(source, bytes):
        head = source[:16]
    else:
        source = os.fspath(source)
        try:
            with open(source, "rb") as file:
                head = file.read(16)
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            reason = getattr(error, "strerror", None) or error
            raise AudioError(name, "unreadable", f"it cannot be opened ({reason}).") from error
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
                "this format needs the `codecs` extra; run `pip install music2vec_hf[codecs]` or convert it to FLAC.",
            ) from error
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        # torchcodec raises these for a damaged file, for one without audio, and where FFmpeg's libraries are missing.
        if foreign:
            raise AudioError(
                name,
                "undecodable",
                f"torchcodec (the `codecs` extra, which needs FFmpeg's shared libraries) says: {_one_line(error)}",
            ) from error
    raise AudioError(name, "undecodable", f"no decoder reads it ({reason}).")


def _one_line(error: Exception) -> str:
    """The first line of a library's message, without the source's repr, which would hold addresses or whole files."""
    text = getattr(error, "error_string", None) or str(error)
    # torchcodec's begin with a function, and a file and line of its own source.
    text = re.sub(r"^\w+, \S+\.cpp:\d+, ", "", text)
    return " ".join(text.split("\n")[0].split())[:200].rstrip(".")
