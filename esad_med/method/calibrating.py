"""Calibration: every sample is judged only by members that were not trained on it."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esad_med.method.config import TrainConfig
from esad_med.method.contract import Calibration
from esad_med.method.datasets import Indices
from esad_med.method.folds import Fold
from esad_med.method.fusion import (
    Fusion,
    JudgedTerms,
    TermStatistics,
    fit_statistics,
    held_out_auc,
    learn_norm_weight,
)
from esad_med.method.member import (
    SCORING_BATCH,
    HeldOutTerms,
    MemberData,
    copy_weights,
    held_out_terms,
    load_weights,
    residual_quantiles,
)
from esad_med.method.networks import STEP, NetworkSpec
from esad_med.method.transforms import InputTransform, as_batch

_QUANTILES = 1001
_DISTANCE_POSITIONS = 64_000  # of 4,000 tiles of 64 pixels
_UNIT = {"reconstruction_weight": 0.0, "norm_weight": 0.0}


class _HeldOut(NamedTuple):
    """What a member held out, and its two terms there."""

    fold: Fold
    normals: HeldOutTerms
    outliers: HeldOutTerms


def calibrate(
    samples: npt.NDArray[Any],
    folds: list[Fold],
    weights: list[dict[str, Tensor]],
    config: TrainConfig,
    spec: NetworkSpec,
    *,
    transform: InputTransform,
    views: int,
    device: torch.device,
    held_out_by: str,
) -> tuple[Fusion, Calibration]:
    """Fit the fusion of terms and members, and the score quantiles of held-out normals.

    Each member's terms are standardized on its own held-out normals, or on all of them. A normal's
    score is put together from the members that held it out. Where that is all of them, as folds
    have it if they can, it is what the detector gives, and quantiles are as a new normal meets
    them; where normals were held out in turn, single members spread wider than the ensemble.

    Args:
        samples: of the store.
        folds: one per member.
        weights: one state per member.
        config: fusion settings and the terms' settings.
        spec: the network.
        transform: from samples to network input.
        views: of test-time augmentation.
        device: where to compute.
        held_out_by: what the folds kept whole.
    """
    held, limits = [], []
    for fold, state in zip(folds, weights, strict=True):
        data = MemberData(samples, fold, transform)
        network = load_weights(spec, state, device)
        if spec.kind == "image":
            limits.append(residual_quantiles(network, data, fold.held_normals))
        held.append(
            _HeldOut(
                fold,
                held_out_terms(
                    network, data, fold.held_normals, config, views=views, distance=True
                ),
                held_out_terms(
                    network, data, fold.held_outliers, config, views=views, distance=True
                ),
            )
        )
    statistics = _statistics([part.normals for part in held], config)
    judged = [_judge(part, own, config) for part, own in zip(held, statistics, strict=True)]
    marked = {row for fold in folds for row in fold.held_outliers.tolist()}
    fusion = _choose_weights(judged, len(marked), statistics, config)
    normal = _ensemble_scores([part.fold.held_normals for part in held], judged, fusion)
    count = min(_QUANTILES, max(2, len(normal)))
    return fusion, Calibration(
        quantiles=tuple(np.quantile(normal, np.linspace(0, 1, count)).tolist()),
        normals=len(normal),
        held_out_by=held_out_by,
        auc=held_out_auc(judged, (fusion.reconstruction_weight, fusion.norm_weight)),
        outliers=len(marked),
        residual_limits=tuple(np.mean(limits, axis=0).tolist()) if limits else None,
    )


def fit_distance(
    data: MemberData, weights: dict[str, Tensor], spec: NetworkSpec, device: torch.device
) -> dict[str, Tensor]:
    """The weights of a member with its `LatentWhitening` fitted to normals it was trained on."""
    network = load_weights(spec, weights, device).eval()
    assert network.scored is not None
    rows, latents = data.fold.normals, []
    sides = data.samples.shape[1:3] if spec.kind == "image" else ()
    count = max(1, _DISTANCE_POSITIONS // math.prod(-(-side // STEP) for side in sides))
    rows = rows[:: -(-len(rows) // count)]
    with torch.inference_mode():
        for start in range(0, len(rows), SCORING_BATCH):
            x = data.transform(as_batch(data.samples, rows[start : start + SCORING_BATCH]))
            latents.append(network.scored.choose(network(x.to(device))).cpu())
    network.scored.fit(torch.cat(latents))
    return copy_weights(network)


def _statistics(normals: list[HeldOutTerms], config: TrainConfig) -> tuple[TermStatistics, ...]:
    """Center and scale for each member, from its own held-out normals or from everyone's."""
    if config.fusion.statistics == "pooled":
        first, second = (np.concatenate(column) for column in zip(*normals, strict=True))
        return (fit_statistics(first, second, config.fusion),) * len(normals)
    return tuple(fit_statistics(first, second, config.fusion) for first, second in normals)


def _judge(part: _HeldOut, own: TermStatistics, config: TrainConfig) -> JudgedTerms:
    """A member's terms on what it held out, on the common scale."""
    settings = config.fusion
    alone = Fusion(mode=settings.mode, transform=settings.transform, members=(own,), **_UNIT)
    normals, outliers = (
        np.concatenate(alone.standardize(terms.reconstruction[None], terms.norm[None]))
        for terms in (part.normals, part.outliers)
    )
    return JudgedTerms(normals, outliers)


def _choose_weights(
    judged: list[JudgedTerms],
    outliers: int,
    statistics: tuple[TermStatistics, ...],
    config: TrainConfig,
) -> Fusion:
    settings = config.fusion
    if settings.mode == "sum":
        return Fusion(
            mode="sum",
            across=settings.across,
            reconstruction_weight=1.0,
            norm_weight=config.loss.lambda1,
        )
    learned = learn_norm_weight(judged, outliers, settings) if settings.learn_weight else None
    share = settings.norm_weight if learned is None else learned
    return Fusion(
        mode="standardized",
        transform=settings.transform,
        across=settings.across,
        members=statistics,
        reconstruction_weight=1 - share,
        norm_weight=share,
        learned=learned is not None,
    )


def _ensemble_scores(
    rows: list[Indices], judged: list[JudgedTerms], fusion: Fusion
) -> npt.NDArray[np.float64]:
    """The score of each held-out normal, from the members that held it out."""
    every, place = np.unique(np.concatenate(rows), return_inverse=True)
    terms = np.full((len(rows), 2, len(every)), np.nan)
    ends = np.cumsum([len(own) for own in rows])
    for table, part, at in zip(terms, judged, np.split(place, ends[:-1]), strict=True):
        table[:, at] = part.normals
    over = np.nanmean if fusion.across == "mean" else np.nanmedian
    return fusion.weigh(*over(terms, axis=0)).score.astype(np.float64)
