"""`esad-med triage`: radiographs become a ranked worklist, a residual map per image."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esad_med.base.config import dump_yaml
from esad_med.base.errors import CaseError
from esad_med.base.execution import HERE, Place, in_blocks, open_executor
from esad_med.base.identifiers import Pseudonyms, read_or_draw_key
from esad_med.base.locks import hold_folder
from esad_med.base.runs import (
    JOURNAL,
    Failure,
    Journal,
    Progress,
    Say,
    claim_run_folder,
    no_progress,
    versions,
    write_failures,
    write_json,
    write_text,
)
from esad_med.base.timing import RunClock
from pipelines.triage_eligibility import check_views
from pipelines.triage_files import find_candidates
from pipelines.triage_intake import Study, TriageConfig, take_in
from pipelines.triage_results import identifiers_of, studies_drift, write_tables
from pipelines.triage_scoring import ViewDetector, specs_of, study_blocks
from pipelines.triage_studies import PRIVATE, StudyScorer


@dataclass
class TriageSummary:
    """The outcome of a triage."""

    out: Path
    studies: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    passed_over: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "out": str(self.out),
            "studies": self.studies,
            "failures": [asdict(failure) for failure in self.failures],
            "passed_over": self.passed_over,
        }


def triage(
    paths: Sequence[Path],
    detectors: Mapping[str, ViewDetector],
    out: Path,
    config: TriageConfig,
    *,
    key_file: Path | None = None,
    identified: bool = False,
    dicom: bool = False,
    place: Place = HERE,
    say: Say,
    progress: Progress = no_progress,
) -> TriageSummary:
    """Score radiographs and rank their studies; complete studies of an earlier run are kept.

    Args:
        paths: files, folders, a DICOM tree, or one manifest.
        detectors: by view, of `load_detectors`.
        out: the run folder.
        config: eligibility and limits.
        key_file: the key of the pseudonyms, to share it between runs.
        identified: show identifiers in the worklist.
        dicom: also write a structured report and a secondary capture per DICOM study.
        place: where files are read and studies are scored.
        say: receives a line per study that was set aside.
        progress: called per image.

    Raises:
        CaseError: nothing was found, or a manifest cannot be used.
        ConfigError: ``out`` cannot be written, holds something else than a triage, or another run
            is at work there.
    """
    check_views(config.eligibility, sorted(detectors))
    candidates, others = find_candidates(paths, leave_out=out, limits=config.limits)
    if key_file:
        read_or_draw_key(key_file)  # a wrong one leaves nothing behind
    claim_run_folder(out, "triage")
    out.chmod(0o700)  # pictures of patients, and with --identifiers their names
    shared = out.resolve()
    with (
        hold_folder(out) as turn,
        open_executor(place, progress=progress, shared=shared) as executor,
    ):
        clock, summary = RunClock(), TriageSummary(out, passed_over=others)
        names = Pseudonyms(out / PRIVATE, key_file=key_file)
        with clock.stages.measure("take in"):
            intake = take_in(
                candidates,
                config,
                specs_of(detectors),
                names,
                executor=executor,
                ahead=place.ahead,
                progress=progress,
            )
        names.save()
        write_text(out / "config.yaml", dump_yaml(config))
        facts = _run_facts(detectors, names)
        write_json(out / "run.json", facts)
        for failure in intake.failures:
            _set_aside(summary, failure, say)
        scorer = StudyScorer(dict(detectors), shared, config, dicom, turn)
        found = list(
            _results(intake.studies, scorer, executor, place, summary, clock, say, progress)
        )
        shown = {s.case_id: identifiers_of(s) for s in intake.studies} if identified else {}
        summary.failures.sort(key=lambda failure: failure.case_id)
        write_failures(out / "failures.csv", summary.failures)
        for warning in (drift := studies_drift(found, detectors)):
            say(f"unlike the calibration: {warning}")
        with clock.stages.measure("worklist"):
            now = datetime.datetime.now()
            summary.studies = write_tables(
                out, found, summary.failures, detectors, config, shown, created=now, drift=drift
            )
        clock.counts["images looked at"] = len(candidates)
        clock.counts["images set aside"] = len(summary.failures)
        write_json(out / "run.json", {**facts, "drift": drift, **clock.to_dict()})
    return summary


def _run_facts(detectors: Mapping[str, ViewDetector], names: Pseudonyms) -> dict[str, Any]:
    return {
        "command": "triage",
        "detectors": {view: one.digest for view, one in detectors.items()},
        "key_fingerprint": names.fingerprint,
        "versions": versions(),
    }


def _set_aside(summary: TriageSummary, failure: Failure, say: Say) -> None:
    summary.failures.append(failure)
    say(f"{failure.case_id}: set aside, {failure.message}")


def _results(
    studies: Sequence[Study],
    scorer: StudyScorer,
    executor: Executor,
    place: Place,
    summary: TriageSummary,
    clock: RunClock,
    say: Say,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """The ``study.json`` of each study, scored now or by an earlier run.

    A block is scored whole if one of its studies is missing: so a study's last digits do not depend
    on where an earlier run was cut off.
    """
    journal = Journal(scorer.out / JOURNAL)
    todo, images = [], 0
    for block in study_blocks(studies):
        known = {s.case_id: found for s in block if (found := scorer.known(s, journal)) is not None}
        for found in known.values():
            summary.failures += [Failure(**value) for value in found["failures"]]
            clock.counts["studies kept"] += 1
            yield found
        if len(known) < len(block):
            todo.append([(study, study.case_id not in known) for study in block])
            images += sum(len(study.images) for study in block)
    outcomes = in_blocks(
        executor, scorer.score, todo, ahead=place.ahead, limits=scorer.config.limits
    )
    done = 0
    for (study, wanted), outcome in outcomes:
        done += len(study.images)
        progress("scoring radiographs", done, images)
        if not wanted:
            continue
        if isinstance(outcome, CaseError):
            _set_aside(summary, Failure.of(study.case_id, "score", outcome), say)
            continue
        clock.stages.add(outcome.seconds)
        for failure in outcome.failures:
            _set_aside(summary, failure, say)
        if outcome.found is None:
            continue
        clock.counts["studies scored"] += 1
        if outcome.refused is None:
            journal.record(study.case_id, scorer.key(study))
        else:
            summary.failures.append(outcome.refused)
            say(f"{study.case_id}: no DICOM results, {outcome.refused.message}")
        yield outcome.found
