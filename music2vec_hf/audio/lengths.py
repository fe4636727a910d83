"""How long a file really is, where its header lies or says nothing and libsndfile believes it.

Found so far: mp3 of variable bit rate without a table of contents, and joined mp3 files, end early without a word; a
FLAC whose header states no length, or too much, is not decoded at all; wav takes a wrong length of its data for the
truth; wav and Ogg files that were cut look whole.
"""

import io
import os
from dataclasses import dataclass, field

# A length this much off is a lie, not a decoder's delay.
TOLERANCE_SECONDS = 0.2

# What writers put into wav that cannot go back to write the length: from here on it means "to the end of the file".
UNKNOWN_WAV_BYTES = 0x7FFFF000

# Where to look for the last frame or page.
TAIL_BYTES = 1 << 17


@dataclass(frozen=True)
class Length:
    """What a file holds.

    Args:
        frames (`int`, *optional*): how many it should hold, where that is not what libsndfile says.
        patches (`dict[int, bytes]`): bytes to put in place of those in the file, by position, so that libsndfile
            reads all that is there.
        prefix (`bytes`): bytes to put before the file, for the same end.
        note (`str`, *optional*): what to say of a file that was cut, where nothing states its length.
    """

    frames: int | None = None
    patches: dict[int, bytes] = field(default_factory=dict)
    prefix: bytes = b""
    note: str | None = None


def measure_length(data, kind: str, frames: int, rate: int) -> Length:
    """Compare what libsndfile says with what is in the file.

    Args:
        data: the encoded bytes, or a memory map of them.
        kind (`str`): the format, as libsndfile names it.
        frames (`int`): its number of frames, as libsndfile has it.
        rate (`int`): sampling rate in Hz.
    """
    if kind == "MP3":
        return _measure_mp3(data, frames, rate)
    if kind == "FLAC":
        return _measure_flac(data)
    if kind in ("WAV", "WAVEX", "RF64"):
        return _measure_wav(data)
    if kind == "W64":
        return _measure_w64(data)
    if kind == "OGG":
        return _measure_ogg(data)
    return Length()


class PatchedFile(io.RawIOBase):
    """A file with other bytes in some places, and bytes before it, without a copy of it.

    Args:
        file: binary file object; closed with this one.
        length (`Length`): what to patch.
    """

    def __init__(self, file, length: Length):
        self._file, self._prefix, self._patches = file, length.prefix, length.patches
        self._position = 0
        self._size = len(self._prefix) + file.seek(0, os.SEEK_END)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readinto(self, buffer) -> int:
        start, count = self._position - len(self._prefix), len(buffer)
        self._file.seek(max(0, start))
        data = bytearray(self._prefix[self._position :][:count])
        data += self._file.read(count - len(data))
        for place, patch in self._patches.items():
            for index, value in enumerate(patch, start=place - start):
                if 0 <= index < len(data):
                    data[index] = value
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


# ---- mp3 ----

_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44100, 48000, 32000)


def _mp3_frame(header: bytes) -> tuple[int, int]:
    """Bytes and samples of the layer III frame that begins with these three bytes; (0, 0) if none does."""
    if len(header) < 3 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0, 0
    version, bits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bits in (0, 15) or rate == 3:
        return 0, 0
    samples = 1152 if version == 3 else 576
    kbits = (_KBITS_1 if version == 3 else _KBITS_2)[bits]
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return samples // 8 * kbits * 1000 // hertz + (header[2] >> 1 & 1), samples


def _measure_mp3(data, frames: int, rate: int) -> Length:
    first = 0
    while data[first : first + 3] == b"ID3":
        size = data[first + 6 : first + 10]
        first += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=False))
    first = _next_mp3_frame(data, first, None)
    if first < 0:
        return Length()
    size, samples = _mp3_frame(data[first : first + 3])
    mono, mpeg1 = data[first + 3] >> 6 == 3, samples == 1152
    tag = first + 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    has_table = data[tag : tag + 4] in (b"Xing", b"Info") and data[tag + 7] & 1
    if has_table and data[tag + 7] & 2:
        stated_bytes = int.from_bytes(data[tag + 12 : tag + 16], "big")
        if abs(stated_bytes - (len(data) - first)) < 10_000:
            return Length()
    count = _count_mp3_frames(data, first) - bool(has_table)
    excess = count * samples - frames
    if abs(excess) < TOLERANCE_SECONDS * rate or (has_table and excess < 0):
        return Length()
    stated = count.to_bytes(4, "big")
    if has_table:
        both = (len(data) - first).to_bytes(4, "big") if data[tag + 7] & 2 else b""
        return Length(patches={tag + 8: stated + both})
    # 128 or 80 kbit/s, whatever the file has: room enough. The lowest bit of the second byte: no checksum.
    header = bytes([0xFF, data[first + 1] | 1, 0x90 | data[first + 2] & 0x0C, data[first + 3]])
    table = header + bytes(tag - first - 4) + b"Xing" + (1).to_bytes(4, "big") + stated
    return Length(prefix=table.ljust(_mp3_frame(header)[0], b"\0"))


