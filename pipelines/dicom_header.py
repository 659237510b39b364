"""Who an image is: the few identifiers the node needs, read from bytes nobody vouches for.

The bytes come from the network. So they are walked without decoding a value, without recursion
(sequences nested thousands deep cost an integer), and nothing behind the identifiers is looked at.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from esad_med.base.errors import ImageError

IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
PREAMBLE = 132  # bytes before the file meta information, "DICM" included

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_UNDEFINED = 0xFFFFFFFF
_MOST_ELEMENTS = 1_000_000  # a second of walking; 128 MiB of empty items would be a minute
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SYNTAX, _SOP_CLASS, _SOP_INSTANCE = 0x00020010, 0x00080016, 0x00080018
_STUDY, _PIXELS = 0x0020000D, 0x7FE00010


@dataclass(frozen=True)
class Identity:
    """What an image is, and the study it belongs to: valid UIDs."""

    sop_class: str
    sop_instance: str
    study: str


@dataclass(frozen=True)
class Element:
    """A top-level element: its tag, and where its value lies."""

    tag: int
    start: int
    end: int


def is_uid(text: str) -> bool:
    """Whether this is a UID: numbers and dots, 64 characters at most.

    Numbers with leading zeros pass: scanners write them, and they harm nobody.
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def hashed(uid: str) -> str:
    """The name a UID has in the spool: it cannot lead out of a folder and shows nothing."""
    return hashlib.sha256(uid.encode()).hexdigest()


def read_identity(data: bytes, syntax: str) -> Identity:
    """Read the identifiers of a data set without its file meta information.

    Args:
        data: the encoded data set.
        syntax: UID of its transfer syntax.

    Raises:
        ImageError: damaged before the study's UID, or a UID is missing or not one.
    """
    wanted = {_SOP_CLASS: "", _SOP_INSTANCE: "", _STUDY: ""}
    for element in walk(data, syntax):
        if element.tag in wanted:
            wanted[element.tag] = _text(data[element.start : element.end])
        if element.tag >= _STUDY:
            break
    if not all(map(is_uid, wanted.values())):
        raise ImageError("a SOP class, SOP instance or study UID is missing or not a UID")
    return Identity(wanted[_SOP_CLASS], wanted[_SOP_INSTANCE], wanted[_STUDY])


def split_file(file: bytes) -> tuple[str, bytes]:
    """Split a DICOM file into its transfer syntax and its data set.

    Raises:
        ImageError: no preamble, or damaged file meta information.
    """
    if file[PREAMBLE - 4 : PREAMBLE] != b"DICM":
        raise ImageError("not a DICOM file (no DICM after 128 bytes)")
    syntax, offset = "", PREAMBLE
    while file[offset : offset + 2] == b"\x02\x00":
        element = next(walk(file, "", offset))
        if element.tag == _SYNTAX:
            syntax = _text(file[element.start : element.end])
        offset = element.end
    if not is_uid(syntax):
        raise ImageError("a DICOM file without a transfer syntax")
    return syntax, file[offset:]


def is_whole(data: bytes, syntax: str) -> bool:
    """Whether an image's data set ends with or behind its pixels: a copy under way does not."""
    end, pixels = 0, False
    try:
        for element in walk(data, syntax):
            end, pixels = element.end, pixels or element.tag == _PIXELS
    except ImageError:
        return False
    return pixels and end == len(data)


def content_digest(syntax: str, data: bytes) -> str:
    """What makes two images equal: the same data set in the same transfer syntax (SHA-256)."""
    return hashlib.sha256(syntax.encode() + b"\0" + data).hexdigest()


def walk(data: bytes, syntax: str, offset: int = 0) -> Iterator[Element]:
    """Give the top-level elements in their order; what is nested in them is stepped over.

    Raises:
        ImageError: an element that ends behind the data, or is none.
    """
    order = ">" if syntax == BIG_ENDIAN else "<"
    explicit = [syntax != IMPLICIT]  # one entry more per level of undefined length
    tag, begin, walked = 0, offset, 0
    while offset < len(data):
        walked += 1
        if walked > _MOST_ELEMENTS:
            raise ImageError(f"more than {_MOST_ELEMENTS} elements")
        inner, length, start = _head(data, offset, order, explicit=explicit[-1])
        if len(explicit) == 1:
            tag, begin = inner, start
            if inner >> 16 == 0xFFFE:
                raise ImageError(f"damaged at byte {offset}: an item outside a sequence")
        if inner in (_ITEM_END, _SEQUENCE_END):
            explicit.pop()
            offset = start
        elif length == _UNDEFINED:  # UN of undefined length is implicit inside (PS3.5 6.2.2)
            unknown = explicit[-1] and data[offset + 4 : offset + 6] == b"UN"
            explicit.append(explicit[-1] and not (unknown and inner != _ITEM))
            offset = start
        else:
            offset = start + length
        if offset > len(data):
            raise ImageError(f"damaged: element {inner:08X} ends behind the data")
        if len(explicit) == 1:
            yield Element(tag, begin, offset)
    if len(explicit) > 1:
        raise ImageError("damaged: a sequence does not end")


def _head(data: bytes, offset: int, order: str, *, explicit: bool) -> tuple[int, int, int]:
    """Tag, length and where the value starts."""
    try:
        group, element = struct.unpack_from(f"{order}HH", data, offset)
        tag = group << 16 | element
        if group == 0xFFFE or not explicit:
            return tag, struct.unpack_from(f"{order}L", data, offset + 4)[0], offset + 8
        kind = data[offset + 4 : offset + 6]
        if kind in _LONG:
            return tag, struct.unpack_from(f"{order}L", data, offset + 8)[0], offset + 12
        if kind in _SHORT:
            return tag, struct.unpack_from(f"{order}H", data, offset + 6)[0], offset + 8
    except struct.error:
        raise ImageError(f"damaged: ends within an element at byte {offset}") from None
    raise ImageError(f"damaged at byte {offset}: not a DICOM element")


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")
