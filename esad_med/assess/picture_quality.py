"""Blank, saturated and blurred pictures: four numbers of each, judged against the store's own."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esad_med.assess.descriptors import Bytes, Floats, Look, to_gray

MEASURES = ("contrast", "bright", "dark", "sharpness")
_WHITE = {"tissue": 220, "upright": 247}  # glass is bright, not white
_BLACK = {"tissue": 20, "upright": 8}
_TIE = 0.5  # squared gray levels: a picture without any detail has the sharpness 0
_LEAST_JUDGED = 20  # pictures: fewer have no spread to compare with


@dataclass(frozen=True)
class QualityRule:
    """From where on a picture is named.

    Attributes:
        constant_levels: standard deviation of a picture's gray levels, at most.
        blank_share: share of nearly white, or nearly black, pixels from which on tissue is blank.
        saturated_share: the same for other pictures, if it is far above the store's, too.
        deviations: how many robust standard deviations from the store's median are far.
    """

    constant_levels: float
    blank_share: float
    saturated_share: float
    deviations: float


def measure_pictures(pictures: Bytes, look: Look) -> Floats:
    """The numbers `MEASURES` of each picture, (n, 4) float32.

    Sharpness is the logarithm of the variance of the Laplacian over the mean squared gradient: how
    much of the detail is as fine as pixels. Unlike the variance alone it hardly depends on what is
    shown: a sharp picture of little tissue is not taken for a blurred one.

    Args:
        pictures: (n, h, w, c).
        look: decides what is nearly white or black.
    """
    gray = to_gray(pictures)
    dull = pictures.min(axis=3), pictures.max(axis=3)
    bright = (dull[0] >= _WHITE[look]).mean(axis=(1, 2))
    dark = (dull[1] <= _BLACK[look]).mean(axis=(1, 2))
    inner = gray[:, 1:-1, 1:-1]
    around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    fine = (4 * inner - around).var(axis=(1, 2))
    gradient = sum((np.diff(gray, axis=axis) ** 2).mean(axis=(1, 2)) for axis in (1, 2))
    sharpness = np.log(fine + _TIE) - np.log(gradient + _TIE)
    found = [gray.std(axis=(1, 2)), bright, dark, sharpness]
    return np.stack(found, axis=1).astype(np.float32)


@dataclass(frozen=True)
class QualityFinding:
    """A picture that is named: which, as what, by which of `MEASURES`, and from where on."""

    index: int
    finding: str
    measure: str
    value: float
    limit: float


def judge_pictures(
    measures: Floats, look: Look, rule: QualityRule
) -> tuple[list[QualityFinding], list[str]]:
    """Name constant, blank, saturated and blurred pictures; each by its first fault only.

    Args:
        measures: of `measure_pictures`, of the whole store.
        look: "tissue" or "upright".
        rule: from where on.

    Returns:
        The findings, the clearest of each kind first, and what could not be judged.
    """
    column = dict(zip(MEASURES, measures.T.astype(np.float64), strict=True))
    constant = column["contrast"] <= rule.constant_levels
    limits = _limits(column, ~constant, look, rule)
    unclear = []
    if (~constant).sum() < _LEAST_JUDGED:
        unclear.append(f"fewer than {_LEAST_JUDGED} pictures: no spread to judge sharpness by")
        limits["sharpness"] = -np.inf
    names = ("white", "black") if look == "tissue" else ("saturated (white)", "saturated (black)")
    asked: list[tuple[str, str, npt.NDArray[np.bool_]]] = [
        (names[0], "bright", column["bright"] >= limits["bright"]),
        (names[1], "dark", column["dark"] >= limits["dark"]),
        ("constant", "contrast", constant),
        ("blurred", "sharpness", column["sharpness"] < limits["sharpness"]),
    ]
    findings, named = [], np.zeros(len(measures), bool)
    for finding, name, found in asked:
        rows = np.flatnonzero(found & ~named)
        named |= found
        down = name in ("bright", "dark")
        for index in rows[np.argsort(-column[name][rows] if down else column[name][rows])]:
            value = float(column[name][index])
            findings.append(QualityFinding(int(index), finding, name, value, float(limits[name])))
    return findings, unclear


def _limits(
    column: Mapping[str, npt.NDArray[np.float64]],
    used: npt.NDArray[np.bool_],
    look: Look,
    rule: QualityRule,
) -> dict[str, float]:
    limits = {"contrast": rule.constant_levels}
    for name in ("bright", "dark"):
        if look == "tissue" or not used.any():
            limits[name] = rule.blank_share
        else:
            middle, spread = robust_spread(column[name][used])
            limits[name] = max(rule.saturated_share, middle + 2 * rule.deviations * spread)
    judged = used & (column["bright"] < limits["bright"]) & (column["dark"] < limits["dark"])
    middle, spread = robust_spread(column["sharpness"][judged]) if judged.any() else (0.0, 0.0)
    limits["sharpness"] = middle - rule.deviations * spread
    return limits


def robust_spread(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Median, and the standard deviation that the median deviation from it stands for."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))
