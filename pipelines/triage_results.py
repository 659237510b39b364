"""What a triage writes: a folder per study, and the worklist as CSV, JSON and a page."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from esad_med.base.errors import CaseError
from esad_med.base.runs import (
    Failure,
    atomic_folder,
    read_json,
    versions,
    write_csv,
    write_json,
)
from esad_med.outputs.explain import strip
from esad_med.outputs.radiograph import overlay, write_png
from esad_med.outputs.residuals import write_residual
from esad_med.outputs.worklist import Picture, Worklist, WorklistRow, write_worklist
from pipelines.deciding import drift_of
from pipelines.operating_points import describe_rule
from pipelines.triage_intake import Study, TriageConfig
from pipelines.triage_scoring import (
    STUDY_RULE,
    ImageScore,
    StudyScore,
    ViewDetector,
    ranked,
)

INTENDED_USE = "research use only, not for diagnosis"
_THUMBNAIL_PX = 512
_RESIDUAL_SCALE = (
    "no color up to the median of the residuals of held-out normals, full color from their 99th"
    " percentile on"
)
_PICTURES = ("thumbnail", "overlay")
_DECIDED = ("decision", "p_value")
_COLUMNS = (
    "rank",
    "case_id",
    "percentile",
    "score",
    "excess",
    "reconstruction",
    "norm",
    "view",
    "above",
    "images",
    "set_aside",
    "driving_image",
    "notes",
)
IDENTIFIERS = ("Patient ID", "Study date", "Accession number", "Study Instance UID", "File")


def write_study(folder: Path, result: StudyScore) -> None:
    """Write ``study.json`` and, per image, thumbnail, overlay and residual map, if it has one."""
    with atomic_folder(folder) as temporary:
        for one in result.images:
            name = one.image.image_id
            small = _thumbnail(one)
            write_png(temporary / f"{name}_thumbnail.png", small)
            write_png(temporary / f"{name}_overlay.png", draw_overlay(one, small))
            if one.nearest:
                write_png(temporary / f"{name}_nearest.png", strip(one.nearest, height_px=128))
            if one.residual is not None:
                write_residual(
                    temporary / f"{name}_residual.nii.gz",
                    one.residual,
                    shape=one.shape,
                    crop_share=one.crop_share,
                    spacing_mm=one.image.header.spacing_mm,
                )
        write_json(temporary / "study.json", describe(result))


def read_study(folder: Path) -> dict[str, Any] | None:
    """What `write_study` wrote, or None where a part of it is missing or damaged."""
    try:
        found = read_json(folder / "study.json", CaseError)
        for image in found["images"]:
            name = image["image_id"]
            if image["residual"] and not (folder / f"{name}_residual.nii.gz").exists():
                return None
            for kind in _PICTURES:
                with Pillow.open(folder / f"{name}_{kind}.png") as picture:
                    picture.load()
        complete = {*_COLUMNS, "failures"} - {"rank", "above"} <= found.keys()
    except (CaseError, OSError, SyntaxError, ValueError, KeyError, TypeError):
        return None
    return found if complete else None


def _thumbnail(one: ImageScore) -> npt.NDArray[np.uint8]:
    image = Pillow.fromarray(one.picture)
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Pillow.Resampling.BOX, reducing_gap=None)
    return np.asarray(image)


def draw_overlay(one: ImageScore, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """An image's residual over a gray picture of it, on the scale of its detector.

    Without a residual no color, but the frame around what was scored.
    """
    residual = np.zeros((1, 1), np.float32) if one.residual is None else one.residual
    return overlay(picture, residual, crop_share=one.crop_share, limits=one.residual_limits)


def describe(result: StudyScore) -> dict[str, Any]:
    """``study.json``: numbers and notes, no identifiers."""
    first = result.images[result.driving]
    return {
        "case_id": result.study.case_id,
        **_numbers(first),
        "view": first.image.header.view,
        "rule": STUDY_RULE,
        "driving_image": first.image.image_id,
        "detector": first.detector,
        "notes": sorted({note for one in result.images for note in one.image.notes}),
        "set_aside": result.study.set_aside,
        **({} if result.decision is None else {"decision": dict(result.decision)}),
        "images": [
            {
                "image_id": one.image.image_id,
                "view": one.image.header.view,
                **_numbers(one),
                "detector": one.detector,
                "sha256": one.image.digest,
                "rows": one.shape[0],
                "columns": one.shape[1],
                "age": None if one.image.header.age is None else round(one.image.header.age, 1),
                "sex": one.image.header.sex,
                "residual": one.residual is not None,
                "notes": list(one.image.notes),
                **_decided(one),
                **_nearest(one),
            }
            for one in result.images
        ],
        "failures": [vars(failure) for failure in result.failures],
        "intended_use": INTENDED_USE,
    }


def _nearest(one: ImageScore) -> dict[str, list[float]]:
    if not one.nearest:
        return {}
    return {"nearest_distances": [round(distance, 3) for distance in one.distances]}


def _numbers(one: ImageScore) -> dict[str, float]:
    return {
        "percentile": round(one.percentile, 2),
        "score": round(one.score, 6),
        "excess": round(one.excess, 6),
        "reconstruction": round(one.reconstruction, 6),
        "norm": round(one.norm, 6),
    }


def _decided(one: ImageScore) -> dict[str, Any]:
    """What a calibrated detector adds to an image."""
    if one.p_value is None:
        return {}
    facts = {name: round(value, 6) for name, value in one.facts.items()}
    return {"p_value": round(one.p_value, 6), "facts": facts}


def studies_drift(
    found: Sequence[Mapping[str, Any]], detectors: Mapping[str, ViewDetector]
) -> list[str]:
    """How the images of a run differ from those their detectors were calibrated on."""
    images = [image for study in found for image in study["images"] if "facts" in image]
    drift = []
    for one in _each_once(detectors):
        if one.detector.decisions is not None:
            facts = [image["facts"] for image in images if image["detector"] == one.digest]
            views = "/".join(one.views)
            drift += [f"{views}: {text}" for text in drift_of(one.detector.decisions, facts)]
    return drift


def write_tables(
    out: Path,
    found: Sequence[Mapping[str, Any]],
    failures: Sequence[Failure],
    detectors: Mapping[str, ViewDetector],
    config: TriageConfig,
    identifiers: Mapping[str, Mapping[str, str]],
    *,
    created: datetime.datetime,
    drift: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Rank the studies and write ``worklist.csv``, ``worklist.json`` and ``worklist.html``.

    Args:
        out: the run folder, with the studies' folders in it.
        found: the ``study.json`` of each study of this run.
        failures: what was set aside.
        detectors: by view.
        config: for the alarm percentile.
        identifiers: of each study, by case id; empty unless they are to be shown.
        created: the time of the run.
        drift: of `studies_drift`.

    Returns:
        The rows, in rank order.
    """
    order = ranked(found, lambda s: (s["percentile"], s["excess"], s["case_id"]))
    rows = []
    for rank, study in enumerate(order, start=1):
        above = study["percentile"] >= config.alarm_percentile
        row = {"rank": rank, **study, "above": above, "images": len(study["images"])}
        known = identifiers.get(row["case_id"], {})
        rows.append({**{name: row[name] for name in _COLUMNS}, **_decision_cells(study), **known})
    shown = IDENTIFIERS if identifiers else ()
    decided = _DECIDED if any("decision" in study for study in found) else ()
    columns = (*_COLUMNS, *decided, *shown)
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    write_csv(out / "worklist.csv", columns, cells)
    facts = [_detector_facts(one) for one in _each_once(detectors)]
    write_json(
        out / "worklist.json",
        {
            "created": created.isoformat(timespec="seconds"),
            "rule": STUDY_RULE,
            "alarm_percentile": config.alarm_percentile,
            "eligibility": config.eligibility.model_dump(mode="json"),
            "detectors": facts,
            "studies": rows,
            "set_aside": [vars(failure) for failure in failures],
            "drift": list(drift),
            "intended_use": INTENDED_USE,
        },
    )
    worklist = Worklist(
        rows=tuple(
            _page_row(out, row, study, bool(identifiers))
            for row, study in zip(rows, order, strict=True)
        ),
        set_aside=tuple((f.case_id, f.stage, f.message) for f in failures),
        rule=STUDY_RULE,
        alarm_percentile=config.alarm_percentile,
        provenance=_provenance(config),
        created=created.strftime("%Y-%m-%d %H:%M"),
        identified=bool(identifiers),
        detectors=tuple(facts),
        residual_scale=_RESIDUAL_SCALE,
        rules=tuple(_rules(detectors)),
        drift=tuple(drift),
    )
    write_worklist(out / "worklist.html", worklist)
    return rows


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return "; ".join(value) if isinstance(value, list) else value


