"""Operating points of scores of one kind: what is promised, by which threshold, how surely."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from esad_med.assess.calibration import (
    alarm_threshold,
    bootstrap_rate,
    bootstrap_threshold,
    false_alarm_interval,
    least_anomalous,
    least_units,
    normal_tail,
    sensitivity_threshold,
    share_above,
)
from esad_med.base.config import Spec
from esad_med.method.decisions import Kind, Level, Normals, OperatingPoint
from pipelines.operating_points import exactly

Floats = npt.NDArray[np.float64]
Names = npt.NDArray[np.object_]


class CalibrationConfig(Spec):
    """What decisions are to promise."""

    false_alarms: float = Field(
        0.05, gt=0, le=0.5, description="Share of normals that may give an alarm."
    )
    sensitivity: float = Field(
        0.95, gt=0, lt=1, description="Share of anomalous cases above the zone of no alarm."
    )
    review: float = Field(
        0.2,
        gt=0,
        le=0.9,
        description="Share of normals above that zone, where too few anomalous cases are known.",
    )
    discoveries: float = Field(
        0.1, gt=0, lt=1, description="Share of normals among the tiles pointed at in a slide."
    )
    others: tuple[Annotated[float, Field(gt=0, le=0.5)], ...] = Field(
        (0.01, 0.05, 0.1, 0.2), description="Further rates of false alarms to list."
    )
    tiles_by: Literal["patient", "tile"] = Field(
        "patient",
        description="What weighs the same among tiles: patients, or (no guarantee) single tiles.",
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Of the bootstrap.")
    seed: int = Field(0, ge=0, description="Of the bootstrap.")


@dataclass(frozen=True)
class UnitScores:
    """Scores and the independent unit each belongs to, both (n,)."""

    score: Floats
    units: Names

    @property
    def count(self) -> int:
        """How many units there are."""
        return len(set(self.units))

    def rates_between(self, rate: float, ends: tuple[float, float]) -> tuple[float, float]:
        """Between which rates the true one lies of scores above a threshold between ``ends``.

        Of one score per unit it is the law of `false_alarm_interval`. Of several the tail turns
        thresholds into rates, with the next unit counted in as in a p-value; that is approximate.
        """
        if self.count == len(self.score):
            return false_alarm_interval(self.count, rate)
        tail = normal_tail(self.score, self.units)
        found = [(1 + tail.units * share_above(tail, end)) / (tail.units + 1) for end in ends]
        return min(rate, *found), max(rate, *found)


@dataclass(frozen=True)
class Scored:
    """Normal and anomalous scores of one kind.

    Attributes:
        kind: what they are of.
        unit: what is independent: patient, case or sample.
        normals: to compare with.
        anomalous: for the sensitivity; may be empty.
        single: whether every study is one image.
    """

    kind: Kind
    unit: str
    normals: UnitScores
    anomalous: UnitScores
    single: bool = False

    @classmethod
    def of(
        cls,
        kind: Kind,
        unit: str,
        scores: UnitScores,
        ill: npt.NDArray[np.bool_],
        *,
        single: bool = False,
    ) -> "Scored":
        """From scores that are normal where ``ill`` (n,) is False."""
        normals, anomalous = (
            UnitScores(scores.score[part], scores.units[part]) for part in (~ill, ill)
        )
        return cls(kind, unit, normals, anomalous, single)


def level_of(found: Scored, config: CalibrationConfig) -> Level:
    """The operating points of scores of one kind; the alarm's rate must be possible."""
    normals, anomalous = found.normals, found.anomalous
    tail = normal_tail(normals.score, normals.units)
    rates = {rate for rate in config.others if tail.units >= least_units(rate)}
    points = {rate: _alarm_point(found, rate, config) for rate in {*rates, config.false_alarms}}
    alarm = points.pop(config.false_alarms)
    sensitive = _sensitive_point(found, config)
    review, rule = _review_zone(alarm.threshold, sensitive, normals, config)
    return Level(
        kind=found.kind,
        normals=Normals(
            scores=tuple(tail.scores.tolist()),
            shares=tuple(tail.shares.tolist()),
            units=tail.units,
            unit=found.unit,
            count=len(normals.score),
        ),
        anomalous=anomalous.count,
        alarm=alarm,
        others=tuple(points[rate] for rate in sorted(points)),
        sensitive=sensitive,
        review=review,
        review_rule=rule,
        single=found.single,
    )


def _alarm_point(found: Scored, rate: float, config: CalibrationConfig) -> OperatingPoint:
    normals, anomalous = found.normals, found.anomalous
    threshold = alarm_threshold(normal_tail(normals.score, normals.units), rate)
    assert threshold is not None, "enough units were counted before"
    drawn = {"resamples": config.resamples, "seed": config.seed}
    interval = bootstrap_threshold(normals.score, rate, normals.units, **drawn)
    sensitivity = None
    if anomalous.count:
        sensitivity = bootstrap_rate(anomalous.score > threshold, anomalous.units, **drawn)
    return OperatingPoint(
        target=rate,
        threshold=threshold,
        interval=interval,
        false_alarms=(rate, *normals.rates_between(rate, interval)),
        sensitivity=sensitivity,
    )


def _sensitive_point(found: Scored, config: CalibrationConfig) -> OperatingPoint | None:
    """The threshold that keeps the sensitivity; None with too few independent anomalous ones."""
    normals, anomalous = found.normals, found.anomalous
    if anomalous.count < least_anomalous(config.sensitivity):
        return None
    threshold = sensitivity_threshold(anomalous.score, config.sensitivity, anomalous.units)
    assert threshold is not None, "enough units were counted before"
    # An anomalous score below the threshold is what a normal one above it is, with sides exchanged.
    mirrored, missed = UnitScores(-anomalous.score, anomalous.units), 1 - config.sensitivity
    drawn = {"resamples": config.resamples, "seed": config.seed}
    low, high = bootstrap_threshold(mirrored.score, missed, mirrored.units, **drawn)
    least, most = mirrored.rates_between(missed, (low, high))
    return OperatingPoint(
        target=config.sensitivity,
        threshold=threshold,
        interval=(-high, -low),
        false_alarms=bootstrap_rate(normals.score > threshold, normals.units, **drawn),
        sensitivity=(config.sensitivity, 1 - most, 1 - least),
    )


def _review_zone(
    alarm: float,
    sensitive: OperatingPoint | None,
    normals: UnitScores,
    config: CalibrationConfig,
) -> tuple[float, str]:
    """Where neither an alarm nor its absence is called for: from which score on, and why."""
    if sensitive is not None:
        rule = (
            f"below it {exactly(config.sensitivity)} sensitivity would be lost"
            if sensitive.threshold < alarm
            else f"none: alarms alone keep {exactly(config.sensitivity)} sensitivity"
        )
        return min(sensitive.threshold, alarm), rule
    threshold = alarm_threshold(normal_tail(normals.score, normals.units), config.review)
    rule = (
        f"the highest {exactly(config.review)} of normals, since fewer than"
        f" {least_anomalous(config.sensitivity)} independent anomalous ones are known"
    )
    return alarm if threshold is None else min(threshold, alarm), rule
