"""What the files of a DICOM slide say: which belong together, and the finest level's header.

OpenSlide reads a DICOM slide by any of its files, one per level, and finds the others beside it.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

from data_prep.xray_dicom_values import DICOM_ERRORS, text_of
from esad_med.base.errors import SlideError

_HEADER_BYTES = 32 << 20  # before the pixels; 100,000 sparse frames take 25 MiB
_MOST_ITEMS = 500_000
_KEYS = (
    *("SOPClassUID", "SeriesInstanceUID", "ImageType", "FrameOfReferenceUID"),
    *("TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
)


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
            width, series = _width(header), text_of(header, "SeriesInstanceUID")
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
            and (_width(found), _height(found)) == slide_size
        ):
            header = _read(file, ())
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
    """What decides whether files belong together; None where it cannot be read."""
    header = _read(path, _KEYS)
    return header if header is not None and "SOPClassUID" in header else None


def _read(path: Path, keys: Sequence[str]) -> Dataset | None:
    """The header of a DICOM file, or None for whatever else it is.

    A deflated file is not read: it would be unpacked whole. Scanners do not write such.
    """
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:
            return None
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES)
        begin = data.find(b"\xe0\x7f\x10\x00")  # PixelData, little endian
        if data.count(b"\xfe\xff\x00\xe0", 0, begin if begin >= 0 else None) > _MOST_ITEMS:
            return None
        header = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=list(keys))
    except (*DICOM_ERRORS, RecursionError):
        return None
    return header


def _is_volume(header: Dataset) -> bool:
    """Tissue at some magnification, not the label or the overview of the whole glass."""
    kind = list(header.get("ImageType") or [])
    return len(kind) > 2 and kind[2] == "VOLUME"


def _width(header: Dataset) -> int:
    return int(header.get("TotalPixelMatrixColumns") or 0)


def _height(header: Dataset) -> int:
    return int(header.get("TotalPixelMatrixRows") or 0)
