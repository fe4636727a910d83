"""Where in a file its audio lies, where libsndfile alone loses some of it, adds to it, or refuses it.

Tags and padding before the audio; tags, zeros and other files behind it; several Ogg, FLAC, mp3 or AU streams one
after the other; headers that state a wrong length or none; files that were cut. What is given to libsndfile is then a
view of the file, put together of pieces of it.
"""

import io
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

# What writers put into wav that cannot go back to write the length: from here on it means "to the end of the file".
UNKNOWN_WAV_BYTES = 0x7FFFF000

DAMAGED = "some of it is missing or damaged."
CUT = "its stream has no end mark, as if it had been cut."
FOLLOWED = "another file follows it, which is not read."

_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
_ZEROS = re.compile(rb"\0+")
_FLAC, _FLAC_SYNC = re.compile(rb"fLaC\0\0\0\x22"), re.compile(rb"\xff[\xf8\xf9]")
_OGG_BEGIN = re.compile(rb"OggS\0[\x02\x06]")

# Of files of chunks: first chunk, bytes of a chunk's name and size, byte order, bytes that a size counts beside the
# chunk's content, alignment, the chunk of samples, bytes in it before the samples.
_CHUNKED = {
    b"RIFF": (12, 4, 4, "little", 0, 2, b"data", 0),
    b"RF64": (12, 4, 4, "little", 0, 2, b"data", 0),
    b"riff": (40, 16, 8, "little", 24, 8, b"data", 0),
    b"FORM": (12, 4, 4, "big", 0, 2, b"SSND", 8),
    b"caff": (8, 4, 8, "big", 0, 1, b"data", 4),
}
_MAGICS = (*_CHUNKED, b".snd", b"fLaC", b"OggS")

Piece = bytes | tuple[int, int]


@dataclass(frozen=True)
class Stream:
    """What libsndfile is to read as one file.

    Args:
        pieces (`tuple[Piece, ...]`): bytes, and `(start, end)` of the file, in their order; none: the file as it is.
        frames (`int`, *optional*): how many its header states, where libsndfile does not say that.
        stated_share (`float`): how much its header states, of what is there.
        note (`str`, *optional*): what to say of a stream of which something is missing, where nothing states how much.
        span (`tuple[int, int]`, *optional*): of a FLAC stream, where all of it begins and ends in the file.
    """

    pieces: tuple[Piece, ...] = ()
    frames: int | None = None
    stated_share: float = 1.0
    note: str | None = None
    span: tuple[int, int] | None = None


def container_streams(data, begin: int, refused: bool) -> list[Stream] | None:
    """The streams of a file of one of the formats below, whose first bytes should stand at `begin`; None for another.

    `refused` says whether libsndfile refuses the file as it is.
    """
    match data[begin : begin + 4]:
        case magic if magic in _CHUNKED:
            streams = [_chunked_stream(data, begin, refused)]
        case b"fLaC":
            streams = _flac_streams(data, begin, refused)
        case b"OggS":
            streams = _ogg_streams(data, begin)
        case b".snd":
            streams = _au_streams(data, begin)
        case _:
            return None
    is_whole = len(streams) == 1 and streams[0].pieces == ((0, len(data)),)
    return [replace(streams[0], pieces=())] if is_whole else streams


class PiecedFile(io.RawIOBase):
    """Pieces of a file, as in [`Stream`], and bytes between them, as one file without a copy; closes the file, too."""

    def __init__(self, file, pieces: tuple[Piece, ...]):
        self._file, self._pieces = file, pieces
        lengths = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces]
        self._starts = [0, *accumulate(lengths)]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._starts[-1])[whence])
        return self._position

    def readinto(self, buffer) -> int:
        done, view = 0, memoryview(buffer).cast("B")
        while done < len(view) and self._position < self._starts[-1]:
            index = bisect_right(self._starts, self._position) - 1
            piece, inside = self._pieces[index], self._position - self._starts[index]
            count = min(len(view) - done, self._starts[index + 1] - self._position)
            if isinstance(piece, bytes):
                part = piece[inside : inside + count]
            else:
                self._file.seek(piece[0] + inside)
                part = self._file.read(count)
            if not part:
                break
            view[done : done + len(part)] = part
            done += len(part)
            self._position += len(part)
        return done

    def close(self) -> None:
        self._file.close()
        super().close()


def skip_tags(data, position: int) -> int:
    """Behind the tags (ID3, APE) and zeros that begin at a position."""
    while True:
        if data[position : position + 3] == b"ID3" and len(data) > position + 10:
            size = data[position + 6 : position + 10]
            footer = 10 if data[position + 5] & 0x10 else 0
            position += 10 + footer + sum((byte & 0x7F) << by for byte, by in zip(size, (21, 14, 7, 0), strict=True))
        elif data[position : position + 3] == b"TAG":
            position += 128
        elif data[position : position + 8] == b"APETAGEX":
            # Its size does not count the header, where there is one.
            is_header = (data[position + 23 : position + 24] or b"\0")[0] & 0x20
            position += 32 + (int.from_bytes(data[position + 12 : position + 16], "little") if is_header else 0)
        elif data[position : position + 1] == b"\0":
            position = _ZEROS.match(data, position).end()
        else:
            return position


