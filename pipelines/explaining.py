"""What a detector says of a few flagged samples: residual maps, the most alike normals."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.stain import StainSpec, StainTarget
from esad_med.method.detector import Detector
from esad_med.outputs.explain import TileExplanation
from pipelines.pathology import LostTiles, PreparedSlide, normalized_tiles

SHOWN_TILES = 12


def most_anomalous(score: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The tiles that a report shows, highest score first: twelve, or half of all."""
    order = np.argsort(-score, kind="stable")
    return np.asarray(order[: min(SHOWN_TILES, (len(order) + 1) // 2)], np.int64)


def explain_tiles(
    prepared: PreparedSlide,
    spec: StainSpec,
    target: StainTarget,
    detector: Detector,
    chosen: npt.NDArray[np.int64],
) -> dict[int, TileExplanation]:
    """Explain some of a slide's tiles; they are read again, so that none had to be kept.

    Args:
        prepared: the slide; its grid is what ``chosen`` counts.
        spec: of the stain normalization.
        target: of the same.
        detector: what scored the tiles; of vectors there is nothing to show.
        chosen: indices of the tiles.

    Returns:
        Index -> explanation.
    """
    limits = detector.contract.calibration.residual_limits
    if not detector.input.is_image or limits is None or not len(chosen):
        return {}
    rising = np.sort(chosen)
    part = replace(prepared, grid=prepared.grid.subset(rising))
    lost = LostTiles("", part.grid)
    indices, tiles = [], []
    for batch in normalized_tiles(part, spec, target, lost):
        indices += rising[batch.indices].tolist()
        tiles.append(batch.tiles)
    samples = np.concatenate(tiles)
    found = explain_samples(samples, detector.examine(samples)[1], limits, detector)
    return dict(zip(indices, found, strict=True))


def explain_samples(
    samples: npt.NDArray[Any],
    residuals: npt.NDArray[np.float32],
    limits: tuple[float, float],
    detector: Detector,
) -> list[TileExplanation]:
    """Explanations of samples whose residual maps are known, in their order."""
    low, high = limits
    limits = low, max(high, low + 1e-12)
    if detector.examples is None:
        return [TileExplanation(residual, limits) for residual in residuals]
    order, distances = detector.examples.nearest(detector.embed(samples))
    return [
        TileExplanation(
            residual,
            limits,
            nearest=[detector.examples.pictures[i] for i in own],
            distances=[float(distance) for distance in away],
        )
        for residual, own, away in zip(residuals, order.tolist(), distances, strict=True)
    ]
