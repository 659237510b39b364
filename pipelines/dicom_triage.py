"""A study's triage as the node calls it, in a process of its own: a crash there costs the study."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from esad_med.base.config import load_config
from esad_med.base.errors import CaseError, disk_failure
from esad_med.base.execution import InProcess, in_order
from esad_med.base.identifiers import Pseudonyms
from esad_med.method.encoder import load_encoder
from pipelines.dicom_results import write_results
from pipelines.dicom_worker import Triage
from pipelines.triage_eligibility import check_views
from pipelines.triage_files import find_candidates
from pipelines.triage_intake import TriageConfig, take_in
from pipelines.triage_scoring import (
    ViewDetector,
    load_detectors,
    score_studies,
    specs_of,
    study_blocks,
)


@dataclass(frozen=True)
class StudyTriage:
    """Takes the files of one study, and a folder, to result files in it; picklable.

    Attributes:
        detectors: by view.
        out: where the pseudonyms' key is kept.
        config: eligibility and limits.
    """

    detectors: Mapping[str, ViewDetector]
    out: Path
    config: TriageConfig

    def __call__(self, study: tuple[Sequence[Path], Path]) -> Sequence[Path]:
        """Triage a study.

        Args:
            study: its files, and an empty folder.

        Raises:
            CaseError: no image could be scored, and why.
            ModelError: a detector's folder was changed since the node was started.
            OSError: the disk is full or fails. Its number reaches another process, which the cause
                of an error does not.
        """
        try:
            return self._triage(*study)
        except Exception as error:
            number = disk_failure(error)
            if number is None:
                raise
            raise OSError(number, os.strerror(number)) from error

    def _triage(self, files: Sequence[Path], folder: Path) -> list[Path]:
        names = Pseudonyms(self.out / "private")  # its map is not kept: nobody is shown these names
        candidates, _ = find_candidates(files, leave_out=folder)
        intake = take_in(candidates, self.config, specs_of(self.detectors), names)
        reasons = [failure.message for failure in intake.failures]
        written: list[Path] = []
        for block in study_blocks(intake.studies):
            for _, result in score_studies(block, self.detectors, self.config.limits):
                if isinstance(result, list):
                    reasons += [failure.message for failure in result]
                else:
                    written += write_results(result, folder, limits=self.config.limits)
        if not written:
            raise CaseError("; ".join(dict.fromkeys(reasons)) or "no image that could be scored")
        return written


def make_study_triage(
    detectors: Sequence[Path],
    *,
    out: Path,
    config: Path | None,
    settings: Sequence[str],
    device: str,
    encoder: Path | None = None,
    executor: Executor | None = None,
) -> Triage:
    """A function for the node.

    Args:
        detectors: folders made by `train`.
        out: where the pseudonyms' key is kept.
        config: YAML of `TriageConfig`, or None.
        settings: ``--set`` strings of `TriageConfig`.
        device: auto, cpu or cuda.
        encoder: the file of the encoder that the detectors were trained with, or None.
        executor: where studies are triaged, within the limits of time and memory where it is not
            this process; by default it is.
    """
    by_view = load_detectors(detectors, device=device, encoder=load_encoder(encoder, device=device))
    chosen = load_config(TriageConfig, config, settings)
    check_views(chosen.eligibility, sorted(by_view))
    work = StudyTriage(by_view, out, chosen)
    where = executor or InProcess()

    def run(files: Sequence[Path], folder: Path) -> Sequence[Path]:
        studies = [(files, folder)]
        ((_, result),) = in_order(where, work, studies, ahead=1, limits=chosen.limits)
        if isinstance(result, CaseError):
            raise result
        return result

    return run
