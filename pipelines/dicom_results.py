"""A study's scores as DICOM: structured report and secondary capture.

These objects carry the study's own identifiers, as a PACS needs.
"""

import datetime
from importlib import metadata
from pathlib import Path

from data_prep.xray_dicom import is_dicom, read_dataset
from esad_med.base.limits import Limits
from esad_med.base.runs import ensure_folder
from esad_med.outputs.dicom import (
    ImageResult,
    StudyDecision,
    StudyResult,
    build_secondary_capture,
    build_structured_report,
    write_dicom,
)
from esad_med.outputs.pages import format_percentile
from esad_med.outputs.radiograph import caption
from pipelines.triage_results import draw_overlay
from pipelines.triage_scoring import STUDY_RULE, StudyScore

_COLORS = (
    "Color: where the reconstruction differs more than on normal images; the norm term has no"
    " place. Frame: the part that was scored."
)
_NO_COLORS = "An embedding was scored: there is no residual map. Frame: the part that was scored."


def write_results(result: StudyScore, folder: Path, *, limits: Limits) -> list[Path]:
    """Write ``sr.dcm`` and ``sc.dcm`` of a DICOM study; nothing for other files.

    Raises:
        CaseError: the study's identifiers are not valid, so no PACS could file the results.
        ConfigError: the files cannot be written, or highdicom is not installed.
    """
    images = []
    for one in result.images:
        data = limits.read_bytes(one.image.path)
        if not is_dicom(data):
            return []
        source = read_dataset(data, limits=limits)
        if "PixelData" in source:
            del source.PixelData
        images.append(
            ImageResult(
                source=source,
                view=one.image.header.view,
                score=one.score,
                percentile=one.percentile,
                reconstruction=one.reconstruction,
                norm=one.norm,
                detector=one.detector,
                residual=one.residual is not None,
            )
        )
    study = StudyResult(
        images=tuple(images),
        driving=result.driving,
        rule=STUDY_RULE,
        version=metadata.version("esad-med"),
        created=datetime.datetime.now().astimezone(),
        decision=_decision(result),
    )
    first = result.images[result.driving]
    picture = caption(draw_overlay(first, first.picture), _caption_lines(result))
    ensure_folder(folder)
    files = [folder / "sr.dcm", folder / "sc.dcm"]
    write_dicom(files[0], build_structured_report(study))
    write_dicom(files[1], build_secondary_capture(study, picture))
    return files


def _decision(result: StudyScore) -> StudyDecision | None:
    found = result.decision
    if found is None:
        return None
    return StudyDecision(found["outcome"], found["p_value"], found["rule"], tuple(found["caveats"]))


def _caption_lines(result: StudyScore) -> list[str]:
    one = result.images[result.driving]
    percentile = format_percentile(one.percentile)
    lines = [
        f"ESAD anomaly triage: percentile {percentile} among held-out normals, score"
        f" {one.score:.4g} (reconstruction {one.reconstruction:.4g}, norm {one.norm:.4g}), view"
        f" {one.image.header.view}",
        _COLORS if one.residual is not None else _NO_COLORS,
        "RESEARCH USE ONLY, NOT FOR DIAGNOSIS. A low percentile does not exclude disease.",
    ]
    if result.decision is not None:
        lines.insert(1, f"Decision at the calibrated threshold: {result.decision['outcome']}.")
    return lines + [f"Note: {note}" for note in one.image.notes]
