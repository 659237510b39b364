"""What a slide's header says: microns per pixel, bits per channel, and a cheap identity."""

import hashlib
import logging
import struct
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import tifffile

from esad_med.base.errors import SlideError
from esad_med.base.limits import Limits

logger = logging.getLogger(__name__)

MPP_RANGE = (0.05, 20.0)  # µm per pixel of any scanner's level 0; 72 dpi would be 352.8
_TOLERANCE = 0.05  # mpp-x and mpp-y, or two statements, may differ by so much
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: What tifffile is known to raise on damaged files.
TIFF_ERRORS = (
    *(tifffile.TiffFileError, struct.error, ValueError, LookupError, OSError, TypeError),
    *(AttributeError, ArithmeticError, RuntimeError, MemoryError),
)
_MOST_PAGES = 1000  # of a TIFF: ten levels of 100 focal planes
_TILE_BYTES = 4  # of a pixel, uncompressed, at most
_UNIT_UM = {"inch": 25_400.0, "centimeter": 10_000.0}


def fingerprint_file(path: Path) -> str:
    """SHA-256 over the size and the first and last MiB; for a .mrxs file with its index."""
    index = path.with_suffix("") / "Index.dat"  # a .mrxs file is a small picture; the slide is here
    parts = [path, index] if path.suffix.lower() == ".mrxs" and index.is_file() else [path]
    state = hashlib.sha256()
    for part in parts:
        size = part.stat().st_size
        state.update(size.to_bytes(8, "little"))
        with part.open("rb") as file:
            state.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            state.update(file.read(1 << 20))
    return state.hexdigest()


def check_tags(path: Path, limits: Limits) -> None:
    """Look at a TIFF's tags for what OpenSlide does not tell.

    It reads 16 bits as their high bytes without a word; and it allocates as many bytes as a stored
    tile claims to have, which ends the process where there are not as many.

    Raises:
        SlideError: more than 8 bits, a tile of more bytes than the file or a tile can have, or
            directories that cannot be read.
    """
    if not _is_tiff(path):
        return
    try:
        with tifffile.TiffFile(path) as tiff:
            bits = np.max(tiff.pages.first.bitspersample)
            pages = list(islice(tiff.pages, _MOST_PAGES + 1))
            stored = max((max(p.databytecounts) for p in pages if p.is_tiled), default=0)
    except TIFF_ERRORS as error:
        raise SlideError(
            f"{path.name}: its directories are damaged ({error!s:.100}); export the slide again"
        ) from error
    if bits > 8:
        raise SlideError(
            f"{path.name}: {bits} bits per channel, expected 8; OpenSlide would drop the"
            " low bits; export the slide with 8 bits per channel"
        )
    if len(pages) > _MOST_PAGES:
        raise SlideError(f"{path.name}: more than {_MOST_PAGES} directories")
    if stored > min(path.stat().st_size, _TILE_BYTES * limits.slide_tile_megapixels * 1e6):
        raise SlideError(
            f"{path.name}: a stored tile claims {stored} bytes, more than the file or a tile has"
            " (limits.slide_tile_megapixels); copy or export the slide again"
        )


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in _TIFF_MAGIC


def refuse_excess(
    path: Path,
    properties: Mapping[str, str],
    level_sizes: Sequence[tuple[int, int]],
    limits: Limits,
) -> None:
    """Refuse a slide of sizes that no scanner writes, before a pixel of it is read.

    Args:
        path: the file.
        properties: OpenSlide's.
        level_sizes: (width, height) of each level.
        limits: on pixels of a slide, of a stored tile and of a byte, and on levels.

    Raises:
        SlideError: saying which, and the setting.
    """
    (width, height), levels = level_sizes[0], len(level_sizes)
    if levels > limits.slide_levels:
        raise SlideError(f"{path.name}: {levels} levels, more than limits.slide_levels")
    most = limits.slide_gigapixels * 1e9
    if _is_tiff(path):  # other formats keep their pixels in other files
        most = min(most, limits.slide_pixels_per_byte * path.stat().st_size)
    if width * height > most:
        raise SlideError(
            f"{path.name}: says it has {width}x{height} pixels, expected at most"
            f" {most / 1e6:,.0f} million of such a file (limits.slide_gigapixels,"
            " limits.slide_pixels_per_byte)"
        )
    for level in range(levels):
        across, down = (properties.get(f"openslide.level[{level}].tile-{side}", "0")
                        for side in ("width", "height"))  # fmt: skip
        if int(across) * int(down) > limits.slide_tile_megapixels * 1e6:
            raise SlideError(
                f"{path.name}: level {level} is stored in tiles of {across}x{down} pixels, expected"
                f" at most {limits.slide_tile_megapixels:g} million (limits.slide_tile_megapixels)"
            )


def find_mpp(
    name: str, properties: Mapping[str, str], *, given: float | None, otherwise: float | None
) -> tuple[float, str]:
    """The level-0 mpp and where it comes from, checked to be one a scanner could have.

    Args:
        name: the slide, for messages.
        properties: OpenSlide's.
        given: overrides what the file says, or None.
        otherwise: taken where the file says nothing, or nothing that can be, or None.
    """
    low, high = MPP_RANGE
    for value in (given, otherwise):
        if value is not None and not low <= value <= high:
            raise SlideError(
                f"{name}: mpp {value:g} was given, expected {low:g} to {high:g} µm per pixel of"
                " level 0; check --slide-mpp or the manifest's column 'mpp'"
            )
    if given is not None:
        return float(given), "given"
    try:
        mpp, source = _checked_mpp(name, properties)
    except SlideError:
        if otherwise is None:
            raise
        return float(otherwise), "given"
    if otherwise is not None and abs(otherwise / mpp - 1) > _TOLERANCE:
        logger.warning(
            "%s: %s says %.4g µm per pixel, which is taken, not %g; a manifest's column 'mpp'"
            " overrides what a file says",
            *(name, source, mpp, otherwise),
        )
    return mpp, source


def _checked_mpp(name: str, properties: Mapping[str, str]) -> tuple[float, str]:
    """What the file says, if it is one value that a scanner could have."""
    low, high = MPP_RANGE
    x, y, source = _read_mpp(properties)
    if x is None:
        raise SlideError(
            f"{name}: no microns-per-pixel (looked at openslide.mpp-x, tiff.XResolution); pass"
            " --slide-mpp or add column 'mpp' to the manifest"
        )
    y = x if y is None else y
    mpp = (x + y) / 2
    if not low <= mpp <= high:
        raise SlideError(
            f"{name}: {source} says {mpp:.4g} µm per pixel, expected {low:g} to {high:g}"
            f"{' (72 dpi is a default, no measurement)' if abs(mpp - 352.8) < 1 else ''}; pass the"
            " true value with --slide-mpp or add column 'mpp' to the manifest"
        )
    if abs(x - y) > _TOLERANCE * mpp:
        raise SlideError(
            f"{name}: {source} says {x:.4g} µm per pixel in x and {y:.4g} in y, expected the same;"
            " pass the true value with --slide-mpp or add column 'mpp' to the manifest"
        )
    return mpp, source


def _read_mpp(properties: Mapping[str, str]) -> tuple[float | None, float | None, str]:
    x, y = (_positive(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    if x is not None:
        return x, y, "openslide.mpp-x"
    per_unit = [_positive(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
    unit = _UNIT_UM.get(properties.get("tiff.ResolutionUnit", ""))
    if unit is None:
        return None, None, ""
    x, y = (unit / value if value else None for value in per_unit)
    return x, y, "tiff.XResolution"


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
