"""What a calibrated detector decides about a slide, and whether a batch is like its calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esad_med.method.decisions import Decisions
from esad_med.method.detector import Detector
from esad_med.method.scores import slide_score
from esad_med.method.scoring_networks import Precision
from esad_med.outputs.report import ReportDecision
from pipelines.case_facts import score_facts
from pipelines.deciding import (
    CaseScore,
    Floats,
    caveats_of,
    decide,
    drift_of,
    pointed_at,
    sample_p_values,
    undecided,
)
from pipelines.operating_points import describe_normals, exactly, percent

DECIDED_COLUMNS = ("p_value", "pointed_at")


@dataclass(frozen=True)
class DecidedSlide:
    """The decisions about a slide and its tiles.

    Attributes:
        decision: of `decide`.
        p: (n,) p-value of each tile.
        pointed_at: (n,) the tiles to look at.
        false_share: of normals among these, at most, on average.
        calibration: what the p-values rest on, in words.
        facts: of the slide, for the comparison with the calibration.
        least_p: of a tile that scores above all of the calibration's.
    """

    decision: Mapping[str, Any]
    p: Floats
    pointed_at: npt.NDArray[np.bool_]
    false_share: float
    calibration: str
    facts: Mapping[str, float]
    least_p: float

    def to_dict(self) -> dict[str, Any]:
        """Its part of ``slide.json``."""
        return {
            "decision": {
                **self.decision,
                "tiles_pointed_at": int(self.pointed_at.sum()),
                "false_share": self.false_share,
                "calibration": self.calibration,
            },
            "facts": {name: round(value, 6) for name, value in self.facts.items()},
        }

    def tile_cells(self, index: int) -> tuple[str, int]:
        """`DECIDED_COLUMNS` of a tile."""
        return f"{self.p[index]:.6g}", int(self.pointed_at[index])

    def for_report(self) -> ReportDecision:
        """What the report shows of it."""
        count = int(self.pointed_at.sum())
        tiles = (
            f"{count:,} of {len(self.p):,} tiles pointed at; of such tiles at most"
            f" {exactly(self.false_share)} are normal ones, on average (Benjamini-Hochberg)."
        )
        if not count:
            tiles += f" No tile's p can be below {percent(self.least_p)} with this calibration."
        return ReportDecision(
            outcome=self.decision["outcome"],
            p_value=self.decision["p_value"],
            rule=self.decision["rule"],
            tiles=tiles,
            calibration=self.calibration,
            caveats=tuple(self.decision["caveats"]),
        )


def decide_slide(
    detector: Detector,
    score: npt.NDArray[Any],
    facts: Mapping[str, float],
    precision: Precision,
    tiling: Mapping[str, Any],
) -> DecidedSlide | None:
    """Decide about a slide by its tiles' scores; None where the detector is not calibrated.

    Args:
        detector: what scored them.
        score: (n,) of the tiles.
        facts: of the slide's colors and stains.
        precision: what the networks computed in.
        tiling: of `tiling_of`; of another one than the calibration's nothing is decided.
    """
    decisions = detector.decisions
    if decisions is None:
        return None
    facts = {**facts, **score_facts(score)}
    caveats = caveats_of(decisions, facts, precision)
    p = sample_p_values(decisions, score)
    level = decisions.cases or decisions.samples
    return DecidedSlide(
        decision=_decide(slide_score(score), decisions, tiling, caveats),
        p=p,
        pointed_at=pointed_at(decisions, p),
        false_share=decisions.discoveries,
        calibration=f"{level.kind}s: {describe_normals(level)}, calibrated {decisions.created}",
        facts=facts,
        least_p=1 / (decisions.samples.normals.units + 1),
    )


def _decide(
    score: float, decisions: Decisions, tiling: Mapping[str, Any], caveats: list[str]
) -> dict[str, Any]:
    if decisions.cases is not None and (other := _differences(tiling, decisions.tiling)):
        return undecided(
            f"slides are tiled otherwise than the calibration's ({other}), and slide scores hang on"
            " it",
            caveats,
        )
    return decide([CaseScore(score, decisions)], caveats=caveats)


def _differences(found: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Settings that differ, such as "tiles.stride_px 16, there 64"."""
    return ", ".join(
        f"{part}.{name} {value}, there {known[part].get(name)}"
        for part in known
        for name, value in found.get(part, {}).items()
        if value != known[part].get(name)
    )


def slides_drift(detector: Detector, slides: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the slides of a run differ from the calibration's, from their ``slide.json``."""
    if detector.decisions is None:
        return []
    return drift_of(detector.decisions, [found["facts"] for found in slides if "facts" in found])
