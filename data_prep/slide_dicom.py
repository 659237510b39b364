"""What the files of a DICOM slide say: which belong together, and the finest level's header.

OpenSlide reads a DICOM slide by any of its files, one per level, and finds the others beside it.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

from data_prep.xray_dicom_values import DICOM_ERRORS, text_of
from esad_med.base.errors import SlideError

_HEADER_BYTES = 32 << 20  # before the pixels; 100,000 sparse frames take 25 MiB
_MOST_ITEMS = 500_000
_KEYS = (
    *("SOPClassUID", "SeriesInstanceUID", "ImageType"),
    *("TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
)
_TAGS = [int(Tag(keyword)) for keyword in _KEYS]


def one_file_per_slide(paths: Sequence[Path]) -> list[Path]:
    """Of the levels of a DICOM slide the finest; other files as they are, in the given order.

    Labels, overviews and DICOM objects that are no slide are passed over, where the levels of a
    slide lie beside them; a file that cannot be read stays, so that opening it says why.
    """
    finest: dict[str, tuple[int, Path]] = {}
    kept = []
    for path in paths:
        header = _brief(path) if path.suffix.lower() == ".dcm" else None
        if header is None:
            kept.append(path)
            continue
        if header.SOPClassUID == VLWholeSlideMicroscopyImageStorage and _is_volume(header):
            width, series = _size(header)[0], text_of(header, "SeriesInstanceUID")
            if series not in finest or width > finest[series][0]:
                finest[series] = width, path
    chosen = {path for _, path in finest.values()}
    return [path for path in paths if path in chosen or path in kept]


def read_slide_header(path: Path, slide_size: tuple[int, int]) -> Dataset:
    """The header of a DICOM slide's finest level, without pixels.

    Args:
        path: any of its files.
        slide_size: (width, height) of the finest level, as OpenSlide sees it.

    Raises:
        SlideError: not a DICOM slide, or none of the files beside it is that level.
    """
    own = _brief(path)
    if own is None:
        raise SlideError(f"{path.name}: is no DICOM slide")
    series = text_of(own, "SeriesInstanceUID")
    for file in _beside(path):
        found = _brief(file)
        if (
            found is not None
            and _is_volume(found)
            and text_of(found, "SeriesInstanceUID") == series
            and _size(found) == slide_size
        ):
            header = _read(file)
            if header is not None:
                return header
    raise SlideError(
        f"{path.name}: no readable file of {slide_size[0]}x{slide_size[1]} pixels of its series"
        " beside it; copy all levels of the slide into one folder"
    )


def _beside(path: Path) -> Iterator[Path]:
    """The file itself, then its neighbors, whatever they are called."""
    yield path
    yield from (file for file in sorted(path.parent.iterdir()) if file != path and file.is_file())


def _brief(path: Path) -> Dataset | None:
    """What decides whether files belong together; None for whatever cannot be read as DICOM.

    The file is read no further than to its size in pixels.
    """
    try:
        if not _is_plain(path):
            return None
        with path.open("rb") as file:
            header = read_partial(file, lambda tag, *_: tag > max(_TAGS), specific_tags=_TAGS)
            known = Dataset()
            for keyword in _KEYS:
                setattr(known, keyword, header.get(keyword))
    except (*DICOM_ERRORS, RecursionError):
        return None
    return known if known.SOPClassUID else None


def _read(path: Path) -> Dataset | None:
    """All that stands before the pixels, or None where it cannot be read or is far too much."""
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES)
        begin = data.find(b"\xe0\x7f\x10\x00")  # PixelData, little endian
        if data.count(b"\xfe\xff\x00\xe0", 0, begin if begin >= 0 else None) > _MOST_ITEMS:
            return None
        return dcmread(io.BytesIO(data), stop_before_pixels=True)
    except (*DICOM_ERRORS, RecursionError):
        return None


def _is_plain(path: Path) -> bool:
    """Whether it is DICOM that is not deflated, which would be unpacked whole."""
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return False
    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    return syntax is not None and syntax != DeflatedExplicitVRLittleEndian


def _is_volume(header: Dataset) -> bool:
    """Tissue at some magnification, not the label or the overview of the whole glass."""
    kind = list(header.ImageType or [])
    return len(kind) > 2 and kind[2] == "VOLUME"


def _size(header: Dataset) -> tuple[int, int]:
    """(width, height) in pixels, 0 where they are not said."""
    sides = (header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows)
    width, height = (side if isinstance(side, int) else 0 for side in sides)
    return width, height
