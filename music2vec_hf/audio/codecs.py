"""Compressed audio beside libsndfile: frames of mp3, where it loses or repeats some, and the decoder of torchcodec.

torchcodec is an optional package, for m4a, wma, webm and what else libsndfile does not read.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import soundfile

from music2vec_hf.audio.streams import DAMAGED, Stream, is_filling, skip_tags

# Between a length that is stated and one that is found, a decoder's delay and no more.
TOLERANCE_SECONDS = 0.2

# Where a file that libsndfile refuses may begin with frames.
MP3_SEARCH = 1 << 16

# Gaps between frames that libmpg123 passes over by itself.
SMALL_GAP = 1_024

# Frames in a row that make a file of an unknown kind an mp3.
SURE_FRAMES = 4

_KBITS_1 = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: tuple(range(0, 449, 32)),
}
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBITS_2_LAYER_1 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_RATES = (44100, 48000, 32000)


@dataclass
class FrameRun:
    """Frames of one kind (version, layer, rate, and whether mono), with nothing but gaps between them.

    Args:
        rate, samples (`int`): in Hz; in a frame.
        parts (`list[list[int]]`): `[start, end)` of frames without a gap.
        count (`int`): frames.
        is_cut (`bool`): whether the last frame is not whole.
        is_damaged (`bool`): whether something that is no tag stands between frames.
    """

    kind: bytes
    rate: int
    samples: int
    parts: list[list[int]] = field(default_factory=list)
    count: int = 0
    is_cut: bool = False
    is_damaged: bool = False

    @property
    def largest_gap(self) -> int:
        """Bytes between two parts, at most."""
        return max(
            (after[0] - before[1] for before, after in zip(self.parts, self.parts[1:], strict=False)), default=0
        )


@dataclass(frozen=True)
class Header:
    """A frame's header: its bytes, samples, rate in Hz, and what the frames of a run share."""

    size: int
    samples: int
    rate: int
    kind: bytes


