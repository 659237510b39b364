"""`esad-med screen`: slides become scores, a slide score, a heat map and a report each."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.slides import Slide
from data_prep.tiles import TileBatch
from esad_med.base.cases import Case
from esad_med.base.config import dump_yaml, load_config
from esad_med.base.errors import CaseError, ConfigError, EsadError, ModelError
from esad_med.base.overlap import read_ahead
from esad_med.base.runs import (
    JOURNAL,
    Failure,
    Journal,
    Progress,
    Say,
    claim_run_folder,
    digest_bytes,
    digest_file,
    no_progress,
    output_error,
    read_json,
    write_json,
    write_text,
)
from esad_med.method.detector import Detector
from esad_med.method.scores import slide_score
from esad_med.method.scoring_networks import Precision
from pipelines.pathology import (
    LostTiles,
    PathologyConfig,
    case_annotation,
    config_of,
    normalized_tiles,
    open_case,
    prepare_slide,
    tumor_fractions,
)
from pipelines.screening_tables import read_earlier, run_facts, write_tables
from pipelines.slide_results import (
    ALARM_PERCENTILE,
    SlideScores,
    write_slide_results,
)
from pipelines.tiling import identity
from pipelines.tiling_slide import label_tiles


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
    precision: Precision = "float32",
    progress: Progress = no_progress,
) -> SlideScores:
    """Score the tiles of one slide, streaming: a few batches of tiles are in memory at a time.

    They are read and normalized in a thread while those before them are scored.
    """
    target = config_of(detector.contract.preparation)[1]
    annotation = case_annotation(case, slide)
    if annotation and case.truth is None:
        case = replace(case, truth=int(annotation.tumor.area > 0))
    prepared = prepare_slide(slide, config)
    grid = prepared.grid
    indices: list[npt.NDArray[np.int64]] = []
    lost = LostTiles(case.case_id, grid)

    def tiles(batches: Iterator[TileBatch]) -> Iterator[npt.NDArray[np.uint8]]:
        for batch in batches:
            indices.append(batch.indices)
            yield batch.tiles
            progress(f"screening {case.case_id}", int(batch.indices[-1]) + 1, len(grid))

    with read_ahead(normalized_tiles(prepared, config.stain, target, lost)) as batches:
        scores = detector.score(tiles(batches), precision=precision)
    grid = grid.subset(np.concatenate(indices))
    fractions = tumor_fractions(case, annotation, grid)
    _, truth = label_tiles(case, fractions, len(grid), config)
    return SlideScores(
        case=case,
        grid=grid,
        scores=scores,
        percentiles=detector.percentile(scores.score),
        threshold=detector.threshold_at(ALARM_PERCENTILE),
        slide_percentile=float(detector.percentile(np.array([slide_score(scores.score)]))[0]),
        truth=None if truth.isna().any() else truth.to_numpy(dtype=np.int8),
        tissue=prepared.tissue,
        precision=precision,
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
    precision: Precision = "float32",
    say: Say,
    progress: Progress = no_progress,
) -> ScreeningSummary:
    """Screen slides into ``out``, a folder per slide; complete slides of an earlier run are kept.

    Writes ``CASE/scores.csv``, ``slide.json``, ``heatmap.tif`` and ``report.html``, and for the
    run ``slides.csv``, ``failures.csv``, ``config.yaml``, ``run.json`` and ``journal.jsonl``. The
    two tables also keep what earlier runs with the same detector and settings say of other slides.

    Raises:
        ConfigError: ``out`` cannot be written, or holds something else than a screening; or the
            detector does not score in this precision.
    """
    detector.check_precision(precision)
    _refuse_other_folders(out, cases)
    claim_run_folder(out, "screen")
    earlier = read_earlier(out, cases, detector, config, precision)
    write_text(out / "config.yaml", dump_yaml(config))
    write_json(out / "run.json", run_facts(detector, precision))
    journal = Journal(out / JOURNAL)
    summary = ScreeningSummary(out)
    for case in cases:
        try:
            with open_case(case, config.limits) as slide:
                found = _screen_once(
                    case, slide, detector, out, config, precision, journal, progress
                )
        except ConfigError:
            raise  # the output folder, not the case
        except EsadError as error:
            summary.failures.append(Failure.of(case.case_id, "screen", error))
            say(f"{case.case_id}: set aside, {error}")
            continue
        summary.failures += [Failure(**value) for value in found["failures"]]
        summary.slides.append(found)
        say(_line(found))
    write_tables(out, summary.slides, summary.failures, cases=cases, earlier=earlier)
    return summary


def _refuse_other_folders(out: Path, cases: Sequence[Case]) -> None:
    """Results replace results, nothing else: not the data folder ``CASE`` of a ``CASE.mrxs``."""
    try:
        others = [case.case_id for case in cases if _is_other(out / case.case_id)]
    except OSError as error:
        raise output_error(out, error) from error
    if others:
        name = out / others[0]
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
    precision: Precision,
    journal: Journal,
    progress: Progress,
) -> dict[str, Any]:
    key = _case_key(case, slide, detector, config, precision)
    result_file = out / case.case_id / "slide.json"
    if journal.is_done(case.case_id, key):
        with suppress(CaseError):  # missing or damaged since: screen it again
            return read_json(result_file, CaseError)
    result = screen_slide(case, slide, detector, config, precision=precision, progress=progress)
    write_slide_results(out / case.case_id, result, slide, detector)
    journal.record(case.case_id, key)
    return read_json(result_file, ConfigError)


def _case_key(
    case: Case, slide: Slide, detector: Detector, config: PathologyConfig, precision: Precision
) -> str:
    annotation = identity(case.annotation, digest_file)
    facts = (detector.digest, slide.fingerprint, slide.mpp, case.truth, case.patient_id, annotation)
    rounded = [] if precision == "float32" else [precision.encode()]
    settings = config.model_dump_json(exclude={"limits"})
    return digest_bytes(repr(facts).encode(), settings.encode(), *rounded)


def _line(found: dict[str, Any]) -> str:
    return (
        f"{found['case_id']}: slide score {found['slide_score']:.4g}, {found['tiles']} tiles,"
        f" {found['area_above_threshold_mm2']:.3g} mm² above the threshold"
    )