def _decision_cells(study: Mapping[str, Any]) -> dict[str, Any]:
    decision = study.get("decision")
    return {"decision": decision["outcome"], "p_value": decision["p_value"]} if decision else {}


def _rules(detectors: Mapping[str, ViewDetector]) -> Iterator[str]:
    """How each calibrated detector decides about studies."""
    for one in _each_once(detectors):
        decisions = one.detector.decisions
        if decisions is not None:
            level, views = decisions.cases, ", ".join(one.views)
            rule = describe_rule(level) if level else f"Nothing is decided: {decisions.no_cases}."
            yield f"{views}: {rule}"


def _each_once(detectors: Mapping[str, ViewDetector]) -> list[ViewDetector]:
    return list({one.digest: one for one in detectors.values()}.values())


def _detector_facts(one: ViewDetector) -> dict[str, str]:
    contract, calibration = one.detector.contract, one.detector.contract.calibration
    auc = calibration.auc
    return {
        "Views": ", ".join(one.views),
        "Digest": one.digest,
        "Training normals": str(contract.training.normals),
        "Labeled outliers": str(contract.training.outliers),
        "Held-out normals": f"{calibration.normals} (by {calibration.held_out_by})",
        "Held-out AUC": "not measured" if auc is None else f"{100 * auc:.1f} %",
        **({"Encoder": str(one.encoder.identity)} if one.encoder else {}),
    }


