"""Operating points in words and as rows, for the command line, reports and tables."""

from collections.abc import Sequence
from typing import Any

from esad_med.method.decisions import Decisions, Kind, Level, OperatingPoint, Share


def operating_points(decisions: Decisions) -> list[dict[str, Any]]:
    """A row per operating point: level, aim, and the fields of `OperatingPoint`."""
    rows = []
    for level in (decisions.samples, decisions.cases):
        for aim, point in _points(level) if level else ():
            rows.append({"level": level.kind if level else "", "aim": aim, **point.model_dump()})
    return rows


def point_lines(decisions: Decisions) -> list[str]:
    """What `esad-med calibrate` prints."""
    lines = []
    for level in (decisions.samples, decisions.cases):
        if level is None:
            continue
        lines.append(f"{plural(level.kind)}: {describe_normals(level)}")
        lines += [f"  {_describe_point(aim, point)}" for aim, point in _points(level)]
        lines.append(f"  {describe_review(level)}")
    if decisions.no_cases:
        lines.append(f"no decisions about whole cases: {decisions.no_cases}")
    return lines


def describe_rule(level: Level) -> str:
    """How scores of this kind become decisions, and what that promises, in one sentence each."""
    alarm = level.alarm
    low, high = alarm.false_alarms[1:]
    return (
        f"Alarm when p is at most {exactly(alarm.target)}, which is a {level.kind} score above"
        f" {alarm.threshold:.4g}: on average at most {exactly(alarm.target)} of new normal"
        f" {plural(level.kind)} like the calibration's give one, with its {level.normals.units}"
        f" independent normals between {percent(low)} and {percent(high)}."
        f" {describe_review(level).capitalize()}."
    )


def describe_review(level: Level) -> str:
    """The zone in which nothing is decided, in words."""
    if level.review >= level.alarm.threshold:
        return f"no zone of review ({level.review_rule.removeprefix('none: ')})"
    return f"review, undecided, from a score of {level.review:.4g} on: {level.review_rule}"


def describe_normals(level: Level) -> str:
    """How many normals there are to compare with."""
    normals = level.normals
    by = "" if normals.unit == "sample" else f" of {normals.units} {_units(normals.unit)}"
    return f"{normals.count} normal{by}, {level.anomalous} anomalous units"


def plural(kind: Kind) -> str:
    """Such as "studies"."""
    return "studies" if kind == "study" else f"{kind}s"


def exactly(share: float) -> str:
    """A share that was asked for, such as "12.5 %"."""
    return f"{100 * share:g} %"


def percent(share: float) -> str:
    """A share that was found, such as "0.32 %"."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.3g} %"


def _units(unit: str) -> str:
    return f"{unit}s"


def _points(level: Level) -> Sequence[tuple[str, OperatingPoint]]:
    alarms = sorted((level.alarm, *level.others), key=lambda point: point.target)
    found = [("false alarms", point) for point in alarms]
    return [*found, ("sensitivity", level.sensitive)] if level.sensitive else found


def _describe_point(aim: str, point: OperatingPoint) -> str:
    low, high = point.interval
    text = (
        f"{exactly(point.target)} {aim}: score above {point.threshold:.4g} ({low:.4g} to"
        f" {high:.4g}); false alarms {_share(point.false_alarms)}"
    )
    return f"{text}; sensitivity {_share(point.sensitivity)}" if point.sensitivity else text


def _share(share: Share) -> str:
    return f"{percent(share[0])} ({percent(share[1])} to {percent(share[2])})"
