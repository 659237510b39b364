"""The quality-control picture of one slide: what was taken as tissue, and which tiles were cut."""

from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from esad_med.base.runs import atomic_file
from esad_med.outputs.figures import INK, MUTED

_PANEL_PX = 640
_LEAST_WIDTH_PX = 480  # of a panel, for its name and facts
_GAP_PX, _HEAD_PX, _FOOT_PX = 32, 136, 72
_FRAME = "#c8ced6"
_TISSUE_RGB = (0, 150, 110)
_TILE_RGB = (0, 105, 180)
_TUMOR_RGB = (214, 39, 40)
_TINT = 0.45

Bytes = npt.NDArray[np.uint8]


def write_tiling_picture(
    path: Path,
    thumbnail: Bytes,
    *,
    mask: npt.NDArray[np.bool_],
    downsample: float,
    xy_level0: npt.ArrayLike,
    edge_level0: float,
    tumor: npt.ArrayLike | None = None,
    title: str,
    caption: str = "",
) -> None:
    """Write thumbnail, tissue mask and tile grid side by side as a PNG, atomically.

    Args:
        path: the PNG to write.
        thumbnail: (h, w, 3) uint8 picture of the whole slide.
        mask: (h, w) where tissue was found, on the same pixels.
        downsample: level-0 pixels per thumbnail pixel.
        xy_level0: (n, 2) top-left corners of the tiles in level-0 pixels.
        edge_level0: edge of a tile in level-0 pixels.
        tumor: (n,) True where a tile counts as tumor; None where nothing is annotated.
        title: such as the case id.
        caption: a line of facts below, such as resolution and settings.

    Raises:
        ConfigError: the file cannot be written.
    """
    if mask.shape != thumbnail.shape[:2]:
        raise ValueError(f"mask {mask.shape} and thumbnail {thumbnail.shape} do not match")
    corners = np.asarray(xy_level0, dtype=np.float64).reshape(-1, 2)
    flags = np.zeros(len(corners), dtype=bool) if tumor is None else np.asarray(tumor, dtype=bool)
    share = f"{100 * mask.mean():.1f} % of the slide"
    count = f"{len(corners):,} tiles"
    if tumor is not None:
        count += f", {int(flags.sum()):,} tumor (red)"
    panels = [
        ("Slide", f"{thumbnail.shape[1]} × {thumbnail.shape[0]} px", _enlarge(thumbnail)),
        ("Tissue", share, _draw_mask(thumbnail, mask)),
        ("Tiles", count, _draw_tiles(thumbnail, corners, flags, downsample, edge_level0)),
    ]
    with atomic_file(path) as temporary:  # level 1: a fifth of the time, little more space
        _compose(panels, title, caption).save(temporary, "PNG", compress_level=1)


def _compose(panels: list[tuple[str, str, Bytes]], title: str, caption: str) -> Image.Image:
    """Panels of (name, facts, picture) side by side, under a title and above a caption."""
    height_px, width_px = panels[0][2].shape[:2]
    step = max(width_px, _LEAST_WIDTH_PX) + _GAP_PX
    bottom = _HEAD_PX + height_px
    page = Image.new("RGB", (len(panels) * step + _GAP_PX, bottom + _FOOT_PX), "white")
    pen = ImageDraw.Draw(page)
    pen.text((_GAP_PX, 28), title, INK, _font(29, bold=True), anchor="la")
    pen.text((_GAP_PX, bottom + 47), caption, MUTED, _font(19), anchor="ls")
    for left, (name, facts, picture) in zip(range(_GAP_PX, 3 * step, step), panels, strict=True):
        page.paste(Image.fromarray(picture), (left, _HEAD_PX))
        frame = (left - 1, _HEAD_PX - 1, left + width_px, bottom)
        pen.rectangle(frame, outline=_FRAME)
        pen.text((left, _HEAD_PX - 18), name, INK, _font(22, bold=True), anchor="ls")
        right = left + step - _GAP_PX
        pen.text((right, _HEAD_PX - 18), facts, MUTED, _font(20), anchor="rs")
    return page


@cache
def _font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: equal on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


def _zoom(picture: npt.NDArray[np.generic]) -> float:
    height, width = picture.shape[:2]
    return float(min(_PANEL_PX / width, 2 * _PANEL_PX / height))


def _enlarge(picture: Bytes, *, nearest: bool = False) -> Bytes:
    """Bring a picture to the panel's size: areas when shrinking, smooth or nearest when growing."""
    zoom = _zoom(picture)
    size = (max(1, round(picture.shape[1] * zoom)), max(1, round(picture.shape[0] * zoom)))
    smooth = Image.Resampling.BOX if zoom < 1 else Image.Resampling.BICUBIC
    method = Image.Resampling.NEAREST if nearest else smooth
    return np.asarray(Image.fromarray(picture).resize(size, method))


def _draw_mask(thumbnail: Bytes, mask: npt.NDArray[np.bool_]) -> Bytes:
    """Tint what counts as tissue and draw its outline; the rest fades."""
    picture = _enlarge(thumbnail).astype(np.float32)
    inside = _enlarge(mask.astype(np.uint8) * 255, nearest=True) > 0
    color = np.array(_TISSUE_RGB, dtype=np.float32)
    tinted = np.where(inside[..., None], (1 - _TINT) * picture + _TINT * color, picture)
    edge = np.zeros_like(inside)
    edge[1:] |= inside[1:] != inside[:-1]
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    tinted[edge] = color * 0.6
    return np.rint(tinted).astype(np.uint8)


def _draw_tiles(
    thumbnail: Bytes,
    corners: npt.NDArray[np.float64],
    tumor: npt.NDArray[np.bool_],
    downsample: float,
    edge_level0: float,
) -> Bytes:
    """Draw each tile's box, tumor last so that no neighbor covers it."""
    image = Image.fromarray(_enlarge(thumbnail)).convert("RGBA")
    overlay = Image.new("RGBA", image.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(overlay)
    scale = _zoom(thumbnail) / downsample
    near, far = corners * scale, (corners + edge_level0) * scale
    # A box of a pixel or two still shows: the far corner never falls before the near one.
    boxes = np.concatenate([near, np.maximum(near, far - 1)], axis=1)
    for chosen, rgb, fill in ((~tumor, _TILE_RGB, 25), (tumor, _TUMOR_RGB, 90)):
        for box in boxes[chosen].tolist():
            pen.rectangle(box, outline=(*rgb, 230), fill=(*rgb, fill))
    return np.asarray(Image.alpha_composite(image, overlay).convert("RGB"))
