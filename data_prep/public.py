"""The published Camelyon16 cells of DPA, which ESAD follows: their lists, and how they are treated.

One cell is 768 x 768 pixels of level 0 (40x). As in DPA's code each is stain-normalized at 40x on
its own pixels, then scaled by a quarter to 192 x 192; training draws 64-crops from it, the test
takes the central one. The lists name their cells, because they were drawn at random.
"""

import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_prep.color import Bytes
from data_prep.slides import Slide
from data_prep.stain import (
    Stain,
    StainSpec,
    StainTarget,
    fit_indices,
    fit_stain,
    normalize_stain,
    remap_by_spec,
)
from esad_med.base.errors import CaseError, EsadError, ImageError, SlideError
from esad_med.base.limits import Limits, read_file

CELL_PX = 768
SMALL_PX = 192
TILE_PX = 64
#: Left out by DPA: slides with faults of scanning or annotation.
LEFT_OUT = frozenset(f"normal_{number:03d}" for number in (27, 45, 108, 144, 150, 158)) | frozenset(
    {"test_114"}
)
_NAME = re.compile(
    r"(?P<slide>\w+?)_(?P<label>normal|tumor)_x_(?P<row>\d{1,9})_y_(?P<col>\d{1,9})_w_768_h_768\.jpg"
)
_LIMITS = Limits(unpacked_mib=64)  # the lists have 10 MiB
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DpaCell:
    """One published cell.

    Attributes:
        slide: such as ``tumor_001``.
        label: 0 normal, 1 tumor.
        row: top edge in level-0 pixels (the field that the lists call x).
        col: left edge in level-0 pixels (the field that they call y).
        size: edge in level-0 pixels.
    """

    slide: str
    label: int
    row: int
    col: int
    size: int = CELL_PX


#: Where DPA takes its target stain: a crop of a training slide.
DPA_TARGET = DpaCell("normal_056", 0, row=120_832, col=23_808, size=2816)


