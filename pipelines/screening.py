"""`esad-med screen`: slides become scores, a slide score, a heat map and a report each."""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.annotations import tumor_fraction
from data_prep.slides import Slide, open_slide
from data_prep.tiles import TileGrid, read_tiles
from data_prep.tissue import TissueMask
from esad_med.base.cases import Case
from esad_med.base.config import dump_yaml, load_config
from esad_med.base.errors import CaseError, ConfigError, EsadError, ModelError
from esad_med.base.runs import (
    Failure,
    Journal,
    Progress,
    Say,
    atomic_folder,
    digest_bytes,
    digest_file,
    ensure_folder,
    no_progress,
    output_error,
    read_json,
    versions,
    write_csv,
    write_failures,
    write_json,
    write_text,
)
from esad_med.method.detector import Detector
from esad_med.method.scores import SLIDE_RULE, Scores, slide_score
from esad_med.outputs.heatmap import normal_limits, write_heatmap
from esad_med.outputs.report import SlideReport, TilePicture, write_report
from pipelines.pathology import (
    LostTiles,
    PathologyConfig,
    case_annotation,
    config_of,
    normalized_tiles,
    prepare_slide,
)
from pipelines.tiling import identity, label_tiles

_JOURNAL = "journal.jsonl"
_SHOWN_TILES = 12
_QUANTILES = (0.5, 0.95, 0.99)
_ALARM_PERCENTILE = 99.0
_THRESHOLD_RULE = "99th percentile of held-out normal tiles"
_SLIDE_COLUMNS = (
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
    unreadable: list[Failure]

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


@dataclass
class ScreeningSummary:
    """The outcome of a screening run."""

    out: Path
    slides: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "out": str(self.out),
            "slides": self.slides,
            "failures": [asdict(failure) for failure in self.failures],
        }


def screen_slide(
    case: Case,
    slide: Slide,
    detector: Detector,
    config: PathologyConfig,
    *,
    progress: Progress = no_progress,
) -> SlideScores:
    """Score the tiles of one slide, streaming: no more than a batch of tiles is in memory."""
    target = config_of(detector.contract.preparation)[1]
    annotation = case_annotation(case, slide)
    prepared = prepare_slide(slide, config)
    grid = prepared.grid
    indices: list[npt.NDArray[np.int64]] = []
    lost = LostTiles(case.case_id, grid)

    def tiles() -> Iterator[npt.NDArray[np.uint8]]:
        for batch in normalized_tiles(prepared, config.stain, target, lost):
            indices.append(batch.indices)
            yield batch.tiles
            progress(f"screening {case.case_id}", int(batch.indices[-1]) + 1, len(grid))

    scores = detector.score(tiles())
    grid = grid.subset(np.concatenate(indices))
    fractions = tumor_fraction(annotation, grid.xy_level0, grid.edge_level0) if annotation else None
    _, truth = label_tiles(case, fractions, len(grid), config)
    return SlideScores(
        case=case,
        grid=grid,
        scores=scores,
        percentiles=detector.percentile(scores.score),
        threshold=detector.threshold_at(_ALARM_PERCENTILE),
        slide_percentile=float(detector.percentile(np.array([slide_score(scores.score)]))[0]),
        truth=None if truth.isna().any() else truth.to_numpy(dtype=np.int8),
        tissue=prepared.tissue,
        unreadable=lost.failures,
    )


def screening_config(
    detector: Detector, path: Path | None, overrides: Sequence[str]
) -> PathologyConfig:
    """The detector's own preparation, with changes that do not touch its contract.

    Args:
        detector: what will score the tiles.
        path: a YAML file of changes, or None.
        overrides: ``--set`` strings.

    Raises:
        ModelError: the changes would feed the detector tiles it was not trained on.
    """
    prepared = detector.contract.preparation
    if str(prepared.get("protocol")).endswith("by cell"):
        raise ModelError(
            "this detector was trained on cells that were stain-normalized one by one (protocol"
            " dpa), slides are normalized with one matrix each; train it on the variant `tile"
            " --protocol dpa --set stain_by=slide`"
        )
    own, target = config_of(prepared)
    config = load_config(PathologyConfig, path, overrides, start=own)
    stained = config.stain.method != "none"
    detector.check_input(
        modality="histology",
        channels=3,
        size=(config.tiles.size_px, config.tiles.size_px),
        value_range=(0.0, 255.0),
        mpp=config.tiles.mpp,
        stain=config.stain.method,
        stain_target=target.to_dict() if stained else None,
    )
    return config


