"""The quality-control picture of one slide: what was taken as tissue, and which tiles were cut."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from esad_med.outputs.figures import INK, MUTED, new_figure, save_png

_PANEL_PX = 720
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
    save_png(path, _compose(panels, title, caption))


def _compose(panels: list[tuple[str, str, Bytes]], title: str, caption: str) -> Figure:
    height_px, width_px = panels[0][2].shape[:2]
    panel_width = 4.0
    panel_height = panel_width * height_px / width_px
    head, foot = 0.85, 0.45
    width, height = 3 * panel_width + 0.8, panel_height + head + foot
    figure = new_figure(width, height)
    left = 0.2 / width
    figure.text(left, 1 - 0.18 / height, title, size=13, weight="bold", color=INK, va="top")
    figure.text(left, 0.16 / height, caption, size=8.5, color=MUTED, va="bottom")
    for column, (name, facts, picture) in enumerate(panels):
        x = (0.2 + column * (panel_width + 0.2)) / width
        axes = figure.add_axes(
            (x, foot / height, panel_width / width, panel_height / height), frame_on=True
        )
        axes.imshow(picture, interpolation="antialiased", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color="#c8ced6", linewidth=0.8)
        y = (foot + panel_height + 0.08) / height
        figure.text(x, y, name, size=10, weight="bold", color=INK, va="bottom")
        right = x + panel_width / width
        figure.text(right, y, facts, size=9, color=MUTED, va="bottom", ha="right")
    return figure


def _zoom(picture: npt.NDArray[np.generic]) -> float:
    return float(_PANEL_PX / max(picture.shape[:2]))


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
