"""Scores of a calibrated detector become p-values and decisions, with what speaks against them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from esad_med.assess.calibration import NormalTail, alarm_threshold, discoveries, p_values
from esad_med.assess.drift import batch_drift, unlike
from esad_med.method.decisions import Decisions, Level, Normals
from pipelines.operating_points import describe_rule

Outcome = Literal["alarm", "review", "no alarm", "not decided"]
Floats = npt.NDArray[np.float64]
NOT_CALIBRATED = "a detector of this study is not calibrated"


class CaseScore(NamedTuple):
    """The score of a case by one detector, that detector's decisions, and the images scored."""

    score: float
    decisions: Decisions | None
    images: int = 1


def sample_p_values(decisions: Decisions, score: npt.NDArray[Any]) -> Floats:
    """Conformal p-values of tiles, images or rows, (n,)."""
    return p_values(score, _tail(decisions.samples.normals))


def pointed_at(decisions: Decisions, p: Floats) -> npt.NDArray[np.bool_]:
    """The tiles of one slide to point at, by Benjamini and Hochberg, (n,)."""
    return discoveries(p, decisions.discoveries)


def decide(scores: Sequence[CaseScore], *, caveats: Iterable[str] = ()) -> dict[str, Any]:
    """The decision about a slide or study, as plain values.

    With several detectors, as for a study with PA and AP images, the smallest p-value counts as
    many times as there are detectors, and the highest of several images as many times as there are
    images where the calibration's studies have one each (Bonferroni).

    Args:
        scores: of the case, one per detector.
        caveats: what speaks against relying on it.

    Returns:
        outcome, p_value (None where nothing is decided), rule, caveats.
    """
    found = []
    for one in scores:
        if one.decisions is None:
            return undecided(NOT_CALIBRATED, caveats)
        level = one.decisions.cases
        if level is None:
            return undecided(one.decisions.no_cases, caveats)
        found.append(_judge(one.score, level, len(scores) * (one.images if level.single else 1)))
    order: list[Outcome] = ["alarm", "review", "no alarm"]
    p = min(p for _, p, _ in found)
    outcome = min((outcome for outcome, _, _ in found), key=order.index)
    rules = " ".join(dict.fromkeys(rule for _, _, rule in found))
    return {
        "outcome": outcome,
        "p_value": round(p, 6),
        "rule": rules,
        "caveats": list(caveats),
    }


def _judge(score: float, level: Level, counts: int) -> tuple[Outcome, float, str]:
    tail = _tail(level.normals)
    p = float(min(1.0, counts * p_values([score], tail)[0]))
    rule = describe_rule(level)
    if counts > 1:
        threshold = alarm_threshold(tail, level.alarm.target / counts)
        above = "no score can" if threshold is None else f"only a score above {threshold:.4g} can"
        rule += (
            f" Here p counts {counts} times, once per detector and image, so {above} give an alarm."
        )
    if p <= level.alarm.target + 1e-12:
        return "alarm", p, rule
    return ("review" if score > level.review else "no alarm"), p, rule


def undecided(why: str, caveats: Iterable[str] = ()) -> dict[str, Any]:
    """No decision, and why."""
    return {
        "outcome": "not decided",
        "p_value": None,
        "rule": f"Nothing is decided: {why}.",
        "caveats": list(caveats),
    }


def caveats_of(decisions: Decisions, facts: Mapping[str, float], precision: str) -> list[str]:
    """What speaks against comparing a case with the calibration's normals."""
    found = [
        f"{name} {text}: unlike the normals of the calibration"
        for name, text in unlike(facts, decisions.reference).items()
    ]
    if precision != decisions.precision:
        found.append(f"calibrated in {decisions.precision}, scored in {precision}")
    return found


def drift_of(decisions: Decisions, facts: Sequence[Mapping[str, float]]) -> list[str]:
    """How a batch of cases differs from the calibration's normals; empty where it does not."""
    return [
        f"{name}: {text}; decisions hold for cases like the calibration's"
        for name, text in batch_drift(facts, decisions.reference).items()
    ]


def _tail(normals: Normals) -> NormalTail:
    return NormalTail(np.array(normals.scores), np.array(normals.shares), normals.units)
