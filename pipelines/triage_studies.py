"""Scoring a block of studies and writing their results, in any process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esad_med.base.errors import CaseError, ConfigError, ImageError
from esad_med.base.locks import Turn
from esad_med.base.runs import Failure, Journal, digest_bytes, read_json
from esad_med.base.timing import Stages
from pipelines.triage_intake import Study, TriageConfig
from pipelines.triage_results import read_study, write_study
from pipelines.triage_scoring import StudyScore, ViewDetector, score_studies

#: Where identifiers are kept, and what carries them, in a run folder.
PRIVATE = "private"


@dataclass(frozen=True)
class TriagedStudy:
    """What came of a study.

    Attributes:
        found: the content of its ``study.json``, None where no image could be scored.
        failures: of its images.
        refused: why it has no DICOM results, where they were asked for.
        seconds: by stage.
    """

    found: dict[str, Any] | None
    failures: list[Failure]
    refused: Failure | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyScorer:
    """How studies are scored; picklable, so that workers can.

    Attributes:
        detectors: by view.
        out: the run folder.
        config: eligibility and limits.
        dicom: whether DICOM results are written, too.
        turn: of the run at its folder.
    """

    detectors: Mapping[str, ViewDetector]
    out: Path
    config: TriageConfig
    dicom: bool
    turn: Turn

    def score(self, block: Sequence[tuple[Study, bool]]) -> list[TriagedStudy]:
        """Score a block of studies together, and write the results of those that are wanted.

        Args:
            block: studies, each with whether its results are wanted.

        Raises:
            ConfigError: something cannot be written.
        """
        stages = Stages()
        studies = [study for study, _ in block]
        results = score_studies(studies, self.detectors, self.config.limits)
        outcomes = []
        for (_, result), (_, wanted) in zip(stages.timed("score", results), block, strict=True):
            with stages.measure("write"):
                outcomes.append(self._outcome(result) if wanted else TriagedStudy(None, []))
        each = {stage: seconds / len(block) for stage, seconds in stages.seconds.items()}
        return [TriagedStudy(one.found, one.failures, one.refused, each) for one in outcomes]

    def _outcome(self, result: StudyScore | list[Failure]) -> TriagedStudy:
        if isinstance(result, list):
            return TriagedStudy(None, result)
        self.turn.check()
        folder = self.out / "studies" / result.study.case_id
        write_study(folder, result)
        refused = self._write_dicom(result) if self.dicom else None
        found = read_json(folder / "study.json", ConfigError)
        return TriagedStudy(found, list(result.failures), refused)

    def _write_dicom(self, result: StudyScore) -> Failure | None:
        """Write a study's DICOM results; the failure where its header allows none."""
        from pipelines.dicom_results import write_results

        study = result.study.case_id
        try:
            write_results(result, self._dicom_folder(study), limits=self.config.limits)
        except (CaseError, ImageError) as error:
            return Failure.of(study, "dicom", error)
        return None

    def _dicom_folder(self, study: str) -> Path:
        return self.out / PRIVATE / "dicom" / study

    def known(self, study: Study, journal: Journal) -> dict[str, Any] | None:
        """The result of an earlier run, unless something of it is missing or damaged since."""
        if not journal.is_done(study.case_id, self.key(study)):
            return None
        if self.dicom and all(image.header.kind == "DICOM" for image in study.images):
            folder = self._dicom_folder(study.case_id)
            if not all((folder / name).exists() for name in ("sr.dcm", "sc.dcm")):
                return None
        return read_study(self.out / "studies" / study.case_id)

    def key(self, study: Study) -> str:
        """What a study's result hangs on."""
        images = [(i.image_id, i.digest, i.header, i.notes) for i in study.images]
        used = sorted({self.detectors[image.header.view].digest for image in study.images})
        facts = repr((images, study.set_aside, used, self.dicom))
        settings = self.config.model_dump_json(exclude={"limits"})
        return digest_bytes(facts.encode(), settings.encode())
