"""Audio of any format to mono float32 at 16 kHz, FLAC clips to crops: rows 1 and 3 of the data's way in the design.

Everything is read block by block, so that a ten-hour file costs no more memory than its result.
"""

import io
import logging
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from music2vec_hf.audio.decoding import AudioError, AudioSource, Decoder, is_audio_file, open_decoders, source_name
from music2vec_hf.audio.resampling import SAMPLING_RATE, StreamResampler
from music2vec_hf.common.files import printable

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 10.0

# Folders in a corpus that `prepare_corpus` has not finished; the second is of version 0.1.
UNFINISHED = (".unfinished", ".staging")

# Float audio may overshoot 1 a little (mp3 does); beyond this it is in other units, such as 16-bit integers.
MAX_PEAK = 16.0
# Damaged files of these formats may decode to any level.
LOSSY = ("MP3", "OGG")

# A header's length is trusted up to this; a larger gap means a damaged file.
SHORTFALL_SECONDS = 0.1
SHORT = "short"

# Channels whose average is this much quieter than they are cancel each other. Unrelated ones lose 3 dB a doubling.
CANCELLING_DB = -30.0

# The header of a clip in 16-bit WAV, mono at 16 kHz, from its ninth byte to the size of its samples.
_WAV_CLIP = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, SAMPLING_RATE, 2 * SAMPLING_RATE, 2, 16) + b"data"