def screen_slides(
    cases: Sequence[Case],
    detector: Detector,
    out: Path,
    config: PathologyConfig,
    *,
    say: Say,
    progress: Progress = no_progress,
) -> ScreeningSummary:
    """Screen slides into ``out``, a folder per slide; complete slides of an earlier run are kept.

    Writes ``CASE/scores.csv``, ``slide.json``, ``heatmap.tif`` and ``report.html``, and for the
    run ``slides.csv``, ``failures.csv``, ``config.yaml``, ``run.json`` and ``journal.jsonl``.

    Raises:
        ConfigError: ``out`` cannot be written, or holds something else than a screening.
    """
    _refuse_other_folder(out, cases)
    ensure_folder(out)
    (out / _JOURNAL).touch()  # tells a screening's folder from any other
    write_text(out / "config.yaml", dump_yaml(config))
    journal = Journal(out / _JOURNAL)
    summary = ScreeningSummary(out)
    for case in cases:
        try:
            with open_slide(case.path, mpp=case.mpp) as slide:
                found = _screen_once(case, slide, detector, out, config, journal, progress)
        except ConfigError:
            raise  # the output folder, not the case
        except EsadError as error:
            summary.failures.append(Failure.of(case.case_id, "screen", error))
            say(f"{case.case_id}: set aside, {error}")
            continue
        summary.failures += [Failure(**value) for value in found["failures"]]
        summary.slides.append(found)
        say(_line(found))
    _write_run(out, summary, cases, detector)
    return summary


def _refuse_other_folder(out: Path, cases: Sequence[Case]) -> None:
    """Results replace results, nothing else: not the data folder ``CASE`` of a ``CASE.mrxs``."""
    try:
        used = out.is_dir() and any(out.iterdir()) and not (out / _JOURNAL).exists()
        others = [case.case_id for case in cases if _is_other(out / case.case_id)]
    except OSError as error:
        raise output_error(out, error) from error
    if used or others:
        name = out / others[0] if others else out
        raise ConfigError(f"{name}: exists and is no result of `screen`; choose another --out")


def _is_other(folder: Path) -> bool:
    ours = ("slide.json", "scores.csv", "report.html")
    return folder.exists() and not any((folder / name).exists() for name in ours)


def _screen_once(
    case: Case,
    slide: Slide,
    detector: Detector,
    out: Path,
    config: PathologyConfig,
    journal: Journal,
    progress: Progress,
) -> dict[str, Any]:
    key = _case_key(case, slide, detector, config)
    result_file = out / case.case_id / "slide.json"
    if journal.is_done(case.case_id, key):
        with suppress(CaseError):  # missing or damaged since: screen it again
            return read_json(result_file, CaseError)
    result = screen_slide(case, slide, detector, config, progress=progress)
    write_slide_results(out / case.case_id, result, slide, detector)
    journal.record(case.case_id, key)
    return read_json(result_file, ConfigError)


def write_slide_results(
    folder: Path, result: SlideScores, slide: Slide, detector: Detector
) -> None:
    """Write scores.csv, slide.json, heatmap.tif and report.html, all or nothing."""
    provenance = _provenance(result, slide, detector)
    with atomic_folder(folder) as temporary:
        write_csv(temporary / "scores.csv", _TILE_COLUMNS, _tile_rows(result))
        write_json(
            temporary / "slide.json",
            {
                **result.summary,
                "slide_rule": SLIDE_RULE,
                "threshold": round(result.threshold, 6),
                "threshold_rule": _THRESHOLD_RULE,
                "truth": result.case.truth,
                "provenance": provenance,
                "failures": [asdict(failure) for failure in result.unreadable],
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
            limits=normal_limits(_quantiles(detector)),
            label="anomaly score",
        )
        write_report(temporary / "report.html", _report(result, slide, detector, provenance))


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
        )


def _report(
    result: SlideScores, slide: Slide, detector: Detector, provenance: dict[str, str]
) -> SlideReport:
    order = np.argsort(-result.scores.score, kind="stable")
    count = min(_SHOWN_TILES, (len(order) + 1) // 2)
    summary = result.summary
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
        thumbnail=result.tissue.thumbnail,
        downsample=result.tissue.downsample,
        slide_size=slide.size_level0,
        slide_mpp=slide.mpp,
        normal_quantiles=_quantiles(detector),
        most=_tile_pictures(slide, result.grid, order[:count]),
        least=_tile_pictures(slide, result.grid, order[::-1][: min(count, len(order) - count)]),
        provenance=provenance,
        failures=[(failure.case_id, failure.message) for failure in result.unreadable],
        created=datetime.date.today().isoformat(),
    )


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
        **{f"Version of {name}": version for name, version in versions().items()},
    }


def _case_key(case: Case, slide: Slide, detector: Detector, config: PathologyConfig) -> str:
    annotation = identity(case.annotation, digest_file)
    facts = (detector.digest, slide.fingerprint, slide.mpp, case.truth, case.patient_id, annotation)
    return digest_bytes(repr(facts).encode(), config.model_dump_json().encode())


def _line(found: dict[str, Any]) -> str:
    return (
        f"{found['case_id']}: slide score {found['slide_score']:.4g}, {found['tiles']} tiles,"
        f" {found['area_above_threshold_mm2']:.3g} mm² above the threshold"
    )


def _write_run(
    out: Path, summary: ScreeningSummary, cases: Sequence[Case], detector: Detector
) -> None:
    by_id = {case.case_id: case for case in cases}
    rows = []
    for found in summary.slides:
        case = by_id[found["case_id"]]
        truth = "" if case.truth is None else case.truth
        rows.append((*(found[name] for name in _SLIDE_COLUMNS), case.patient_id, truth))
    write_csv(out / "slides.csv", (*_SLIDE_COLUMNS, "patient_id", "truth"), rows)
    write_failures(out / "failures.csv", summary.failures)
    write_json(
        out / "run.json",
        {"command": "screen", "detector": detector.digest, "versions": versions()},
    )
