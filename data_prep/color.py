"""Colors of stained tissue: optical density, CIE LAB, and the histogram of a slide's tissue."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.compiled import compile_kernel

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

#: OD of each gray level, (256,): max(-ln(max(I, 1) / 255), 1e-6), as in staintools.
OD_TABLE: Floats = np.maximum(-np.log(np.maximum(np.arange(256), 1) / 255), 1e-6)

_RGB_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)  # sRGB primaries, D65
_WHITE = _RGB_TO_XYZ.sum(axis=1)  # so that (255, 255, 255) is exactly L = 100, a = b = 0
_BITS = 7  # per channel of the histogram


def _linear(rgb: npt.NDArray[np.floating]) -> Floats:
    """SRGB in [0, 255] to linear light in [0, 1]."""
    value = np.asarray(rgb, dtype=np.float64) / 255
    return np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)


_LINEAR_TABLE = _linear(np.arange(256.0))
_LUMINANCE_TABLE = (_LINEAR_TABLE[:, None] * _RGB_TO_XYZ[1]).astype(np.float32)  # (256, 3)


def rgb_to_lab(rgb: npt.NDArray[np.floating] | Bytes) -> Floats:
    """SRGB (..., 3) in [0, 255] to CIE LAB (..., 3): L in [0, 100], a and b about [-128, 127]."""
    linear = _LINEAR_TABLE[rgb] if rgb.dtype == np.uint8 else _linear(rgb.astype(np.float64))
    xyz = linear @ _RGB_TO_XYZ.T / _WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab_to_rgb(lab: Floats) -> Bytes:
    """CIE LAB (..., 3) to sRGB uint8 (..., 3), rounded; colors outside sRGB are clipped."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787) * _WHITE
    linear = np.clip(xyz @ np.linalg.inv(_RGB_TO_XYZ).T, 0, 1)
    value = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    rgb: Bytes = np.rint(255 * np.clip(value, 0, 1)).astype(np.uint8)
    return rgb


def tissue_pixels(rgb: Bytes, luminosity: float) -> npt.NDArray[np.bool_]:
    """Which pixels are tissue: CIE L below ``luminosity`` x 100.

    Args:
        rgb: (..., 3).
        luminosity: in (0, 1]; 0.8 as in staintools.

    Returns:
        (...) bool.
    """
    table = _LUMINANCE_TABLE
    y = table[rgb[..., 0], 0] + table[rgb[..., 1], 1] + table[rgb[..., 2], 2]
    return np.asarray(y < _luminance(luminosity))


def _luminance(luminosity: float) -> np.float32:
    """Y of L = 100 x luminosity; L is a rising map of Y."""
    f = (100 * luminosity + 16) / 116
    return np.float32(f**3 if f > 0.2068966 else (f - 16 / 116) / 7.787)


@dataclass(frozen=True, eq=False)
class ColorHistogram:
    """Colors of tissue, 7 bits per channel; integers only, so adding up is exact in any order.

    Attributes:
        keys: (k,) int64 sorted, the bin: ``(r >> 1) << 14 | (g >> 1) << 7 | b >> 1``.
        counts: (k,) int64, pixels in the bin.
        odd: (k, 3) int64, how many of them have the channel's lowest bit set; with it the bin's
            mean color and mean OD are exact.
    """

    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    odd: npt.NDArray[np.int64]

    @classmethod
    def of(cls, images: Iterable[Bytes], *, luminosity: float) -> "ColorHistogram":
        """Count the tissue pixels of images (..., 3) uint8, one after the other."""
        totals = np.zeros((1 << 3 * _BITS, 4), dtype=np.int64)
        kernel = compile_kernel(_count_colors)
        for image in images:
            pixels = np.ascontiguousarray(image).reshape(-1, 3)
            if kernel is None:
                count_numpy(pixels, luminosity, totals)
            else:
                kernel(pixels, _LUMINANCE_TABLE, _luminance(luminosity), totals)
        keys = np.flatnonzero(totals[:, 0])
        return cls(keys, totals[keys, 0], totals[keys, 1:])

    def __add__(self, other: "ColorHistogram") -> "ColorHistogram":
        """The histogram of both pictures together."""
        keys, where = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.zeros(len(keys), dtype=np.int64)
        odd = np.zeros((len(keys), 3), dtype=np.int64)
        np.add.at(counts, where, np.concatenate([self.counts, other.counts]))
        np.add.at(odd, where, np.concatenate([self.odd, other.odd]))
        return ColorHistogram(keys, counts, odd)

    @property
    def pixels(self) -> int:
        """How many tissue pixels were counted."""
        return int(self.counts.sum())

    def _even(self) -> npt.NDArray[np.int64]:
        mask = (1 << _BITS) - 1
        return 2 * np.stack(
            [self.keys >> 2 * _BITS, self.keys >> _BITS & mask, self.keys & mask], axis=1
        )

    def mean_od(self) -> Floats:
        """Mean optical density of each bin, (k, 3)."""
        even, share = self._even(), self.odd / self.counts[:, None]
        return (1 - share) * OD_TABLE[even] + share * OD_TABLE[even + 1]

    def mean_rgb(self) -> Floats:
        """Mean color of each bin, (k, 3) in [0, 255]."""
        return self._even() + self.odd / self.counts[:, None]


def count_numpy(pixels: Bytes, luminosity: float, totals: npt.NDArray[np.int64]) -> None:
    """Add the tissue of (n, 3) to the totals (2^21, 4): all of a bin, and those odd per channel."""
    pixels = pixels[tissue_pixels(pixels, luminosity)]
    half = (pixels >> 1).astype(np.int64)
    key = half[:, 0] << 2 * _BITS | half[:, 1] << _BITS | half[:, 2]
    np.add.at(totals[:, 0], key, 1)
    for channel in range(3):
        np.add.at(totals[:, channel + 1], key[(pixels[:, channel] & 1).astype(bool)], 1)


def _count_colors(pixels: Any, table: Any, bound: Any, totals: Any) -> None:
    """`count_numpy`, to be compiled."""
    for i in range(len(pixels)):
        r, g, b = np.int64(pixels[i, 0]), np.int64(pixels[i, 1]), np.int64(pixels[i, 2])
        if table[r, 0] + table[g, 1] + table[b, 2] < bound:
            key = (r >> 1) << 14 | (g >> 1) << 7 | b >> 1
            totals[key, 0] += 1
            totals[key, 1] += r & 1
            totals[key, 2] += g & 1
            totals[key, 3] += b & 1


def weighted_percentile(values: Floats, weights: npt.NDArray[np.int64], percent: float) -> float:
    """The smallest of ``values`` (k,) that at least ``percent`` of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    index = int(np.searchsorted(reached, percent / 100 * reached[-1]))
    return float(values[order[min(index, len(order) - 1)]])