class AudioReader:
    """Reads one audio source as blocks of mono float32 at 16 kHz. Use as a context manager.

    Args:
        source: a path; an encoded file as `bytes`, `bytearray` or `memoryview`; or a binary file object, which is read
            from where it stands to its end, and stays open.
        target_rate (`int`): the rate to resample to, for models of others that hear more than 16 kHz.

    Attributes:
        shortfall (`str` or `None`): after the last block, a sentence if less could be decoded than the header states.
        sampling_rate, num_channels, format: of the source, the format as the decoder names it.

    Raises:
        AudioError: as `read_audio`.
    """

    def __init__(self, source: AudioSource, name: str | None = None, target_rate: int = SAMPLING_RATE):
        self.name = name or source_name(source)
        self.shortfall: str | None = None
        # A file may hold several streams, one after the other, of other rates and numbers of channels each.
        self._openers = open_decoders(source, self.name)
        self._number, self._decoder = 0, self._openers[0]()
        self._lengths = {0: self._num_samples(self._decoder, target_rate)}
        self.sampling_rate, self.num_channels = self._decoder.rate, self._decoder.channels
        self.target_rate = target_rate
        self.format = self._decoder.format
        self._frame = 0
        # Seconds of the streams that have been read: found, and stated; what is to be said of them.
        self._found = self._stated = 0.0
        self._problem: str | None = None
        self._energy = self._mixed_energy = 0.0

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, *exception) -> None:
        self._decoder.close()

    @property
    def num_samples(self) -> int:
        """Length at the target rate by the header, 0 where it states nothing; damage may make the audio shorter."""
        return sum(map(self._length, range(len(self._openers))))

    def _length(self, number: int) -> int:
        if number not in self._lengths:
            try:
                decoder = self._openers[number]()
            except AudioError:
                self._lengths[number] = 0
            else:
                self._lengths[number] = self._num_samples(decoder, self.target_rate)
                decoder.close()
        return self._lengths[number]

    @staticmethod
    def _num_samples(decoder: Decoder, target_rate: int) -> int:
        ratio = StreamResampler(decoder.rate, target_rate)
        return -(-decoder.frames * ratio.up // ratio.down)

    @property
    def cancellation(self) -> str | None:
        """Of what was read so far, a sentence if the channels cancel each other in their average."""
        if self._mixed_energy >= self._energy * 10 ** (CANCELLING_DB / 10):
            return None
        level = -10 * np.log10(max(self._mixed_energy / self._energy, 1e-12))
        return f"its {self.num_channels} channels cancel each other: their average is {level:.0f} dB below them."

    def blocks(self, start: float = 0.0, block_seconds: float = BLOCK_SECONDS) -> Iterator[np.ndarray]:
        """Yield the audio from `start` seconds to its end, float32 `[n]` in [-1, 1], about `block_seconds` each."""
        first, block_samples = round(start * self.target_rate), max(1, round(block_seconds * self.target_rate))
        last = len(self._openers) - 1
        for number in range(last + 1):
            if number < last and first >= self._length(number) > 0:
                first -= self._length(number)
                self._found += self._length(number) / self.target_rate
                self._stated += self._length(number) / self.target_rate
            elif self._open(number):
                resampler = StreamResampler(self._decoder.rate, self.target_rate)
                for block in resampler.run(self._read_mono, self._seek, first, block_samples):
                    yield np.clip(block, -1.0, 1.0)
                first = 0
                self._note_shortfall()
        if self._problem == SHORT:
            self.shortfall = (
                f"only {self._found:.1f} s of the {self._stated:.1f} s that its header states can be decoded."
            )
        elif self._problem:
            self.shortfall = f"it ends after {self._found:.1f} s; {self._problem}"

    def _open(self, number: int) -> bool:
        """Make a stream of the file the one that is read; whether it can be opened."""
        if number != self._number:
            try:
                decoder = self._openers[number]()
            except AudioError:
                self._problem = self._problem or "a part of it cannot be decoded."
                return False
            self._decoder.close()
            self._number, self._decoder, self._frame = number, decoder, 0
        return True

    def warn(self) -> None:
        """Warn, for the caller's caller, of what was lost of what was read so far."""
        for problem in filter(None, (self.shortfall, self.cancellation)):
            warnings.warn(f"{self.name}: {problem}", stacklevel=3)

    def _seek(self, frame: int) -> None:
        frame = min(frame, self._decoder.frames) if self._decoder.frames else frame
        self._decoder.seek(frame)
        self._frame = frame

    def _read_mono(self, num_frames: int) -> np.ndarray:
        """Read exactly `num_frames` frames unless the audio ends before, average the channels."""
        parts, missing = [], num_frames
        while missing > 0:
            try:
                block = self._decoder.read(missing)  # [n, channels]
            except soundfile.SoundFileError as error:
                # A truncated file gives what could be decoded before the damage.
                if self._frame == 0 and not parts and self._number == 0:
                    raise AudioError(self.name, "undecodable", f"decoding failed at its start ({error}).") from error
                break
            if len(block) == 0:
                break
            parts.append(self._mix(block))
            missing -= len(block)
            self._frame += len(block)
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _mix(self, block: np.ndarray) -> np.ndarray:
        mixed = block[:, 0].copy()
        for channel in range(1, block.shape[1]):
            mixed += block[:, channel]
        mixed /= block.shape[1]
        # NaN and infinity both come through the maximum.
        peak = float(np.abs(block).max())
        if not np.isfinite(peak):
            raise AudioError(self.name, "non-finite", "it holds samples that are NaN or infinite.")
        if peak > MAX_PEAK and not self._decoder.format.startswith(LOSSY):
            raise AudioError(
                self.name, "out of range", f"its samples reach {peak:.4g}; float audio must be scaled to [-1, 1]."
            )
        self._energy += float(np.vdot(block, block)) / block.shape[1]
        self._mixed_energy += float(np.vdot(mixed, mixed))
        return mixed

    def _note_shortfall(self) -> None:
        rate, stated = self._decoder.rate, self._decoder.frames
        self._found += self._frame / rate
        self._stated += max(stated, self._frame) / rate
        if stated - self._frame > SHORTFALL_SECONDS * rate:
            self._problem = self._problem or SHORT
        self._problem = self._problem or self._decoder.note


def read_audio(
    source: AudioSource,
    start: float = 0.0,
    seconds: float | None = None,
    name: str | None = None,
    target_rate: int = SAMPLING_RATE,
) -> np.ndarray:
    """Decode audio of any format and rate to mono at 16 kHz, or at another rate.

    Channels are averaged. Resampling keeps tones up to 7.5 kHz and puts what would alias below -80 dB; the slice
    from `start` is the slice of the whole. Peaks beyond full scale are clipped. A truncated file gives what can be
    decoded, with a warning.

    Args:
        target_rate (`int`): in Hz, for models of others that hear more than 16 kHz.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float32 in [-1, 1], never empty.

    Raises:
        AudioError: if the audio cannot be opened or decoded, is empty, holds NaN or infinities, or ends too early.
        ValueError: if `start` is negative or `seconds` not positive.
    """
    if start < 0 or (seconds is not None and seconds <= 0):
        raise ValueError(f"`start` must be at least 0 and `seconds` above 0, got {start} and {seconds}.")
    wanted = None if seconds is None else round(seconds * target_rate)
    parts, num_samples = [], 0
    with AudioReader(source, name, target_rate) as reader:
        for block in reader.blocks(start, BLOCK_SECONDS if seconds is None else min(seconds, BLOCK_SECONDS)):
            parts.append(block)
            num_samples += len(block)
            if wanted is not None and num_samples >= wanted:
                break
        if num_samples == 0:
            if start > 0:
                raise AudioError(reader.name, "too short", f"it ends before {start:g} s.")
            raise AudioError(reader.name, "empty", "it holds no samples.")
        reader.warn()
    return np.concatenate(parts)[:wanted]


def encode_flac(samples: np.ndarray) -> bytes:
    """Encode mono audio at 16 kHz, `(num_samples,)` in [-1, 1], as 16-bit FLAC; what lies outside is clipped.

    A value `x` becomes the integer nearest to `32768 x`, at most 32767; decoding divides by 32768. Equal samples give
    equal bytes. Raises ValueError if `samples` is empty, not one-dimensional, or not finite.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"`samples` must have shape (num_samples,) and not be empty, got shape {samples.shape}.")
    if not np.isfinite(samples).all():
        raise ValueError("`samples` holds NaN or infinite values; FLAC cannot store them.")
    return encode_clip(to_pcm(samples))


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """Round float samples in [-1, 1] to int16, as `encode_flac` stores them."""
    return np.clip(np.rint(samples * np.float32(32768.0)), -32768, 32767).astype(np.int16)


def encode_clip(pcm: np.ndarray, store: str = "flac") -> bytes:
    """Encode int16 samples `[num_samples]` at 16 kHz as a mono FLAC or WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLING_RATE, format=store, subtype="PCM_16")
    return buffer.getvalue()