def read_dpa_list(path: Path) -> list[DpaCell]:
    """Read a list, one name a line, such as ``tumor_001_tumor_x_1536_y_768_w_768_h_768.jpg``.

    Args:
        path: text, or text.gz.

    Raises:
        CaseError: cannot be read, empty, a malformed name, or a name listed twice.
    """
    try:
        data = read_file(path, most_mib=64, setting="file_mib", error=ImageError)
        data = _LIMITS.gunzip(io.BytesIO(data)) if path.suffix == ".gz" else data
        text = data.decode("utf-8")
    except (ImageError, UnicodeDecodeError) as error:
        raise CaseError(f"{path}: damaged ({error}); fetch the list again") from error
    cells: dict[DpaCell, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        cell = _read_name(line.strip(), f"{path.name} line {number}")
        if cell in cells:
            raise CaseError(f"{path.name} line {number}: listed before in line {cells[cell]}")
        cells[cell] = number
    if not cells:
        raise CaseError(f"{path}: no cells, expected one name a line")
    return list(cells)


def _read_name(name: str, where: str) -> DpaCell:
    match = _NAME.fullmatch(name)
    if match is None:
        raise CaseError(
            f"{where}: '{name[:80]}' is not the name of a cell, expected"
            " SLIDE_normal_x_ROW_y_COL_w_768_h_768.jpg"
        )
    return DpaCell(
        match["slide"], int(match["label"] == "tumor"), int(match["row"]), int(match["col"])
    )


def find_camelyon_slide(root: Path, name: str) -> Path:
    """The file of a slide in Camelyon16's published folders, or directly in ``root``.

    Raises:
        CaseError: it is in none of them.
    """
    kind = name.partition("_")[0]
    places = [f"training/{kind}", "testing/images", f"{kind}", "images", "."]
    for place in places:
        path = root / place / f"{name}.tif"
        if path.is_file():
            return path
    raise CaseError(
        f"{name}: no {name}.tif below {root} (looked in {', '.join(places)}); give the folder that"
        " holds Camelyon16's training/ and testing/"
    )


def dpa_cells(
    cells: Iterable[DpaCell],
    opener: Callable[[str], AbstractContextManager[Slide]],
    *,
    target: StainTarget,
    spec: StainSpec,
    stain: Literal["cell", "slide"] = "cell",
    on_error: Callable[[DpaCell, EsadError], None] | None = None,
) -> Iterator[tuple[DpaCell, Bytes]]:
    """Read and normalize cells, each slide opened once, in the order of the list.

    Args:
        cells: what to read; neighbors of one slide are read together.
        opener: gives an open slide for a slide's name.
        target: the colors to show.
        spec: how stains are found.
        stain: "cell" as DPA does it: brightness first scaled so that its 90th percentile is 255,
            stains fitted on the cell alone, concentrations not scaled. "slide" is our variant:
            one matrix for all listed cells of the slide, and scaling as everywhere else.
        on_error: told of a cell that cannot be read or normalized, which is then left out;
            without it the error is raised.

    Yields:
        The cell and its (192, 192, 3) uint8 picture at 10x.

    Raises:
        SlideError, CaseError: see ``on_error``.
    """
    for name, group in groupby(cells, key=lambda cell: cell.slide):
        listed = list(group)
        if name in LEFT_OUT:
            _log.info("%s: left out, as in DPA", name)
            continue
        try:
            with opener(name) as slide:
                fitted = None
                if stain == "slide":
                    fitted = _fit_listed(slide, listed, spec, on_error is not None)
                for cell in listed:
                    try:
                        picture = _treat_cell(slide, cell, target, spec, fitted)
                    except EsadError as error:
                        if on_error is None:
                            raise
                        on_error(cell, error)
                    else:
                        yield cell, picture
        except EsadError as error:  # the slide itself, or its stain
            if on_error is None:
                raise
            for cell in listed:
                on_error(cell, error)


def read_cell(slide: Slide, cell: DpaCell) -> Bytes:
    """The level-0 pixels of a cell, (768, 768, 3).

    Raises:
        CaseError: the cell reaches over the slide's edge, so it is not this slide's.
        SlideError: the slide is damaged there.
    """
    width, height = slide.size_level0
    if cell.col + cell.size > width or cell.row + cell.size > height:
        raise CaseError(
            f"{cell.slide}: cell at row {cell.row}, column {cell.col} ends outside the slide of"
            f" {width} x {height} pixels; is it another slide's, or are row and column exchanged?"
        )
    return slide.read_region((cell.col, cell.row), 0, (cell.size, cell.size))


def brighten(rgb: Bytes, percent: float = 90) -> Bytes:
    """Scale all values alike so that their 90th percentile is 255, and cut there, as DPA does."""
    bright = max(float(np.percentile(rgb, percent)), 1.0)
    scaled: Bytes = np.clip(rgb * (255.0 / bright), 0, 255).astype(np.uint8)
    return scaled


def shrink(rgb: Bytes) -> Bytes:
    """A quarter of the size with DPA's own call: (768, 768, 3) to (192, 192, 3)."""
    from skimage import transform

    scale = SMALL_PX / CELL_PX
    small: Bytes = np.rint(255 * transform.rescale(rgb, (scale, scale, 1))).astype(np.uint8)
    return small


def center_crop(picture: Bytes, edge: int = TILE_PX) -> Bytes:
    """The central square of (h, w, 3)."""
    top, left = (picture.shape[0] - edge) // 2, (picture.shape[1] - edge) // 2
    return picture[top : top + edge, left : left + edge]


def random_crops(
    picture: Bytes, count: int, rng: np.random.Generator, edge: int = TILE_PX
) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Squares at random places of (h, w, 3).

    Returns:
        (count, edge, edge, 3), and their corners (count, 2) as x, y in pixels of the picture.
    """
    limit = np.array([picture.shape[1], picture.shape[0]]) - edge + 1
    corners = rng.integers(0, limit, (count, 2))
    crops = np.stack([picture[y : y + edge, x : x + edge] for x, y in corners])
    return crops, corners


def dpa_target(slide: Slide, spec: StainSpec) -> StainTarget:
    """The target stain of DPA, from the crop `DPA_TARGET` of slide normal_056.

    Raises:
        CaseError: the slide is too small to be normal_056.
        SlideError: damaged there, or no two stains.
    """
    cell = DPA_TARGET
    name = f"{cell.slide} at row {cell.row}, column {cell.col}"
    found = fit_stain([brighten(read_cell(slide, cell))], spec, name=name)
    return StainTarget(name, found.matrix, found.max_concentration, found.lab_mean, found.lab_std)


def _treat_cell(
    slide: Slide, cell: DpaCell, target: StainTarget, spec: StainSpec, fitted: Stain | None
) -> Bytes:
    rgb = read_cell(slide, cell)
    if fitted is not None:
        return shrink(normalize_stain(rgb, fitted, target, spec))
    rgb = brighten(rgb)
    name = f"{cell.slide}, cell at row {cell.row}, column {cell.col}"
    found = fit_stain([rgb], spec, name=name)
    if spec.method in {"reinhard", "none"}:
        return shrink(normalize_stain(rgb, found, target, spec))
    return shrink(remap_by_spec(rgb, found.matrix, np.ones(2), target.matrix, spec))


def _fit_listed(
    slide: Slide, cells: Sequence[DpaCell], spec: StainSpec, skip_damaged: bool
) -> Stain:
    """One stain for a slide from its listed cells, as many pixels as ``fit_tiles`` tiles hold."""
    tiles = max(1, spec.fit_tiles * TILE_PX**2 * (CELL_PX // SMALL_PX) ** 2 // CELL_PX**2)
    chosen = fit_indices(len(cells), spec.model_copy(update={"fit_tiles": tiles}))

    def pictures() -> Iterator[Bytes]:
        for index in chosen:
            try:
                yield read_cell(slide, cells[index])
            except (SlideError, CaseError):
                if not skip_damaged:
                    raise

    return fit_stain(pictures(), spec, name=slide.path.name)
