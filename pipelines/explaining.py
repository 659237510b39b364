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
    low, high = limits[0], max(limits[1], limits[0] + 1e-12)
    alike = nearest_examples(samples, detector)
    return {
        index: TileExplanation(residual, (low, high), *own)
        for index, residual, own in zip(indices, detector.examine(samples)[1], alike, strict=True)
    }


def nearest_examples(
    samples: npt.NDArray[Any], detector: Detector
) -> list[tuple[list[npt.NDArray[np.uint8]], list[float]]]:
    """The normal training pictures most like each sample and their distances; none if none kept."""
    examples = detector.examples
    if examples is None:
        return [([], []) for _ in samples]
    order, distances = examples.nearest(detector.embed(samples))
    return [
        ([examples.pictures[i] for i in own], away)
        for own, away in zip(order.tolist(), distances.tolist(), strict=True)
    ]