def read_flac_crop(data: bytes, start_sample: int, num_samples: int) -> np.ndarray:
    """Decode `num_samples` samples from `start_sample` on, and nothing else, of a clip made by [`encode_flac`].

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float32: exactly that slice of the whole decode.

    Raises:
        ValueError: if the crop does not lie inside the clip.
        AudioError: if the clip is damaged, not mono, or not at 16 kHz.
    """
    name = source_name(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.samplerate != SAMPLING_RATE or file.channels != 1:
                raise AudioError(
                    name,
                    "undecodable",
                    f"a clip of a corpus is mono at {SAMPLING_RATE} Hz, this has {file.channels} channels at "
                    f"{file.samplerate} Hz; prepare the audio first, or use `read_audio`.",
                )
            if start_sample < 0 or num_samples < 1 or start_sample + num_samples > file.frames:
                raise ValueError(
                    f"a crop of {num_samples} samples from sample {start_sample} does not lie inside a clip of "
                    f"{file.frames} samples."
                )
            file.seek(start_sample)
            crop = file.read(num_samples, dtype="float32")
    except soundfile.SoundFileError as error:
        raise AudioError(name, "undecodable", f"the FLAC data is damaged ({error}).") from error
    if len(crop) < num_samples:
        raise AudioError(name, "undecodable", f"the FLAC data is damaged: {len(crop)} of {num_samples} samples.")
    return crop


def read_wav_crop(data: bytes, start_sample: int, num_samples: int) -> np.ndarray | None:
    """What [`read_flac_crop`] does, of a clip in 16-bit WAV as `prepare_corpus` stores it; None if it is none."""
    if data[8:40] != _WAV_CLIP or int.from_bytes(data[40:44], "little") != len(data) - 44:
        return None
    length = (len(data) - 44) // 2
    if start_sample < 0 or num_samples < 1 or start_sample + num_samples > length:
        raise ValueError(
            f"a crop of {num_samples} samples from sample {start_sample} does not lie inside a clip of {length} "
            "samples."
        )
    return np.frombuffer(data, "<i2", num_samples, 44 + 2 * start_sample) * np.float32(1 / 32768)


def find_audio_files(folder: str | os.PathLike) -> list[Path]:
    """List the audio files below `folder`, by suffix, in the order of their relative paths.

    Links to folders are followed, each folder is entered once, so that a loop of links ends. Hidden files and folders
    (a leading dot) are skipped. A link that leads nowhere is listed: reading it gives the error. A folder that cannot
    be listed is logged. Raises ValueError if `folder` is not a folder.
    """
    refused: list[tuple[str, str]] = []
    found = [path for path in walk_files(Path(folder), refused) if is_audio_file(path.name)]
    for name, reason in refused:
        logger.warning("%s: %s", printable(os.path.join(folder, name)), reason)
    return found


def walk_files(folder: Path, refused: list[tuple[str, str]]) -> list[Path]:
    """All visible files below a folder, in order; `refused` gets `(path, reason)` of folders that cannot be listed."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    found, seen, errors = [], set(), []
    for current, subfolders, files in os.walk(folder, onerror=errors.append, followlinks=True):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(current, name) for name in files if not name.startswith(".")]
    for error in errors:
        place = os.path.relpath(error.filename, folder)
        refused.append((printable(place), f"unreadable: this folder cannot be listed ({error.strerror})."))
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def corpora_among(paths: list[Path], root: Path) -> set[Path]:
    """The folders below `root` that `prepare_corpus` wrote, or is writing, by the Parquet files in them."""
    folders = {path.parent.parent for path in paths if path.suffix == ".parquet"} - {root, root.parent}
    return {folder for folder in folders if any((folder / mark).exists() for mark in ("corpus.json", *UNFINISHED))}
