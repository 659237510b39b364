"""`esad-med triage`: radiographs become a ranked worklist, a residual map per image."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esad_med.base.config import dump_yaml
from esad_med.base.errors import CaseError, ConfigError, ImageError
from esad_med.base.identifiers import Pseudonyms, read_or_draw_key
from esad_med.base.runs import (
    JOURNAL,
    Failure,
    Journal,
    Progress,
    Say,
    claim_run_folder,
    digest_bytes,
    no_progress,
    read_json,
    versions,
    write_failures,
    write_json,
    write_text,
)
from pipelines.triage_eligibility import check_views
from pipelines.triage_files import find_candidates
from pipelines.triage_intake import Study, TriageConfig, take_in
from pipelines.triage_results import identifiers_of, read_study, write_study, write_tables
from pipelines.triage_scoring import StudyScore, ViewDetector, score_studies, specs_of

_PRIVATE = "private"


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
        say: receives a line per study that was set aside.
        progress: called per image.

    Raises:
        CaseError: nothing was found, or a manifest cannot be used.
        ConfigError: ``out`` cannot be written, or holds something else than a triage.
    """
    check_views(config.eligibility, sorted(detectors))
    candidates, others = find_candidates(paths, leave_out=out, limits=config.limits)
    if key_file:
        read_or_draw_key(key_file)  # a wrong one leaves nothing behind
    claim_run_folder(out, "triage")
    out.chmod(0o700)  # pictures of patients, and with --identifiers their names
    names = Pseudonyms(out / _PRIVATE, key_file=key_file)
    intake = take_in(candidates, config, specs_of(detectors), names, progress=progress)
    names.save()
    write_text(out / "config.yaml", dump_yaml(config))
    write_json(out / "run.json", _run_facts(detectors, names))
    summary = TriageSummary(out, failures=list(intake.failures), passed_over=others)
    for failure in intake.failures:
        say(f"{failure.case_id}: set aside, {failure.message}")
    found = list(_results(intake.studies, detectors, out, config, summary, dicom, say, progress))
    shown = {s.case_id: identifiers_of(s) for s in intake.studies} if identified else {}
    now = datetime.datetime.now()
    summary.failures.sort(key=lambda failure: failure.case_id)
    write_failures(out / "failures.csv", summary.failures)
    summary.studies = write_tables(
        out, found, summary.failures, detectors, config, shown, created=now
    )
    return summary


def _run_facts(detectors: Mapping[str, ViewDetector], names: Pseudonyms) -> dict[str, Any]:
    return {
        "command": "triage",
        "detectors": {view: one.digest for view, one in detectors.items()},
        "key_fingerprint": names.fingerprint,
        "versions": versions(),
    }


def _results(
    studies: Sequence[Study],
    detectors: Mapping[str, ViewDetector],
    out: Path,
    config: TriageConfig,
    summary: TriageSummary,
    dicom: bool,
    say: Say,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """The ``study.json`` of each study, scored now or by an earlier run."""
    journal = Journal(out / JOURNAL)
    waiting = []
    for study in studies:
        known = _known(study, _key(study, detectors, config, dicom), out, journal, dicom)
        if known is None:
            waiting.append(study)
        else:
            summary.failures += [Failure(**value) for value in known["failures"]]
            yield known
    for study, result in score_studies(waiting, dict(detectors), config.limits, progress=progress):
        if isinstance(result, list):
            summary.failures += result
            for failure in result:
                say(f"{failure.case_id}: set aside, {failure.message}")
            continue
        summary.failures += result.failures
        folder = out / "studies" / study.case_id
        write_study(folder, result)
        refused = _write_dicom(result, out, config) if dicom else None
        if refused is None:
            journal.record(study.case_id, _key(study, detectors, config, dicom))
        else:
            summary.failures.append(refused)
            say(f"{study.case_id}: no DICOM results, {refused.message}")
        yield read_json(folder / "study.json", ConfigError)


def _write_dicom(result: StudyScore, out: Path, config: TriageConfig) -> Failure | None:
    """Write a study's DICOM results; the failure where its header allows none."""
    from pipelines.dicom_results import write_results

    study = result.study.case_id
    try:
        write_results(result, out / _PRIVATE / "dicom" / study, limits=config.limits)
    except (CaseError, ImageError) as error:
        return Failure.of(study, "dicom", error)
    return None


def _known(
    study: Study, key: str, out: Path, journal: Journal, dicom: bool
) -> dict[str, Any] | None:
    """The result of an earlier run, unless something of it is missing or damaged since."""
    if not journal.is_done(study.case_id, key):
        return None
    if dicom and all(image.header.kind == "DICOM" for image in study.images):
        folder = out / _PRIVATE / "dicom" / study.case_id
        if not all((folder / name).exists() for name in ("sr.dcm", "sc.dcm")):
            return None
    return read_study(out / "studies" / study.case_id)


def _key(
    study: Study, detectors: Mapping[str, ViewDetector], config: TriageConfig, dicom: bool
) -> str:
    """What a study's result hangs on."""
    images = [(i.image_id, i.digest, i.header, i.notes) for i in study.images]
    used = sorted({detectors[image.header.view].digest for image in study.images})
    facts = repr((images, study.set_aside, used, dicom))
    return digest_bytes(facts.encode(), config.model_dump_json(exclude={"limits"}).encode())
