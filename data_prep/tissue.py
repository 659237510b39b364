"""Where the tissue is: a mask on a thumbnail, by color against the glass, without ink."""

from dataclasses import dataclass

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
    smooth = gaussian(
        rgb.astype(np.float32), spec.smoothing_um / pixel_um, channel_axis=-1, preserve_range=True
    )
    white = np.minimum(smooth * (255 / _glass_color(smooth)), 255)
    low, high = _channel_extremes(white)
    stain = (high - low) + (255 - high) / 2
    least, most = spec.threshold_range
    flat = np.ptp(stain) < 1
    mask = stain > (least if flat else np.clip(threshold_otsu(stain), least, most))
    if spec.ink:
        halo = disk(round(_INK_HALO_UM / pixel_um))
        mask &= ~dilation(_ink(smooth), halo)
    mask = remove_small_holes(mask, max_size=spec.max_hole_um2 / pixel_um**2)
    mask = remove_small_objects(mask, max_size=spec.min_object_um2 / pixel_um**2)
    return np.asarray(mask, bool)


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
    pixels = rgb.reshape(-1, 3)
    low, high = _channel_extremes(pixels)
    bright = (low > 190) & (high < 254) & (high - low < 25)
    if np.count_nonzero(bright) < 0.01 * len(pixels):
        return np.full(3, 255, np.float32)
    level = np.quantile(low[bright], 0.9)
    return np.asarray(np.median(pixels[bright & (low >= level)], axis=0), np.float32)


def _ink(rgb: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Pen and black borders, (h, w): no H&E or DAB stain lets green through so much and red not."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    colored = (green - red > 35) | ((green - red > 20) & (blue - red > 60))
    low, high = _channel_extremes(rgb)
    black = (high < 80) & (high - low < 30)
    return np.asarray(colored | black, bool)