def parse_header(header: bytes) -> Header | None:
    """The header of a frame of any layer, from its first four bytes; None if there is none, or it states no size."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer, bits, rate = header[1] >> 3 & 3, header[1] >> 1 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 0 or bits in (0, 15) or rate == 3:
        return None
    kbits = (_KBITS_1[layer] if version == 3 else _KBITS_2_LAYER_1 if layer == 3 else _KBITS_2)[bits]
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    padding = header[2] >> 1 & 1
    kind = bytes([header[1] & 0xFE, header[2] & 0x0C, header[3] >> 6 == 3])
    if layer == 3:
        return Header((12_000 * kbits // hertz + padding) * 4, 384, hertz, kind)
    samples = 1152 if version == 3 or layer == 2 else 576
    return Header(samples // 8 * kbits * 1000 // hertz + padding, samples, hertz, kind)


def first_frame(data, position: int, frames: int = 2) -> int:
    """Where the first of several frames in a row begins, from a position on, or -1."""
    while (position := data.find(b"\xff", position)) >= 0:
        header = parse_header(data[position : position + 4])
        place, found = position, 0
        while header is not None and found < frames:
            place, found = place + header.size, found + 1
            following = parse_header(data[place : place + 4])
            if place == len(data):
                return position
            header = following if following is not None and following.kind == header.kind else None
        if found >= frames:
            return position
        position += 1
    return -1


def count_frames(data, position: int) -> list[FrameRun]:
    """The runs of frames from the first frame on; a gap that is no tag, and a frame that is cut, are noted."""
    runs: list[FrameRun] = []
    headers: dict[bytes, Header | None] = {}
    is_damaged = False
    while position >= 0:
        four = bytes(data[position : position + 4])
        if four not in headers:
            headers[four] = parse_header(four)
        header = headers[four]
        following = position + header.size if header else position
        expected = bool(runs) and position == runs[-1].parts[-1][1]
        known = bool(runs) and header is not None and header.kind == runs[-1].kind
        if header is None or (not (known and expected) and not _is_followed(data, following)):
            behind = skip_tags(data, position)
            is_damaged |= behind == position and not is_filling(data, position)
            position = first_frame(data, max(behind, position + 1))
            continue
        if not known:
            runs.append(FrameRun(header.kind, header.rate, header.samples, [[position, position]]))
        elif not expected:
            runs[-1].parts.append([position, position])
        run = runs[-1]
        run.is_damaged, is_damaged = run.is_damaged or is_damaged, False
        run.is_cut = following > len(data)
        run.parts[-1][1] = min(following, len(data))
        run.count += not run.is_cut
        position = following
        # Whole files are frames of known headers one behind the other.
        while (header := headers.get(bytes(data[position : position + 4]))) and header.kind == run.kind:
            if position + header.size > len(data):
                break
            position, run.count = position + header.size, run.count + 1
        run.parts[-1][1] = min(position, len(data))
        position = position if position < len(data) else -1
    return [run for run in runs if run.count >= min(3, max(run.count for run in runs))]


def _is_followed(data, position: int) -> bool:
    """Whether a frame, a tag or the end of the file stands at a position."""
    return (
        position == len(data) or parse_header(data[position : position + 4]) is not None or is_filling(data, position)
    )


def mp3_streams(data, begin: int, frames: int | None) -> list[Stream]:
    """The streams of an mp3 or mp2 file, the runs of its frames from `begin` on; none if it has no frames.

    `frames` is the length that libsndfile finds in the file as it is, if it takes it for mp3.
    """
    is_mp3 = frames is not None
    if is_mp3:
        first = first_frame(data, begin)
    else:
        first = first_frame(data[begin : begin + MP3_SEARCH], 0, SURE_FRAMES)
        first += begin if first >= 0 else 0
    if first < 0:
        return [Stream()] if is_mp3 else []
    table = _find_table(data, first)
    runs = count_frames(data, first)
    if is_mp3 and len(runs) == 1 and runs[0].largest_gap <= SMALL_GAP:
        (run,) = runs
        excess = (run.count - (table is not None)) * run.samples - frames
        if abs(excess) < TOLERANCE_SECONDS * run.rate or (table is not None and excess < 0):
            is_short = run.is_damaged or (table is None and run.is_cut)
            return [Stream(note=DAMAGED if is_short else None)]
    return [_mp3_stream(data, run) for run in runs]


@dataclass(frozen=True)
class _Table:
    """The table of lengths in the first frame: where its number of frames stands, and the bytes that it states."""

    place: int
    size: int | None


def _find_table(data, first: int) -> _Table | None:
    header = parse_header(data[first : first + 4])
    is_mono, is_mpeg1 = bool(header.kind[2]), header.samples == 1152
    tag = first + 4 + ((17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17))
    if data[tag : tag + 4] not in (b"Xing", b"Info") or not data[tag + 7] & 1:
        return None
    return _Table(tag + 8, int.from_bytes(data[tag + 12 : tag + 16], "big") if data[tag + 7] & 2 else None)


def _mp3_stream(data, run: FrameRun) -> Stream:
    """The frames of a run, with a table that states how many they are."""
    parts = [tuple(part) for part in run.parts]
    first, table = parts[0][0], _find_table(data, parts[0][0])
    note = DAMAGED if run.is_cut or run.is_damaged else None
    count = (run.count - (table is not None)).to_bytes(4, "big")
    if table is not None:
        if table.size is not None:
            count += sum(end - start for start, end in parts).to_bytes(4, "big")
        pieces = ((first, table.place), count, (table.place + len(count), parts[0][1]), *parts[1:])
        return Stream(pieces, note=note)
    header = data[first : first + 4]
    if header[1] & 0x06 != 0x02:
        return Stream(tuple(parts), note=note)  # a table is of layer III
    # 128 or 80 kbit/s, whatever the file has: room enough. The lowest bit of the second byte: no checksum.
    made = bytes([0xFF, header[1] | 1, 0x90 | header[2] & 0x0C, header[3]])
    is_mono, is_mpeg1 = header[3] >> 6 == 3, run.samples == 1152
    side = (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)
    frame = made + bytes(side) + b"Xing" + (1).to_bytes(4, "big") + count
    return Stream((frame.ljust(parse_header(made).size, b"\0"), *parts), note=note)


# ---- torchcodec ----

# Seconds that torchcodec decodes at a time, and at least near damage, where they become fewer.
CODEC_STEP, MIN_CODEC_STEP = 60.0, 0.2

# Seconds by which a time stamp may be off that its container rounds to milliseconds.
CLOCK_ERROR = 0.002

# Frames passed over at a time.
SKIPPED_READ = 1 << 20


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
                raise soundfile.SoundFileRuntimeError(one_line(error)) from error
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


def one_line(error: Exception) -> str:
    """The first line of a library's message, without the source's repr, which would hold addresses or whole files."""
    text = getattr(error, "error_string", None) or str(error)
    # torchcodec's begin with a function, and a file and line of its own source.
    text = re.sub(r"^\w+, \S+\.cpp:\d+, ", "", text)
    if "possibly a pipe" in text:
        return "Format not recognised"
    return " ".join(text.split("\n")[0].split())[:200].rstrip(".")
