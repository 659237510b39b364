"""Pictures of a radiograph: small ones for pages, residuals in color, captions for DICOM."""

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from esad_med.base.runs import atomic_file

_COLORMAP = "inferno"
# Its dark half would vanish in a dark radiograph; its pale end looks like bone.
_COLORMAP_PART = (0.42, 0.87)
_OPACITY = 0.6
_FRAME_GRAYS = (60, 200)  # on bright and on dark parts of the picture
_FRAME_SHARE = 1 / 500  # of the longest edge: one pixel of a picture of 512
_FONT_FILE = "fonts/ttf/DejaVuSans.ttf"  # shipped with matplotlib: equal on every machine
_FONT_SHARE = 1 / 38  # of the picture's width: some 70 letters a line
_SMALLEST_FONT_PX = 9
_LEAST_CAPTION_PX = 16
_TEXT_GRAY = 225
_COMPRESSION = 2  # a third of the time of the usual 6, and a tenth more bytes

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def shrink(image: Floats, longest_px: int = 512) -> Bytes:
    """A small picture of a radiograph; each pixel is the mean of the area it stands for.

    Args:
        image: (h, w) values 0-1, bones bright.
        longest_px: the longer edge of the picture; a smaller image keeps its size.

    Returns:
        (h', w') uint8, of the same aspect to the pixel.
    """
    if image.ndim != 2 or image.size == 0 or not np.isfinite(image).all():
        raise ValueError(f"expected an image (h, w) of finite values, found shape {image.shape}")
    if longest_px < 1:
        raise ValueError(f"expected at least one pixel, found longest_px {longest_px}")
    height, width = image.shape
    zoom = min(1.0, longest_px / max(height, width))
    small = np.asarray(image, dtype=np.float32)
    if zoom < 1:
        small = _mean_areas(small, max(1, round(height * zoom)))
        small = _mean_areas(np.ascontiguousarray(small.T), max(1, round(width * zoom))).T
    return np.asarray(np.rint(small.clip(0, 1) * 255), dtype=np.uint8)


def overlay(
    picture: Bytes, residual: Floats, *, crop_share: float, limits: tuple[float, float]
) -> Bytes:
    """The radiograph in gray with its residual in color where the network looks.

    A thin gray frame runs around that part, outside of it, where there is room; so it hides none of
    the residual, and the picture is gray wherever the network does not look.

    Args:
        picture: (h, w) the radiograph.
        residual: (s, s) squared residual, higher is less like a normal image.
        crop_share: share of each edge that the central crop takes, above 0 up to 1.
        limits: the residual up to which there is no color, and the one from which on the color is
            strongest and hides 60 % of the gray.

    Returns:
        (h, w, 3) uint8.
    """
    _check_overlay(picture, residual, crop_share=crop_share, limits=limits)
    low, high = limits
    rows, columns = (_center(edge, crop_share) for edge in picture.shape)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    smooth = np.asarray(
        Image.fromarray(residual.astype(np.float32)).resize(size, Image.Resampling.BILINEAR),
        dtype=np.float64,
    )
    share = np.clip((smooth - low) / (high - low), 0, 1)
    mixed = np.repeat(picture[..., None].astype(np.float64), 3, axis=2)  # (h, w, 3)
    _draw_frame(mixed, rows, columns)
    opacity = _OPACITY * share[..., None]
    mixed[rows, columns] += opacity * (_color(share) - mixed[rows, columns])
    return np.rint(mixed).astype(np.uint8)


def draw_legend(width_px: int = 256) -> Bytes:
    """The colors of `overlay` on a dark gray, from the lower to the upper limit.

    Returns:
        (8, width_px, 3) uint8.
    """
    ramp = np.linspace(0, 1, width_px, dtype=np.float32)
    gray = np.full((8, width_px), 64, dtype=np.uint8)
    return overlay(gray, np.tile(ramp, (width_px, 1)), crop_share=1.0, limits=(0.0, 1.0))


