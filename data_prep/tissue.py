"""Where the tissue is: a mask on a thumbnail, by color against the glass, without ink."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field
from skimage.filters import gaussian, threshold_otsu
from skimage.morphology import dilation, disk, remove_small_holes, remove_small_objects

from data_prep.slides import Slide
from esad_med.base.config import Spec

_INK_HALO_UM = 24.0  # around ink the glass shines through and looks stained


class TissueSpec(Spec):
    """How tissue is told from glass.

    After the glass was made white, a pixel is tissue when its saturation (largest minus smallest
    channel) plus half its darkness (255 minus largest) is above Otsu's threshold: half, because
    shadows and dust are gray, stained tissue is not. The threshold is held within
    ``threshold_range``: on a picture of glass alone, or of tissue alone, Otsu would cut through the
    only class there is.
    """

    mpp: float = Field(8.0, ge=0.5, le=1000, description="Resolution of the mask in µm per pixel.")
    smoothing_um: float = Field(
        8.0, ge=0, le=1000, description="Sigma of the blur before the threshold."
    )
    threshold_range: tuple[float, float] = Field(
        (13.0, 20.0), description="Bounds of the threshold, in gray levels of 255."
    )
    ink: bool = Field(True, description="Leave out green, blue and black pen and black borders.")
    min_object_um2: float = Field(8000.0, ge=0, description="Smaller pieces are dropped.")
    max_hole_um2: float = Field(8000.0, ge=0, description="Smaller holes are filled.")


@dataclass(frozen=True)
class TissueMask:
    """Tissue of one slide.

    Attributes:
        mask: (h, w) bool, True for tissue. Damaged parts of the file count as tissue, so that
            reading them reports them instead of passing them over in silence.
        thumbnail: (h, w, 3) uint8, what the mask was made from.
        downsample: level-0 pixels per mask pixel.
    """

    mask: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8]
    downsample: float

    @property
    def share(self) -> float:
        """Tissue area over slide area, in [0, 1]."""
        return float(self.mask.mean())


def find_tissue(slide: Slide, spec: TissueSpec) -> TissueMask:
    """Find the tissue of a slide. An empty mask is no error here; `plan_tiles` refuses it."""
    overview = slide.read_overview(spec.mpp)
    pixel_um = overview.downsample * slide.mpp
    mask = mask_tissue(overview.rgb, pixel_um, spec)
    return TissueMask(mask | ~overview.readable, overview.rgb, overview.downsample)


def mask_tissue(
    rgb: npt.NDArray[np.uint8], pixel_um: float, spec: TissueSpec
) -> npt.NDArray[np.bool_]:
    """Tissue of a picture.

    Args:
        rgb: (h, w, 3) uint8.
        pixel_um: edge of a pixel in µm.
        spec: how tissue is told from glass; ``mpp`` is not used here.

    Returns:
        (h, w) bool.
    """
    smooth = _smooth(rgb, spec.smoothing_um / pixel_um)
    whiten = np.asarray(255 / _glass_color(smooth), np.float32)
    stain, ink = _stain_and_ink(smooth, whiten)
    del smooth
    least, most = spec.threshold_range
    flat = np.ptp(stain) < 1
    mask = stain > (least if flat else np.clip(threshold_otsu(stain), least, most))
    if spec.ink and ink.any():
        mask &= ~dilation(ink, disk(round(_INK_HALO_UM / pixel_um)))
    mask = remove_small_holes(mask, max_size=spec.max_hole_um2 / pixel_um**2)
    mask = remove_small_objects(mask, max_size=spec.min_object_um2 / pixel_um**2)
    return np.asarray(mask, bool)


def _strips(height: int, rows: int = 64) -> Iterator[slice]:
    """Rows of a picture, a few at a time: what is computed of them stays in the caches."""
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def _smooth(rgb: npt.NDArray[np.uint8], sigma: float) -> npt.NDArray[np.float32]:
    """Gaussian blur of each channel, strip by strip with as many rows around as it reaches."""
    smooth = np.empty(rgb.shape, np.float32)
    reach = int(4 * sigma + 0.5) + 1
    for rows in _strips(len(rgb), max(64, 4 * reach)):
        first = max(0, rows.start - reach)
        part = rgb[first : rows.stop + reach].astype(np.float32)
        blurred = gaussian(part, sigma, truncate=4, channel_axis=-1, preserve_range=True)
        smooth[rows] = blurred[rows.start - first :][: rows.stop - rows.start]
    return smooth


def _channel_extremes(
    rgb: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The smallest and largest channel of each pixel; numpy's own, over three numbers, is slow."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    low = np.minimum(np.minimum(red, green), blue)
    return low, np.maximum(np.maximum(red, green), blue)


def _glass_color(rgb: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The color of empty glass, (3,): the brightest gray there is; 255 where all is colored.

    Pure white is left out: it is what was not scanned, and brighter than the glass.
    """
    lows = np.concatenate([low[bright] for _, low, bright in _bright(rgb)])
    if len(lows) < 0.01 * rgb.shape[0] * rgb.shape[1]:
        return np.full(3, 255, np.float32)
    level = np.quantile(lows, 0.9, overwrite_input=True)
    del lows
    color = np.empty(3, np.float32)
    for channel in range(3):  # one after the other: on even glass these are half of the picture
        brightest = [part[bright & (low >= level), channel] for part, low, bright in _bright(rgb)]
        color[channel] = np.median(np.concatenate(brightest), overwrite_input=True)
    return color


def _bright(rgb: npt.NDArray[np.float32]) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Strips of a picture, their smallest channel, and where they could be glass."""
    for rows in _strips(len(rgb)):
        low, high = _channel_extremes(rgb[rows])
        yield rgb[rows], low, (low > 190) & (high < 254) & (high - low < 25)


def _stain_and_ink(
    rgb: npt.NDArray[np.float32], whiten: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """How stained each pixel is once the glass is white (`TissueSpec`), and what is ink.

    Pen and black borders: no H&E or DAB stain lets green through so much and red not.
    """
    stain = np.empty(rgb.shape[:2], np.float32)
    ink = np.empty(rgb.shape[:2], bool)
    for rows in _strips(len(rgb)):
        part = rgb[rows]
        low, high = _channel_extremes(np.minimum(part * whiten, 255))
        stain[rows] = (high - low) + (255 - high) / 2
        red, green, blue = part[..., 0], part[..., 1], part[..., 2]
        low, high = _channel_extremes(part)
        colored = (green - red > 35) | ((green - red > 20) & (blue - red > 60))
        ink[rows] = colored | ((high < 80) & (high - low < 30))
    return stain, ink