def _count_mp3_frames(data, position: int) -> int:
    kind = data[position + 1] & 0xFE, data[position + 2] & 0x0C
    sizes: dict[bytes, int] = {}
    count = 0
    while position >= 0:
        header = data[position : position + 3]
        if header not in sizes:
            same = len(header) == 3 and (header[1] & 0xFE, header[2] & 0x0C) == kind
            sizes[header] = _mp3_frame(header)[0] if same else 0
        if not sizes[header]:
            position = _next_mp3_frame(data, position, kind)
            continue
        position += sizes[header]
        count += position <= len(data)
    return count


def _next_mp3_frame(data, position: int, kind: tuple[int, int] | None) -> int:
    """Where the next frame begins that another follows, or -1."""
    while (position := data.find(b"\xff", position)) >= 0:
        header = data[position : position + 3]
        size, _ = _mp3_frame(header)
        if size and (kind is None or (header[1] & 0xFE, header[2] & 0x0C) == kind):
            follower = data[position + size : position + size + 3]
            if _mp3_frame(follower)[0] and follower[1] & 0xFE == header[1] & 0xFE:
                return position
        position += 1
    return -1


# ---- FLAC ----


def _measure_flac(data) -> Length:
    if data[:4] != b"fLaC":
        return Length()
    packed = int.from_bytes(data[18:26], "big")
    stated, held = packed & ((1 << 36) - 1), _flac_frames(data)
    if held is None or held == stated:
        return Length()
    return Length(max(stated, held), {18: ((packed >> 36 << 36) | held).to_bytes(8, "big")})


def _flac_frames(data) -> int | None:
    """Where the last frame of a FLAC file ends, in samples; None if no frame is found."""
    position = 4
    while position + 4 <= len(data):
        last, size = data[position] & 0x80, int.from_bytes(data[position + 1 : position + 4], "big")
        position += 4 + size
        if last:
            break
    sync = data[position : position + 2]
    if sync not in (b"\xff\xf8", b"\xff\xf9"):
        return None
    block, found = int.from_bytes(data[10:12], "big"), len(data)
    while (found := data.rfind(sync, max(position, len(data) - 8 * TAIL_BYTES), found)) >= 0:
        # The rate and the width of samples stay the same throughout.
        same = data[found + 2 : found + 3] and data[found + 2] & 0x0F == data[position + 2] & 0x0F
        same = same and data[found + 3 : found + 4] and data[found + 3] & 0x0E == data[position + 3] & 0x0E
        header = _flac_header(data[found : found + 16]) if same else None
        if header is not None:
            number, length = header
            return (number if sync == b"\xff\xf9" else number * block) + length
    return None


def _flac_header(header: bytes) -> tuple[int, int] | None:
    """Frame or sample number, and samples, of a frame header; None if its checksum is wrong."""
    size_code, rate_code = header[2] >> 4, header[2] & 0x0F
    ones = 8 - (header[4] ^ 0xFF).bit_length() if len(header) > 4 else 1
    extra = ones - 1 if ones else 0
    position = 5 + extra
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


# ---- wav, Ogg ----


def _measure_wav(data) -> Length:
    position, align, stated = 12, 0, None
    while position + 8 <= len(data) and data[:4] in (b"RIFF", b"RF64"):
        name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        body = position + 8
        if name == b"fmt ":
            align = int.from_bytes(data[body + 12 : body + 14], "little")
        elif name == b"ds64":
            stated = int.from_bytes(data[body + 8 : body + 16], "little")
        elif name == b"data":
            held = len(data) - body
            if data[:4] == b"RF64" and stated is not None:
                return Length(stated // align) if align and stated > held else Length()
            if size < held and not _is_chunk(data, body + size + size % 2) and held < UNKNOWN_WAV_BYTES:
                return Length(patches={position + 4: held.to_bytes(4, "little")})
            return Length(size // align) if align and held < size < UNKNOWN_WAV_BYTES else Length()
        position = body + size + size % 2
    return Length()


def _is_chunk(data, position: int) -> bool:
    """Whether the file ends here, or a chunk begins that does not go beyond its end."""
    name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
    return len(data) - position < 8 or (
        all(0x20 <= byte < 0x7F for byte in name) and position + 8 + size <= len(data) + 1
    )


def _measure_w64(data) -> Length:
    # Chunks begin with a GUID of 16 bytes and 8 of size, which counts these too, at multiples of 8.
    position, align, size = 40, 0, 24
    while position + 24 <= len(data) and size >= 24:
        size = int.from_bytes(data[position + 16 : position + 24], "little")
        body = position + 24
        if data[position : position + 4] == b"fmt ":
            align = int.from_bytes(data[body + 12 : body + 14], "little")
        elif data[position : position + 4] == b"data":
            return Length((size - 24) // align) if align and body + size - 24 > len(data) else Length()
        position += -(-size // 8) * 8
    return Length()


def _measure_ogg(data) -> Length:
    page = data.rfind(b"OggS", max(0, len(data) - TAIL_BYTES))
    if page >= 0 and len(data) > page + 5 and data[page + 5] & 0x04:
        return Length()
    return Length(note="its stream has no end mark, as if it had been cut.")
