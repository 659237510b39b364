"""The scores of one slide, and what is written of them: table, summary, heat map and report."""

import datetime
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.slides import Slide
from data_prep.tiles import TileGrid, read_tiles
from data_prep.tissue import TissueMask
from esad_med.base.cases import Case
from esad_med.base.runs import Failure, atomic_folder, versions, write_csv, write_json
from esad_med.method.detector import Detector
from esad_med.method.scores import SLIDE_RULE, Scores, slide_score
from esad_med.method.scoring_networks import Precision
from esad_med.outputs.batch_index import write_thumbnail
from esad_med.outputs.explain import TileExplanation
from esad_med.outputs.heatmap import normal_limits, write_heatmap
from esad_med.outputs.report import SlideReport, TilePicture, write_report
from pipelines.explaining import most_anomalous
from pipelines.slide_decisions import DECIDED_COLUMNS, DecidedSlide

_OVERVIEW_PX = 900
_QUANTILES = (0.5, 0.95, 0.99)
ALARM_PERCENTILE = 99.0
_THRESHOLD_RULE = "99th percentile of held-out normal tiles"
SLIDE_COLUMNS = (
    "case_id",
    "slide_score",
    "slide_percentile",
    "maximum",
    "area_above_threshold_mm2",
    "share_above_threshold",
    "tiles",
    "unreadable_tiles",
)
_TILE_COLUMNS = (
    "sample_id",
    "case_id",
    "patient_id",
    "x_level0",
    "y_level0",
    "tissue_fraction",
    "truth",
    "score",
    "percentile",
    "reconstruction",
    "norm",
)


@dataclass(frozen=True)
class SlideScores:
    """The scores of one slide with their geometry, ready for a report.

    Attributes:
        grid: the tiles that were scored; ``scores`` and ``percentiles`` are in its order.
        percentiles: (n,) in 0..100, among held-out normals of the detector.
        precision: what the networks computed in.
        decided: what a calibrated detector decides; None by one that is not.
        explanations: index of a tile -> what the detector says of it, of those that a report shows.
        truth: (n,) 0 / 1 where the case is annotated or normal, else None.
    """

    case: Case
    grid: TileGrid
    scores: Scores
    percentiles: npt.NDArray[np.float32]
    threshold: float
    slide_percentile: float
    truth: npt.NDArray[np.int8] | None
    tissue: TissueMask
    precision: Precision
    unreadable: list[Failure]
    decided: DecidedSlide | None = None
    explanations: Mapping[int, TileExplanation] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """The slide's numbers, as in ``slide.json`` and ``slides.csv``."""
        score = self.scores.score
        above = int((score > self.threshold).sum())
        return {
            "case_id": self.case.case_id,
            "slide_score": round(slide_score(score), 6),
            "slide_percentile": round(self.slide_percentile, 2),
            "maximum": round(float(score.max()), 6),
            "area_above_threshold_mm2": round(above * self.tile_area_mm2, 4),
            "share_above_threshold": round(above / len(score), 6),
            "tiles": len(score),
            "unreadable_tiles": len(self.unreadable),
        }

    @property
    def tile_area_mm2(self) -> float:
        """Area that one tile stands for: its stride squared."""
        stride_um = (
            self.grid.stride_level0 / self.grid.edge_level0 * self.grid.tile_px * self.grid.mpp
        )
        return float(stride_um**2 / 1e6)


def write_slide_results(
    folder: Path,
    result: SlideScores,
    slide: Slide,
    detector: Detector,
    *,
    exports: Callable[[Path], list[Failure]],
) -> None:
    """Write tables, heat map, report, thumbnail and exports of a slide, all or nothing."""
    provenance = _provenance(result, slide, detector)
    limits = normal_limits(_quantiles(detector))
    with atomic_folder(folder) as temporary:
        failures = [*result.unreadable, *exports(temporary)]
        columns = (*_TILE_COLUMNS, *(DECIDED_COLUMNS if result.decided else ()))
        write_csv(temporary / "scores.csv", columns, _tile_rows(result))
        write_json(
            temporary / "slide.json",
            {
                **result.summary,
                "slide_rule": SLIDE_RULE,
                "threshold": round(result.threshold, 6),
                "threshold_rule": _THRESHOLD_RULE,
                "truth": result.case.truth,
                "geometry": _geometry(result.grid, slide),
                "heatmap_limits": limits,
                **(result.decided.to_dict() if result.decided else {}),
                "provenance": provenance,
                "failures": [asdict(failure) for failure in failures],
                "intended_use": "research use only, not for diagnosis",
            },
        )
        write_heatmap(
            temporary / "heatmap.tif",
            result.scores.score,
            xy_level0=result.grid.xy_level0,
            edge_level0=result.grid.edge_level0,
            slide_size=slide.size_level0,
            slide_mpp=slide.mpp,
            limits=limits,
            label="anomaly score",
        )
        report = _report(result, slide, detector, provenance)
        write_report(temporary / "report.html", report)
        write_thumbnail(temporary / "thumbnail.jpg", report)


