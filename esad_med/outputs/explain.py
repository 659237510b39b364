"""Why a tile was flagged, as a page shows it: residual, both terms, the most alike normals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from esad_med.outputs.pages import data_uri
from esad_med.outputs.radiograph import overlay

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class TileExplanation:
    """What a detector says of one tile beside its score.

    Attributes:
        residual: (h, w) squared residual of the reconstruction.
        residual_limits: from no color to full color.
        nearest: normal training samples most like it, (h, w, 1 or 3) uint8, nearest first.
        distances: of them, see `Examples.nearest`.
    """

    residual: Floats
    residual_limits: tuple[float, float]
    nearest: Sequence[Bytes] = ()
    distances: Sequence[float] = ()

    def __post_init__(self) -> None:
        """Refuse pictures without distances."""
        if len(self.nearest) != len(self.distances) or self.residual.ndim != 2:
            raise ValueError("expected a map, and one distance per picture")


def describe_explanation(told: TileExplanation, picture: Bytes) -> dict[str, object]:
    """An explanation as the template takes it; the residual lies over the tile in gray."""
    gray = np.asarray(Image.fromarray(picture).convert("L"))
    colored = overlay(gray, told.residual, crop_share=1.0, limits=told.residual_limits)
    return {
        "residual": data_uri(colored, "PNG"),
        "nearest": [
            (data_uri(as_colors(one), "PNG"), float(distance))
            for one, distance in zip(told.nearest, told.distances, strict=True)
        ],
    }


def as_colors(picture: Bytes) -> Bytes:
    """(h, w, 3) of a picture with one channel or three."""
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def strip(pictures: Sequence[Bytes], *, height_px: int, gap_px: int = 6) -> Bytes:
    """Pictures side by side at one height, white between them."""
    scaled = []
    for one in pictures:
        image = Image.fromarray(as_colors(one))
        size = (max(1, round(image.width * height_px / image.height)), height_px)
        scaled.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC)))
    gap = np.full((height_px, gap_px, 3), 255, np.uint8)
    parts = [part for one in scaled for part in (gap, one)][1:]
    return np.concatenate(parts, axis=1)


def term_shares(reconstruction: Floats, norm: Floats) -> tuple[Floats, Floats]:
    """Both terms of every tile from 0 at the slide's median to 1 at its maximum, (n,) each."""
    shares = []
    for term in (reconstruction, norm):
        middle, high = float(np.median(term)), float(term.max())
        span = high - middle
        shares.append(np.clip((term - middle) / span, 0, 1) if span > 0 else np.zeros(len(term)))
    return shares[0], shares[1]
