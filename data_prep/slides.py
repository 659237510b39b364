"""Opening whole slides: microns per pixel, pyramid levels, and pixels on a white ground."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import openslide
from PIL import Image

from data_prep.areas import shrink_by
from data_prep.direct import VENDORS, DirectReader, open_direct
from data_prep.slide_header import (
    check_tags,
    find_mpp,
    fingerprint_file,
    refuse_excess,
)
from esad_med.base.errors import SlideError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import Limits
from esad_med.base.plain import is_plain

logger = logging.getLogger(__name__)

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi"}
    | {".dcm"}
)
_OVERVIEW_PIXELS = 1 << 24  # an overview is at most 16 Mpx, whatever mpp is asked for
_BLOCK_PIXELS = 1 << 22  # read at a time for an overview
_READ_PIXELS = 1 << 28  # the most one read_region may ask for
_CACHE_BYTES = 128 << 20  # must hold a row of source tiles, or each is decoded many times


@dataclass(frozen=True)
class Overview:
    """A small picture of a whole slide.

    Attributes:
        rgb: (h, w, 3) uint8 on white.
        downsample: level-0 pixels per pixel of ``rgb``, exact.
        readable: (h, w) bool; False where the file is damaged and ``rgb`` is plain white.
    """

    rgb: npt.NDArray[np.uint8]
    downsample: float
    readable: npt.NDArray[np.bool_]


class Slide:
    """An open whole slide; made by `open_slide`, closed by ``with``. Sizes are (width, height).

    Attributes:
        path: the file.
        size_level0: (width, height) in level-0 pixels.
        mpp: level-0 resolution in µm per pixel, the mean of x and y.
        mpp_source: which property said so, or "given".
        vendor: OpenSlide's name of the format.
        level_downsamples: level-0 pixels per pixel, for each level; the first is 1.
        level_sizes: (width, height) of each level.
        limits: what may be read of it and of its annotation.
    """

    def __init__(
        self,
        path: Path,
        *,
        mpp: float | None = None,
        mpp_otherwise: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Open ``path``; see `open_slide`."""
        self.path = path
        self.limits = limits or Limits()
        self._direct: DirectReader | None = None
        self._handle = _open_handle(path)
        try:
            self.size_level0: tuple[int, int] = self._handle.dimensions
            self.level_downsamples: tuple[float, ...] = self._handle.level_downsamples
            self.level_sizes: tuple[tuple[int, int], ...] = self._handle.level_dimensions
            refuse_excess(path, self._handle.properties, self.level_sizes, self.limits)
            check_tags(path, self.limits)
            self.vendor = str(self._handle.properties.get("openslide.vendor", "unknown"))
            self._is_direct = self.vendor in VENDORS and not is_plain("reader")
            self.mpp, self.mpp_source = find_mpp(
                path.name, dict(self._handle.properties), given=mpp, otherwise=mpp_otherwise
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading from it afterwards is a mistake."""
        self._handle.close()
        if self._direct is not None:
            self._direct.close()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the size and the first and last MiB: tells files apart, and is cheap."""
        return fingerprint_file(self.path)

    def read_region(
        self,
        xy_level0: tuple[int, int],
        level: int,
        size_px: tuple[int, int],
        *,
        out: npt.NDArray[np.uint8] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Read pixels of one level.

        They are decoded directly where that gives the same and `is_plain` does not forbid it.

        Args:
            xy_level0: top-left corner (x, y) in level-0 pixels.
            level: index into ``level_downsamples``.
            size_px: (width, height) in pixels of that level.
            out: (height, width, 3) uint8 to read into, or None.

        Returns:
            (height, width, 3) uint8, OpenSlide's pixels; white outside the scanned area.

        Raises:
            SlideError: the file is damaged there. Later reads elsewhere work.
        """
        if size_px[0] * size_px[1] > _READ_PIXELS or not 0 <= level < len(self.level_sizes):
            raise ValueError(f"read_region of {size_px} at level {level} is out of bounds")
        raise_if_interrupted()
        if out is None:
            out = np.empty((size_px[1], size_px[0], 3), np.uint8)
        if not self._read_directly(xy_level0, level, out):
            out[:] = self._read_by_openslide(xy_level0, level, size_px)
        return out

    def _read_directly(
        self, xy_level0: tuple[int, int], level: int, out: npt.NDArray[np.uint8]
    ) -> bool:
        """Fill ``out``, or say that OpenSlide must: between two pixels it interpolates."""
        downsample = round(self.level_downsamples[level])
        if not self._is_direct or self.level_downsamples[level] != downsample:
            return False
        x, y = xy_level0
        if x % downsample or y % downsample:
            return False
        if self._direct is None:
            self._direct = open_direct(
                self.path, level_sizes=self.level_sizes, read_region=self._pixels_of_level
            )
            self._is_direct = self._direct is not None
        return self._direct is not None and self._direct.read(
            (x // downsample, y // downsample), level, out
        )

    def _pixels_of_level(
        self, xy: tuple[int, int], level: int, size_px: tuple[int, int]
    ) -> npt.NDArray[np.uint8] | None:
        """OpenSlide's pixels at a corner in pixels of a level that has a whole downsample."""
        downsample = round(self.level_downsamples[level])
        try:
            corner = (xy[0] * downsample, xy[1] * downsample)
            return self._read_by_openslide(corner, level, size_px)
        except SlideError:
            return None

    def _read_by_openslide(
        self, xy_level0: tuple[int, int], level: int, size_px: tuple[int, int]
    ) -> npt.NDArray[np.uint8]:
        try:
            return _on_white(self._handle.read_region(xy_level0, level, size_px))
        except openslide.OpenSlideError as error:
            self._reopen()
            raise SlideError(
                f"{self.path.name}: damaged at x={xy_level0[0]}, y={xy_level0[1]} (level {level},"
                f" {size_px[0]}x{size_px[1]} px): {_reason(error, self.path)}; copy or export the"
                " slide again"
            ) from error

    def read_overview(self, mpp: float) -> Overview:
        """Read the whole slide at about ``mpp`` µm per pixel, by means of areas, 16 Mpx at most.

        Damaged parts stay white and are marked, so that one bad tile does not cost the slide.
        """
        wanted = max(mpp / self.mpp, (np.prod(self.size_level0) / _OVERVIEW_PIXELS) ** 0.5, 1.0)
        level = max(i for i, d in enumerate(self.level_downsamples) if d <= wanted * 1.05)
        factor = max(1, round(wanted / self.level_downsamples[level]))
        width, height = self.level_sizes[level]
        while -(-width // factor) * -(-height // factor) > _OVERVIEW_PIXELS:
            factor += 1
        rgb = np.full((-(-height // factor), -(-width // factor), 3), 255, np.uint8)
        readable = np.zeros(rgb.shape[:2], bool)
        edge = max(1, round(_BLOCK_PIXELS**0.5) // factor)
        for y in range(0, rgb.shape[0], edge):
            for x in range(0, rgb.shape[1], edge):
                self._fill_overview(rgb, readable, (x, y), edge, level, factor)
        if self._direct is not None:
            self._direct.forget()
        return Overview(rgb, factor * self.level_downsamples[level], readable)

    def thumbnail(self, mpp: float) -> tuple[npt.NDArray[np.uint8], float]:
        """The (h, w, 3) uint8 picture of `read_overview` and its exact downsample."""
        overview = self.read_overview(mpp)
        return overview.rgb, overview.downsample

    def _fill_overview(
        self,
        rgb: npt.NDArray[np.uint8],
        readable: npt.NDArray[np.bool_],
        xy: tuple[int, int],
        edge: int,
        level: int,
        factor: int,
    ) -> None:
        """Fill one square of an overview; a damaged one by quarters, as far down as 256 px."""
        downsample = self.level_downsamples[level]
        (x, y), (width, height) = xy, self.level_sizes[level]
        size = (
            min(edge * factor, width - x * factor),
            min(edge * factor, height - y * factor),
        )
        if size[0] <= 0 or size[1] <= 0:
            return
        corner = (round(x * factor * downsample), round(y * factor * downsample))
        try:
            part = shrink_by(self.read_region(corner, level, size), factor)
        except SlideError as error:
            half = -(-edge // 2)
            if edge == 1 or edge * factor <= 256:
                logger.warning("%s", error)
                return
            for dy in (0, half):
                for dx in (0, half):
                    self._fill_overview(rgb, readable, (x + dx, y + dy), half, level, factor)
            return
        rows, columns = part.shape[:2]
        rgb[y : y + rows, x : x + columns] = part
        readable[y : y + rows, x : x + columns] = True

    def _reopen(self) -> None:
        """OpenSlide's errors stick to the handle: take a new one."""
        self._handle.close()
        self._handle = _open_handle(self.path)


def open_slide(
    path: Path,
    *,
    mpp: float | None = None,
    mpp_otherwise: float | None = None,
    limits: Limits | None = None,
) -> Slide:
    """Open a whole slide.

    Args:
        path: any file OpenSlide opens.
        mpp: level-0 resolution in µm per pixel that overrides the file's own.
        mpp_otherwise: the same for a file that says none, or one that no scanner has.
        limits: what may be read at all.

    Raises:
        SlideError: no such file, empty, not a slide, truncated, beyond the limits, more than 8 bits
            per channel, no resolution, or one that no scanner has.
    """
    return Slide(Path(path), mpp=mpp, mpp_otherwise=mpp_otherwise, limits=limits)


def find_slides(folder: Path) -> Iterator[Path]:
    """The files directly in ``folder`` that are slides by their suffix, sorted by name."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SLIDE_SUFFIXES and path.is_file():
            yield path


def _open_handle(path: Path) -> openslide.OpenSlide:
    if not path.is_file():
        reason = "is a folder, expected a slide file" if path.is_dir() else "does not exist"
        raise SlideError(f"{path.name}: {reason}; check the path")
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise SlideError(f"{path.name}: cannot be read ({error.strerror})") from error
    if size == 0:
        raise SlideError(f"{path.name}: the file is empty (0 bytes), expected a whole slide")
    try:
        handle = openslide.OpenSlide(str(path))
        handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(
            f"{path.name}: not a slide that OpenSlide {openslide.__library_version__} knows, or"
            f" its beginning or directory is damaged ({size} bytes); check the format or copy the"
            " file again"
        ) from error
    except openslide.OpenSlideError as error:
        raise SlideError(
            f"{path.name}: damaged or truncated ({_reason(error, path)}); copy or export the slide"
            " again"
        ) from error
    return handle


def _reason(error: Exception, path: Path) -> str:
    """What OpenSlide says, without the folder: its name may hold a patient's."""
    return str(error).replace(str(path), path.name)


def _on_white(image: Image.Image) -> npt.NDArray[np.uint8]:
    """RGBA -> RGB over white; opaque pixels are untouched."""
    rgba = np.asarray(image)  # (h, w, 4)
    rgb = rgba[..., :3].copy()
    alpha = rgba[..., 3]
    if alpha.min(initial=255) < 255:
        where = alpha < 255
        share = alpha[where, None].astype(np.float32) / 255
        rgb[where] = np.rint(rgb[where] * share + 255 * (1 - share)).astype(np.uint8)
    return rgb