def is_filling(data, position: int) -> bool:
    """Whether nothing, a tag or zeros stand at a position."""
    rest = data[position : position + 16]
    return rest.startswith(_TAGS) or not rest.strip(b"\0")


# ---- wav, RF64, W64, AIFF, CAF, AU ----


def _chunks(data, begin: int, last: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Of the chunks of a file up to the `last`: name, place of the size, place of the content, bytes of content."""
    first, name_bytes, size_bytes, order, counted, align, *_ = _CHUNKED[data[begin : begin + 4]]
    position = begin + first
    while position + name_bytes + size_bytes <= len(data):
        place = position + name_bytes
        size = int.from_bytes(data[place : place + size_bytes], order) - counted
        name = bytes(data[position : position + 4])
        yield name, place, place + size_bytes, size
        if size < 0 or name == last:
            return
        position = begin + -(-(place + size_bytes + size - begin) // align) * align


def _chunked_stream(data, begin: int, refused: bool) -> Stream:
    magic = data[begin : begin + 4]
    _, _, size_bytes, order, _, align, wanted, before = _CHUNKED[magic]
    chunks = {name: chunk for name, *chunk in _chunks(data, begin, wanted)}
    if wanted not in chunks:
        return Stream(((begin, len(data)),))
    place, body, size = chunks[wanted]
    if magic == b"RF64" and b"ds64" in chunks:
        long_size = chunks[b"ds64"][1] + 8
        size = int.from_bytes(data[long_size : long_size + 8], "little")
    end, held, share, patch = body + size, len(data) - body, 1.0, None
    riff_end = begin + 8 + int.from_bytes(data[begin + 4 : begin + 8], order)
    if magic == b"RIFF" and (not size or size >= UNKNOWN_WAV_BYTES):
        is_empty = not size and _is_chunk(data, end)
        end = end if is_empty else len(data)
        patch = None if is_empty or size else held
    elif magic == b"caff" and size == (1 << 64) - 1:
        end = len(data)
    elif size > held:
        share, end = (size - before) / max(1, held - before), len(data)
        patch = held if magic == b"caff" else None
    elif magic == b"RIFF" and end + 8 < riff_end <= len(data) + 1 and _is_sound(data, end):
        # Its header states too little, but the chunk around it has all.
        end, patch = min(riff_end, len(data)), min(riff_end, len(data)) - body
    note = FOLLOWED if skip_tags(data, end) < len(data) and _followed(data, end, align) else None
    last = len(data) if magic == b"caff" else min(len(data), end + -end % align)
    if magic in (b"RIFF", b"RF64", b"FORM") and last < riff_end <= len(data) and not note:
        last = riff_end
    cut_off = refused or magic == b"riff"
    last = last if cut_off else len(data)
    pieces = ((begin, last),)
    if patch is not None:
        pieces = ((begin, place), patch.to_bytes(size_bytes, order), (place + size_bytes, last))
    return Stream(pieces, stated_share=share, note=note)


def _is_chunk(data, position: int) -> bool:
    """Whether the file ends here, or a chunk of RIFF begins that does not go beyond its end."""
    name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
    return len(data) - position < 8 or (
        all(0x20 <= byte < 0x7F for byte in name) and position + 8 + size <= len(data) + 1
    )


def _is_sound(data, position: int) -> bool:
    """Whether what stands behind the samples of a wav is neither a chunk, with or without a pad byte, nor a tag."""
    return not any(_is_chunk(data, place) or is_filling(data, place) for place in (position, position + position % 2))


def _followed(data, position: int, align: int) -> bool:
    """Whether another file begins within a few bytes, tags and zeros left out."""
    places = {skip_tags(data, position), skip_tags(data, position + -position % align)}
    return any(data[place : place + 4] in _MAGICS for place in places)


def _au_streams(data, begin: int) -> list[Stream]:
    streams = []
    while data[begin : begin + 4] == b".snd" and len(data) >= begin + 24:
        offset, size = struct.unpack(">2I", data[begin + 4 : begin + 12])
        held = len(data) - begin - offset
        known = size != 0xFFFFFFFF
        share = size / held if known and size > held > 0 else 1.0
        end = begin + offset + size if known and size <= held else len(data)
        streams.append(Stream(((begin, end),), stated_share=share))
        begin = skip_tags(data, end)
    if len(streams) == 1 and streams[0].pieces[0][0] == 0:
        return [Stream(stated_share=streams[0].stated_share)]
    return streams


# ---- FLAC ----


def _flac_streams(data, begin: int, refused: bool) -> list[Stream]:
    starts = [begin, *(found.start() for found in _FLAC.finditer(data, begin + 4))]
    streams = []
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        stated = int.from_bytes(data[start + 18 : start + 26], "big") & (1 << 36) - 1
        first, held = _flac_begin(data, start, end), _flac_frames(data, start, end)
        if held is None or (held == stated and not refused):
            streams.append(Stream(((start, end),), span=(start, end)))
        else:
            pieces = (_flac_head(data, start, held), (first, end))
            streams.append(Stream(pieces, max(stated, held), span=(start, end)))
    return streams


def flac_from(data, stream: Stream, sample: int, behind: bool) -> tuple[Stream, int] | None:
    """A FLAC stream from the frame on that holds a sample, or with `behind` the next, and that frame's first sample.

    None if there is none. `sample` counts in the whole `stream`.
    """
    start, end = stream.span or (0, len(data))
    first, held = _flac_begin(data, start, end), _flac_frames(data, start, end)
    place = first
    while place is not None and held and (place := data.find(data[first : first + 2], place, end)) >= 0:
        header = _flac_header(data, start, first, place)
        if header is not None and (header[0] > sample if behind else header[0] <= sample < sum(header)):
            return Stream((_flac_head(data, start, held - header[0]), (place, end))), header[0]
        place += 1
    return None


def _flac_head(data, start: int, samples: int) -> bytes:
    """The beginning of a FLAC stream of so many samples, with nothing but its stream info."""
    packed = int.from_bytes(data[start + 18 : start + 26], "big") >> 36 << 36 | samples
    info = data[start + 8 : start + 18] + packed.to_bytes(8, "big") + data[start + 26 : start + 42]
    return b"fLaC\x80\x00\x00\x22" + info


def _flac_begin(data, start: int, end: int) -> int | None:
    """Where the first frame of a FLAC stream begins, behind its metadata; None if there is none."""
    position = start + 4
    while position + 4 <= end:
        last, size = data[position] & 0x80, int.from_bytes(data[position + 1 : position + 4], "big")
        position += 4 + size
        if last:
            break
    if _FLAC_SYNC.match(data, position):
        return position
    # The metadata are damaged.
    places = (found.start() for found in _FLAC_SYNC.finditer(data, start + 42, end))
    return next((place for place in places if _flac_header(data, start, place, place)), None)


def _flac_frames(data, start: int, end: int) -> int | None:
    """Where the last frame of a FLAC stream ends, in samples; None if no frame is found."""
    first = _flac_begin(data, start, end)
    if first is None:
        return None
    found = end
    while (found := data.rfind(data[first : first + 2], first, found)) >= 0:
        header = _flac_header(data, start, first, found)
        if header is not None:
            return sum(header)
    return None


def _flac_header(data, start: int, first: int, place: int) -> tuple[int, int] | None:
    """First sample, and samples, of the frame at a place of a stream; None if there is none.

    Rate and width of samples are those of its first frame, and the checksum of the header is right.
    """
    header, like = data[place : place + 16], data[first : first + 4]
    if len(header) < 5 or (header[2] ^ like[2]) & 0x0F or (header[3] ^ like[3]) & 0x0E:
        return None
    found = _parse_flac_header(header)
    if found is None or like[1] == 0xF9:
        return found
    # Frames are numbered and of one size: that of the first, for the stream info may be damaged.
    one = _parse_flac_header(data[first : first + 16])
    block = one[1] if one and one[0] == 0 else int.from_bytes(data[start + 10 : start + 12], "big")
    return found[0] * block, found[1]


def _parse_flac_header(header: bytes) -> tuple[int, int] | None:
    """Frame or sample number, and samples, of a frame header; None if its checksum is wrong."""
    size_code, rate_code = header[2] >> 4, header[2] & 0x0F
    ones = 8 - (header[4] ^ 0xFF).bit_length()
    position = 5 + max(0, ones - 1)
    size_bytes, rate_bytes = {6: 1, 7: 2}.get(size_code, 0), {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    end = position + size_bytes + rate_bytes
    if ones in (1, 8) or size_code == 0 or end >= len(header) or _crc8(header[:end]) != header[end]:
        return None
    number = header[4] & (0x7F >> ones)
    for byte in header[5:position]:
        number = number << 6 | byte & 0x3F
    if size_bytes:
        return number, int.from_bytes(header[position : position + size_bytes], "big") + 1
    return number, 192 if size_code == 1 else 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc


# ---- Ogg ----


def _ogg_streams(data, begin: int) -> list[Stream]:
    """The links of a chain: each begins with the first pages of its streams, beside each other."""
    starts, expected = [], -1
    for found in _OGG_BEGIN.finditer(data, begin):
        place = found.start()
        if place != expected:
            starts.append(place)
        expected = _ogg_page_end(data, place)
    starts = starts or [begin]
    streams = []
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        page = data.rfind(b"OggS\x00", start, end)
        page_end = _ogg_page_end(data, page)
        note = None if page_end <= end and data[page + 5] & 0x04 else CUT
        streams.append(Stream(((start, min(end, page_end)),), note=note))
    return streams


def _ogg_page_end(data, page: int) -> int:
    segments = data[page + 26] if len(data) > page + 26 else 0
    return page + 27 + segments + sum(data[page + 27 : page + 27 + segments])
