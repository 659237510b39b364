"""The deep-zoom page of one slide, and its heat map as a picture that lets the slide through.

The page lies in ``CASE/viewer/``. Beside it are ``heat.png`` and ``tiles/LEVEL/COLUMN_ROW.jpg``,
two folders above is ``openseadragon.js``; files or answers of a server, the page cannot tell.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from esad_med.base.errors import CaseError
from esad_med.outputs.heatmap import Bytes
from esad_med.outputs.pages import data_uri, read_template, render_page
from esad_med.outputs.report import draw_scale

OPACITY = 45  # percent, at the start
_HEAT_PX = 4096  # the heat map's longest side: 64 MB in a browser
_MOST_LEVELS = 64
_WHITE = 255  # what no tile covers, see `heatmap`


@dataclass(frozen=True)
class ViewerTile:
    """One of the most anomalous tiles: level-0 corner, score, both terms, p-value where known."""

    x: int
    y: int
    score: float
    percentile: float
    reconstruction: float
    norm: float
    p_value: float | None = None


@dataclass(frozen=True)
class Pyramid:
    """The slide in the layout of Deep Zoom.

    Attributes:
        width, height: level-0 pixels.
        tile_px: edge of a deep-zoom tile without its overlap.
        overlap: pixels shown of each neighbor.
        first_level, last_level: what is there; each level has half the pixels of the next.
    """

    width: int
    height: int
    tile_px: int
    overlap: int
    first_level: int
    last_level: int


@dataclass(frozen=True)
class ViewerPage:
    """Everything the page shows, as plain values.

    Attributes:
        case_id: the title.
        slide_score, slide_percentile, maximum, area_above_mm2: as in the report.
        limits: tile scores of the heat map's first and last color.
        pyramid: the slide's tiles.
        mpp: µm per level-0 pixel.
        edge_level0: edge of a scored tile in level-0 pixels.
        heat_width: width of the heat map as a share of the slide's width, a little more than 1.
        tiles: the most anomalous, highest first.
        scored: how many tiles were scored.
        decision: such as "alarm"; empty where the detector is not calibrated.
        p_value: of the slide, where there is one.
    """

    case_id: str
    slide_score: float
    slide_percentile: float
    maximum: float
    area_above_mm2: float
    limits: tuple[float, float]
    pyramid: Pyramid
    mpp: float
    edge_level0: float
    heat_width: float
    tiles: Sequence[ViewerTile]
    scored: int
    decision: str = ""
    p_value: float | None = None

    def __post_init__(self) -> None:
        """Refuse what a browser could not place."""
        numbers = (self.mpp, self.edge_level0, self.heat_width)
        if not all(math.isfinite(value) and value > 0 for value in numbers):
            raise ValueError(f"{self.case_id}: expected a positive mpp, tile edge and width")


def render_viewer(page: ViewerPage) -> str:
    """The page as HTML; its script is its own, and the only one that may load another."""
    pyramid = page.pyramid
    data = {
        "pyramid": {
            "width": pyramid.width,
            "height": pyramid.height,
            "tileSize": pyramid.tile_px,
            "tileOverlap": pyramid.overlap,
            "minLevel": pyramid.first_level,
            "maxLevel": pyramid.last_level,
        },
        "mpp": page.mpp,
        "edge": page.edge_level0,
        "heatWidth": page.heat_width,
        "tiles": [(tile.x, tile.y) for tile in page.tiles],
    }
    pieces = render_page(
        "viewer.html",
        ("slide.css", "viewer.css"),
        script=read_template("viewer.js"),
        pictures="'self' file: data:",
        page=page,
        opacity=OPACITY,
        data=data,
        legend=data_uri(draw_scale(), "PNG"),
    )
    return "".join(pieces)


def read_heat(path: Path) -> tuple[Bytes, int]:
    """The heat map, clear where no tile was scored.

    Args:
        path: a ``heatmap.tif`` of ours.

    Returns:
        (h, w, 4) uint8 of at most 4096 pixels a side, and the file's finest pixels per pixel of it.

    Raises:
        CaseError: the file is missing or damaged.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = tiff.pages[:_MOST_LEVELS]
            level = next(i for i, page in enumerate(pages) if max(page.shape[:2]) <= _HEAT_PX)
            if pages[level].shape[2:] != (3,) or pages[level].dtype != np.uint8:
                raise CaseError(f"{name}: is no heat map of ours; screen the slide again")
            picture = np.asarray(pages[level].asarray())
    except CaseError:
        raise
    except Exception as error:  # tifffile raises anything on damaged files
        raise CaseError(
            f"{name}: cannot be read ({type(error).__name__}); screen the slide again"
        ) from error
    alpha = np.where((picture == _WHITE).all(axis=2), 0, 255).astype(np.uint8)
    return np.dstack([picture, alpha]), 2**level


def encode_heat(heat: Bytes) -> bytes:
    """The heat map as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(heat).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_tile(tile: Bytes, *, quality: int) -> bytes:
    """A deep-zoom tile (h, w, 3) uint8 as JPEG; text and nuclei keep their colors (4:4:4)."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality=quality))