def _geometry(grid: TileGrid, slide: Slide) -> dict[str, Any]:
    """What places the tiles of scores.csv on the slide."""
    return {
        "size_level0": list(slide.size_level0),
        "mpp": slide.mpp,
        "edge_level0": grid.edge_level0,
        "stride_level0": grid.stride_level0,
    }


def _tile_rows(result: SlideScores) -> Iterator[tuple[object, ...]]:
    case, grid, scores = result.case, result.grid, result.scores
    for i, (x, y) in enumerate(grid.xy_level0.tolist()):
        yield (
            f"{case.case_id}_{x}_{y}",
            case.case_id,
            case.patient_id,
            x,
            y,
            f"{grid.tissue_fraction[i]:.4f}",
            "" if result.truth is None else result.truth[i],
            f"{scores.score[i]:.6g}",
            f"{result.percentiles[i]:.2f}",
            f"{scores.reconstruction[i]:.6g}",
            f"{scores.norm[i]:.6g}",
            *(result.decided.tile_cells(i) if result.decided else ()),
        )


def _report(
    result: SlideScores, slide: Slide, detector: Detector, provenance: dict[str, str]
) -> SlideReport:
    order = np.argsort(-result.scores.score, kind="stable")
    shown = most_anomalous(result.scores.score)
    count = len(shown)
    summary = result.summary
    thumbnail, downsample = _overview(result, slide)
    return SlideReport(
        case_id=result.case.case_id,
        slide_score=summary["slide_score"],
        slide_rule=SLIDE_RULE,
        slide_percentile=summary["slide_percentile"],
        maximum=summary["maximum"],
        threshold=result.threshold,
        threshold_rule=_THRESHOLD_RULE,
        area_above_mm2=summary["area_above_threshold_mm2"],
        area_tiled_mm2=len(order) * result.tile_area_mm2,
        xy_level0=result.grid.xy_level0,
        edge_level0=result.grid.edge_level0,
        score=result.scores.score,
        percentile=result.percentiles,
        reconstruction=result.scores.reconstruction,
        norm=result.scores.norm,
        thumbnail=thumbnail,
        downsample=downsample,
        slide_size=slide.size_level0,
        slide_mpp=slide.mpp,
        normal_quantiles=_quantiles(detector),
        most=[
            replace(tile, explanation=result.explanations.get(tile.index))
            for tile in _tile_pictures(slide, result.grid, shown)
        ],
        least=_tile_pictures(slide, result.grid, order[::-1][: min(count, len(order) - count)]),
        provenance=provenance,
        decision=result.decided.for_report() if result.decided else None,
        failures=[(failure.case_id, failure.message) for failure in result.unreadable],
        created=datetime.date.today().isoformat(),
    )


def _overview(result: SlideScores, slide: Slide) -> tuple[npt.NDArray[np.uint8], float]:
    """A picture of the slide fine enough for the report, and its level-0 pixels per pixel."""
    wanted = max(slide.size_level0) / _OVERVIEW_PX
    if wanted >= result.tissue.downsample:
        return result.tissue.thumbnail, result.tissue.downsample
    return slide.thumbnail(wanted * slide.mpp)


def _quantiles(detector: Detector) -> dict[float, float]:
    return {share: detector.threshold_at(100 * share) for share in _QUANTILES}


def _tile_pictures(
    slide: Slide, grid: TileGrid, order: npt.NDArray[np.integer]
) -> list[TilePicture]:
    """The tiles as scanned, in the given order; read again, so that none had to be kept."""
    rising = np.sort(order)
    pictures = {
        int(rising[i]): tile
        for batch in read_tiles(slide, grid.subset(rising), on_error=lambda *_: None)
        for i, tile in zip(batch.indices.tolist(), batch.tiles, strict=True)
    }
    return [TilePicture(int(i), pictures[int(i)]) for i in order if int(i) in pictures]


def _provenance(result: SlideScores, slide: Slide, detector: Detector) -> dict[str, str]:
    grid = result.grid
    width, height = slide.size_level0
    taken = "as it is" if grid.read_px == grid.tile_px else f"{grid.read_px} px averaged by area"
    return {
        "Slide file": slide.path.name,
        "Slide fingerprint": slide.fingerprint,
        "Scanner format": slide.vendor,
        "Size at level 0": f"{width} x {height} px at {slide.mpp:.4f} µm/px ({slide.mpp_source})",
        "Tiles": f"{grid.tile_px} px at {grid.mpp:.4f} µm/px, level {grid.level} {taken}",
        "Stain normalization": detector.input.stain or "none",
        "Detector": detector.digest,
        **({"Encoder": str(detector.input.encoder)} if detector.input.encoder else {}),
        "Scored in": result.precision,
        **{f"Version of {name}": version for name, version in versions().items()},
    }
