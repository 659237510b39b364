"""`esad-med screen`: slides become scores, a slide score, a heat map and a report each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esad_med.base.cases import Case
from esad_med.base.config import dump_yaml, load_config
from esad_med.base.errors import CaseError, ConfigError, ModelError
from esad_med.base.execution import HERE, Place, as_done, open_executor
from esad_med.base.locks import hold_folder
from esad_med.base.runs import (
    JOURNAL,
    Failure,
    Journal,
    Progress,
    Say,
    claim_run_folder,
    no_progress,
    output_error,
    write_json,
    write_text,
)
from esad_med.base.timing import RunClock
from esad_med.method.detector import Detector
from esad_med.method.encoder import Encoder
from esad_med.method.scoring_networks import Precision
from pipelines.embedding import input_form
from pipelines.pathology import config_of
from pipelines.screening_slide import ScreenedSlide, SlideScreener
from pipelines.screening_tables import read_earlier, run_facts, write_tables
from pipelines.slide_decisions import slides_drift
from pipelines.slide_exports import ScreeningConfig, require_extras, write_run_exports
from pipelines.viewing import write_index


@dataclass
class ScreeningSummary:
    """The outcome of a screening run."""

    out: Path
    slides: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, outcome: ScreenedSlide | Failure) -> None:
        """Take in what became of a slide."""
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        else:
            self.failures += [Failure(**value) for value in outcome.found["failures"]]
            self.slides.append(outcome.found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "out": str(self.out),
            "slides": self.slides,
            "failures": [asdict(failure) for failure in self.failures],
        }


def screening_config(
    detector: Detector,
    path: Path | None,
    overrides: Sequence[str],
    *,
    encoder: Encoder | None = None,
) -> ScreeningConfig:
    """The detector's own preparation, with changes that do not touch its contract.

    Args:
        detector: what will score the tiles.
        path: a YAML file of changes, or None.
        overrides: ``--set`` strings.
        encoder: what will make embeddings of the tiles, or None.

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
    config = load_config(ScreeningConfig, path, overrides, start=ScreeningConfig(**dict(own)))
    stained = config.stain.method != "none"
    detector.check_input(
        source="slides",
        **input_form(config.tiles.size_px, encoder, trained_px=own.tiles.size_px, channels=3),
        modality="histology",
        mpp=config.tiles.mpp,
        stain=config.stain.method,
        stain_target=target.to_dict() if stained else None,
    )
    return config


def screen_slides(
    cases: Sequence[Case],
    detector: Detector,
    out: Path,
    config: ScreeningConfig,
    *,
    precision: Precision = "float32",
    encoder: Encoder | None = None,
    place: Place = HERE,
    say: Say,
    progress: Progress = no_progress,
) -> ScreeningSummary:
    """Screen slides into ``out``, a folder per slide; complete slides of an earlier run are kept.

    Writes ``CASE/scores.csv``, ``slide.json``, ``heatmap.tif``, ``report.html``, ``thumbnail.jpg``
    and what ``config.exports`` names, and for the run ``index.html``, ``slides.csv``,
    ``failures.csv``, ``config.yaml``, ``run.json`` and ``journal.jsonl``. The two tables and the
    index also keep what earlier runs with the same detector and settings say of other slides.

    Args:
        cases: the slides.
        detector: what scores their tiles; loaded from its folder, if the place is not this process.
        out: the run folder.
        config: of `screening_config`.
        precision: what the networks compute in.
        encoder: makes the embeddings that the detector was trained on, or None.
        place: where slides are screened.
        say: receives a line per slide.
        progress: called while tiles are scored; with several workers, after each slide.

    Raises:
        ConfigError: ``out`` cannot be written, or holds something else than a screening, or another
            run is at work there; the detector does not score in this precision; or a package that
            ``config.exports`` needs is missing.
    """
    detector.check_precision(precision)
    require_extras(config.exports)
    _refuse_other_folders(out, cases)
    claim_run_folder(out, "screen")
    with hold_folder(out) as turn:
        clock = RunClock()
        earlier = read_earlier(out, cases, detector, config, precision)
        write_text(out / "config.yaml", dump_yaml(config))
        facts = run_facts(detector, precision)
        write_json(out / "run.json", facts)
        screener = SlideScreener(detector, config, out.resolve(), precision, turn, encoder)
        summary = ScreeningSummary(out)
        _screen_each(cases, screener, place, summary, clock, say, progress)
        write_tables(out, summary.slides, summary.failures, cases=cases, earlier=earlier)
        write_run_exports(out, config.exports, detector)
        for warning in (drift := slides_drift(detector, summary.slides)):
            say(f"unlike the calibration: {warning}")
        write_json(out / "run.json", {**facts, "drift": drift, **clock.to_dict()})
        write_index(out)
    return summary


def _screen_each(
    cases: Sequence[Case],
    screener: SlideScreener,
    place: Place,
    summary: ScreeningSummary,
    clock: RunClock,
    say: Say,
    progress: Progress,
) -> None:
    journal = Journal(screener.out / JOURNAL)
    items = [(case, journal.key_of(case.case_id)) for case in cases]
    limits = screener.config.limits
    with open_executor(place, progress=progress, shared=screener.out) as executor:
        results = as_done(executor, screener.screen, items, ahead=place.ahead, limits=limits)
        found = {}
        for done, ((case, _), result) in enumerate(results, 1):
            if isinstance(result, CaseError):
                result = Failure.of(case.case_id, "screen", result)
            found[case.case_id] = result
            if isinstance(result, Failure):
                clock.counts["slides set aside"] += 1
                say(f"{case.case_id}: set aside, {result.message}")
                continue
            if result.seconds:
                journal.record(case.case_id, result.key)
            _count(clock, result)
            say(_line(result.found))
            if place.silent:
                progress("screening", done, len(cases))
    for case in cases:
        summary.add(found[case.case_id])


def _count(clock: RunClock, result: ScreenedSlide) -> None:
    if not result.seconds:
        clock.counts["slides kept"] += 1
        return
    clock.stages.add(result.seconds)
    clock.counts["slides screened"] += 1
    clock.counts["tiles scored"] += int(result.found["tiles"])
    clock.counts["tiles set aside"] += int(result.found["unreadable_tiles"])


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


def _line(found: dict[str, Any]) -> str:
    decision = found.get("decision")
    return (
        f"{found['case_id']}: {decision['outcome'] + ', ' if decision else ''}slide score"
        f" {found['slide_score']:.4g}, {found['tiles']} tiles,"
        f" {found['area_above_threshold_mm2']:.3g} mm² above the threshold"
    )
