"""What a compressed picture says of itself, read before any decoder runs: mostly its size."""

import struct
import zlib
from itertools import pairwise

_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_MOST_COMPONENTS = 4  # a decoder takes memory for each of up to 16,384
_MOST_IDLE = 10_000  # bytes of a segment that encoders have no reason to write
_STANDALONE = {0x01, *range(0xD0, 0xD9)}


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a PNG, JPEG, JPEG-LS or JPEG 2000 (file or bare), None if it says none."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack(">II", data[16:24])
            return width, height
        if data[:4] == b"\xff\x4f\xff\x51":
            return _jpeg2000_size(data, 0)
        if data[4:8] == b"jP  ":
            return _jpeg2000_size(data, _codestream_start(data))
        if data[:2] == b"\xff\xd8":
            return _jpeg_size(data)
    except (struct.error, IndexError):
        return None
    return None


def is_whole_png(data: bytes) -> bool:
    """Whether all chunks are there and have their checksums; Pillow skips those of pixels."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return False
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end + 4
    return False


def _codestream_start(data: bytes) -> int:
    """Where the picture lies among a JPEG 2000 file's boxes; other boxes may hold anything."""
    at = 0
    while True:
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        head = 8
        if length == 1:  # the length is too large for its field
            (length,) = struct.unpack(">Q", data[at + 8 : at + 16])
            head = 16
        if kind == b"jp2c":
            return at + head
        if length < head:  # 0: the box reaches to the end
            raise IndexError("no codestream")
        at += length


def _jpeg2000_size(data: bytes, start: int) -> tuple[int, int] | None:
    """From the SIZ marker: the extent less the offset; none where it counts many components."""
    x1, y1, x0, y0 = struct.unpack(">IIII", data[start + 8 : start + 24])
    (components,) = struct.unpack(">H", data[start + 40 : start + 42])
    marked = data[start : start + 4] == b"\xff\x4f\xff\x51"
    return (x1 - x0, y1 - y0) if marked and components <= _MOST_COMPONENTS else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the frame header; JPEG-LS has the same one."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _SOF:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None


def rle_sizes(frame: bytes, *, most: int) -> list[int]:
    """Bytes that each segment of a DICOM RLE frame unpacks to (PS3.5 annex G), by counting runs.

    Args:
        frame: with its header.
        most: no segment is counted much further.

    Raises:
        ValueError: the header points outside of the frame.
    """
    if len(frame) < 64:
        raise ValueError("an RLE frame without its header")
    count, *offsets = struct.unpack("<16I", frame[:64])
    if not 1 <= count <= 15:
        raise ValueError("an RLE frame with no or too many segments")
    starts = [*offsets[:count], len(frame)]
    if starts != sorted(starts) or starts[0] < 64:
        raise ValueError("an RLE frame whose segments lie outside of it")
    if any(b - a > 2 * most + 64 for a, b in pairwise(starts)):  # two bytes for each: no encoder
        raise ValueError("an RLE segment of more bytes than it could need")
    return [_unpacked(frame[a:b], most) for a, b in pairwise(starts)]


def _unpacked(segment: bytes, most: int) -> int:
    at = done = idle = 0
    end = len(segment)
    while at < end and done <= most:
        control = segment[at]
        if control < 128:
            at += control + 2
            done += control + 1
        elif control > 128:
            at += 2
            done += 257 - control
        else:  # means nothing
            at += 1
            idle += 1
            if idle > _MOST_IDLE:
                raise ValueError("an RLE segment of bytes without meaning")
    return done