def caption(picture: Bytes, lines: Sequence[str]) -> Bytes:
    """The picture with lines of text on a black band below it.

    A line that is too long goes on in the next one, and a word that is too long is broken: nothing
    is cut off, since what stands here may be the only place that says what the picture is.

    Args:
        picture: (h, w, 3) uint8, at least 16 pixels wide.
        lines: the text; an empty line leaves a gap.

    Returns:
        (h + band, w, 3) uint8; the picture's own pixels unchanged.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"expected a picture (h, w, 3) uint8, found shape {picture.shape}")
    width = picture.shape[1]
    if width < _LEAST_CAPTION_PX:
        raise ValueError(f"{width} px wide: expected {_LEAST_CAPTION_PX} or more for a caption")
    if not lines:
        return picture.copy()
    margin = max(2, width // 64)
    room = width - 2 * margin
    font = _fit_font("".join(lines), width, room)
    wrapped = [part for line in lines for part in _wrap(line, font, room)]
    step = sum(font.getmetrics()) + 1
    band = Image.new("L", (width, step * len(wrapped) + 2 * margin))
    draw = ImageDraw.Draw(band)
    for number, line in enumerate(wrapped):
        draw.text((margin, margin + number * step), line, fill=_TEXT_GRAY, font=font)
    text = np.repeat(np.asarray(band)[..., None], 3, axis=2)
    return np.concatenate([picture, text])


def write_png(path: Path, picture: Bytes) -> None:
    """Write a picture, (h, w) or (h, w, 3) uint8, atomically; equal pixels give equal bytes.

    Raises:
        ConfigError: the file cannot be written.
    """
    with atomic_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=_COMPRESSION)


def _mean_areas(values: Floats, parts: int) -> Floats:
    """The means (parts, w) of equal parts of (h, w) along the first axis.

    A pixel across a border counts on both sides by its share; Pillow's box filter gives it to one,
    and so widens some ribs and narrows others.
    """
    count = len(values)
    edges = np.linspace(0, count, parts + 1)
    starts = edges.astype(np.int64)
    shares = (edges - starts).astype(np.float32)[:, None]  # of the pixel that an edge cuts
    sums = np.add.reduceat(values, starts[:-1], axis=0)
    sums -= shares[:-1] * values[starts[:-1]]
    sums += shares[1:] * values[np.minimum(starts[1:], count - 1)]
    sums *= np.float32(parts / count)
    return np.asarray(sums, dtype=np.float32)


def _check_overlay(
    picture: Bytes, residual: Floats, *, crop_share: float, limits: tuple[float, float]
) -> None:
    if picture.ndim != 2 or picture.size == 0 or picture.dtype != np.uint8:
        raise ValueError(f"expected a picture (h, w) uint8, found shape {picture.shape}")
    square = residual.ndim == 2 and residual.shape[0] == residual.shape[1] > 0
    if not square or not np.isfinite(residual).all():
        raise ValueError(f"expected a finite residual (s, s), found shape {residual.shape}")
    if not 0 < crop_share <= 1:
        raise ValueError(f"expected a crop share above 0 up to 1, found {crop_share}")
    if not (np.isfinite(limits).all() and limits[0] < limits[1]):
        raise ValueError(f"expected rising finite limits, found {limits}")


def _center(edge_px: int, share: float) -> slice:
    """The central part of an edge, in whole pixels, as much left out at one end as at the other."""
    start = min(round(edge_px * (1 - share) / 2), (edge_px - 1) // 2)
    return slice(start, edge_px - start)


def _draw_frame(mixed: npt.NDArray[np.float64], rows: slice, columns: slice) -> None:
    """Draw the frame around the crop, in place; none where the crop ends with the picture."""
    thick = max(1, round(max(mixed.shape) * _FRAME_SHARE))
    inside = mixed[rows, columns].copy()
    outer = [slice(max(0, part.start - thick), part.stop + thick) for part in (rows, columns)]
    around = mixed[outer[0], outer[1]]
    around[:] = np.where(around > 127, *_FRAME_GRAYS)
    mixed[rows, columns] = inside


def _color(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Colors (..., 3) from 0 to 255 of shares 0-1."""
    first, last = _COLORMAP_PART
    colors = mpl.colormaps[_COLORMAP](first + (last - first) * share)
    return np.asarray(colors[..., :3] * 255, dtype=np.float64)


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    # The basic layout, since the better one is not part of every Pillow.
    file = Path(mpl.get_data_path()) / _FONT_FILE
    return ImageFont.truetype(file, size_px, layout_engine=ImageFont.Layout.BASIC)


def _fit_font(text: str, width: int, room: int) -> ImageFont.FreeTypeFont:
    """The font for a picture of this width, smaller where one letter alone would not fit."""
    size = max(_SMALLEST_FONT_PX, round(width * _FONT_SHARE))
    letters = set(text)
    while size > 1 and any(_font(size).getlength(letter) > room for letter in letters):
        size -= 1
    return _font(size)


def _wrap(line: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """The line in parts that fit the room; broken at spaces, inside a word only where it must."""
    parts = [""]
    for word in itertools.chain.from_iterable(_break(w, font, room) for w in line.split()):
        longer = f"{parts[-1]} {word}".lstrip()
        if font.getlength(longer) <= room:
            parts[-1] = longer
        else:
            parts.append(word)
    return parts


def _break(word: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """The word in pieces that fit the room; mostly one."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > room:
            pieces.append("")
        pieces[-1] += letter
    return pieces
