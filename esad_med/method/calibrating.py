"""Crosswise calibration: every sample is judged only by members that were not trained on it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esad_med.method.config import TrainConfig
from esad_med.method.contract import Calibration
from esad_med.method.datasets import Fold
from esad_med.method.fusion import Fusion, TermStatistics, fit_statistics, learn_norm_weight
from esad_med.method.member import MemberData, held_out_terms, load_weights
from esad_med.method.networks import NetworkSpec
from esad_med.method.scores import rank_auc
from esad_med.method.transforms import InputTransform

_QUANTILES = 1001
_UNIT = {"reconstruction_weight": 0.0, "norm_weight": 0.0}


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

    Each member's terms are standardized on its own held-out normals, or on all of them. Where
    several members held out the same sample their terms are averaged, as in scoring; the quantiles
    of a crosswise ensemble come from fewer members per sample than score a new one, so they are
    slightly wide.

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
    held = []
    for fold, state in zip(folds, weights, strict=True):
        network = load_weights(spec, state, device)
        rows = np.concatenate([fold.held_normals, fold.held_outliers])
        data = MemberData(samples, fold, transform)
        terms = held_out_terms(network, data, rows, config, views=views)
        held.append((rows, np.arange(len(rows)) >= len(fold.held_normals), terms))
    statistics = _statistics(held, config)
    parts = [(*part, fitted) for part, fitted in zip(held, statistics, strict=True)]
    table = _pool(parts, config)
    fusion = _choose_weights(table, statistics, config)
    scores = fusion.weigh(table["reconstruction"], table["norm"]).score.astype(np.float64)
    outlier = table["outlier"]
    return fusion, _calibration(scores, outlier, held_out_by)


def _statistics(held: list[Any], config: TrainConfig) -> tuple[TermStatistics, ...]:
    """Center and scale for each member, from its own held-out normals or from everyone's."""
    normals = [(terms.reconstruction[~outlier], terms.norm[~outlier]) for _, outlier, terms in held]
    if config.fusion.statistics == "pooled":
        first, second = (np.concatenate(column) for column in zip(*normals, strict=True))
        return (fit_statistics(first, second, config.fusion),) * len(held)
    return tuple(fit_statistics(first, second, config.fusion) for first, second in normals)


def _pool(parts: list[Any], config: TrainConfig) -> dict[str, npt.NDArray[Any]]:
    """Mean reported terms of every held-out sample over the members that held it out."""
    rows, outlier, first, second = [], [], [], []
    for held, marked, terms, fitted in parts:
        own = Fusion(
            mode=config.fusion.mode, transform=config.fusion.transform, members=(fitted,), **_UNIT
        )
        a, b = own.standardize(terms.reconstruction[None], terms.norm[None])
        rows.append(held)
        outlier.append(marked)
        first.append(a[0])
        second.append(b[0])
    every = np.concatenate(rows)
    _, index, place = np.unique(every, return_index=True, return_inverse=True)
    count = np.bincount(place)
    return {
        "outlier": np.concatenate(outlier)[index],
        "reconstruction": np.bincount(place, np.concatenate(first)) / count,
        "norm": np.bincount(place, np.concatenate(second)) / count,
    }


def _choose_weights(
    table: dict[str, npt.NDArray[Any]], statistics: tuple[TermStatistics, ...], config: TrainConfig
) -> Fusion:
    settings = config.fusion
    if settings.mode == "sum":
        return Fusion(
            mode="sum",
            across=settings.across,
            reconstruction_weight=1.0,
            norm_weight=config.loss.lambda1,
        )
    learned = None
    if settings.learn_weight:
        learned = learn_norm_weight(
            table["reconstruction"], table["norm"], table["outlier"], settings
        )
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


def _calibration(
    scores: npt.NDArray[Any], outlier: npt.NDArray[np.bool_], held_out_by: str
) -> Calibration:
    normal = scores[~outlier]
    count = min(_QUANTILES, max(2, len(normal)))
    return Calibration(
        quantiles=tuple(np.quantile(normal, np.linspace(0, 1, count)).tolist()),
        normals=len(normal),
        held_out_by=held_out_by,
        auc=rank_auc(normal, scores[outlier]) if outlier.any() else None,
        outliers=int(outlier.sum()),
    )