def _provenance(config: TriageConfig) -> dict[str, str]:
    rules = config.eligibility
    return {
        "Least age": f"{rules.min_age:g} years; unknown: {_words(rules.missing_age)}",
        "Unstated view": _words(rules.missing_view),
        "Unstated body part": _words(rules.missing_body_part),
        **{f"Version of {name}": version for name, version in versions().items()},
    }


def _words(setting: str) -> str:
    return {"accept": "accepted", "set_aside": "set aside"}.get(setting, f"taken as {setting}")


def _page_row(
    out: Path, row: Mapping[str, Any], study: Mapping[str, Any], identified: bool
) -> WorklistRow:
    folder = out / "studies" / row["case_id"]
    pictures = [
        Picture.of(np.asarray(Pillow.open(path).convert("RGB")))
        for path in (folder / f"{row['driving_image']}_{kind}.png" for kind in _PICTURES)
    ]
    alike = folder / f"{row['driving_image']}_nearest.png"
    nearest = Picture.of(np.asarray(Pillow.open(alike).convert("RGB"))) if alike.exists() else None
    driving = next(i for i in study["images"] if i["image_id"] == row["driving_image"])
    shown = {name: str(row[name]) for name in IDENTIFIERS if identified and row.get(name)}
    return WorklistRow(
        rank=row["rank"],
        case_id=row["case_id"],
        percentile=row["percentile"],
        score=row["score"],
        reconstruction=row["reconstruction"],
        norm=row["norm"],
        view=row["view"],
        images=row["images"],
        set_aside=row["set_aside"],
        thumbnail=pictures[0],
        overlay=pictures[1],
        notes=(*row["notes"], *study.get("decision", {}).get("caveats", ())),
        identifiers=shown,
        decision=row.get("decision", ""),
        p_value=row.get("p_value"),
        above=row["above"],
        detector=str(study["detector"])[:12],
        residual=driving["residual"],
        nearest=nearest,
        distances=tuple(driving.get("nearest_distances", ())),
    )


def identifiers_of(study: Study) -> dict[str, str]:
    """What a worklist shows with ``--identifiers``."""
    header = study.images[0].header
    values = (
        header.patient_id,
        header.study_date,
        header.accession_number,
        header.study_uid,
        "; ".join(str(image.path) for image in study.images),
    )
    return dict(zip(IDENTIFIERS, values, strict=True))
