"""What comes in for triage: files found, headers read, set aside or grouped into studies."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydicom.uid import UID

from data_prep.xray import looks_like_image, read_xray, read_xray_header
from data_prep.xray_chain import XraySpec
from data_prep.xray_header import AP, LATERAL, PA, XrayHeader, plain
from esad_med.base.cases import read_table
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError, ConfigError, EsadError, ImageError
from esad_med.base.identifiers import Pseudonyms
from esad_med.base.limits import Limits
from esad_med.base.runs import Failure, Progress, digest_file, no_progress
from pipelines.chest_xray import in_order

_COLUMNS = ("path", "study_id", "patient_id", "view", "age", "sex")


class EligibilitySpec(Spec):
    """Which images a detector may score; the others are set aside with the reason."""

    min_age: float = Field(18, ge=0, description="Years; younger patients are set aside.")
    missing_age: Literal["accept", "set_aside"] = Field(
        "accept", description="Images that say no age; accepted ones are marked in the worklist."
    )
    missing_view: Literal["set_aside", "PA", "AP"] = Field(
        "set_aside", description="Images that say no view; what they are taken as is marked."
    )
    missing_body_part: Literal["accept", "set_aside"] = Field(
        "accept", description="DICOM images that say no body part; accepted ones are marked."
    )
    body_parts: tuple[str, ...] = Field(
        ("CHEST", "THORAX"), description="BodyPartExamined must contain one of these."
    )
    modalities: tuple[str, ...] = Field(
        ("CR", "DX", "DR"), description="DICOM modalities of radiographs; DR is not standard."
    )


class TriageConfig(Spec):
    """Settings of a triage that are not the detector's."""

    eligibility: EligibilitySpec = EligibilitySpec()
    limits: Limits = Limits()
    alarm_percentile: float = Field(
        99, gt=0, lt=100, description="Studies at or above it are marked."
    )


@dataclass(frozen=True)
class Image:
    """One image that may be scored.

    Attributes:
        image_id: its name in results.
        path: an identifier; never to be shown.
        header: what the file or the manifest says; ``view`` is PA or AP.
        digest: SHA-256 of the file.
        notes: what was assumed.
    """

    image_id: str
    path: Path
    header: XrayHeader
    digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """The images of one study that may be scored.

    Attributes:
        case_id: its name in results.
        images: at least one, in the order of their paths.
        set_aside: how many of its images were set aside.
    """

    case_id: str
    images: tuple[Image, ...]
    set_aside: int = 0


@dataclass
class Intake:
    """What came in."""

    studies: list[Study] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    passed_over: int = 0


@dataclass(frozen=True)
class _Candidate:
    """A file, and what a manifest says of it."""

    path: Path
    said: XrayHeader | None = None
    study_id: str = ""


def find_candidates(paths: Sequence[Path], *, leave_out: Path) -> tuple[list[_Candidate], int]:
    """Files to look at: those named, images below folders, or the rows of one manifest.

    Args:
        paths: files, folders, or one CSV.
        leave_out: a folder whose files are results.

    Returns:
        The candidates by path, and how many other files in folders were passed over.

    Raises:
        CaseError: a path that does not exist, a manifest that cannot be used, nothing found.
    """
    if len(paths) == 1 and paths[0].suffix.lower() == ".csv":
        return _read_manifest(paths[0]), 0
    found: dict[Path, _Candidate] = {}
    others = 0
    for path in paths:
        if not path.exists():
            raise CaseError(f"{path}: no such file or folder")
        for file in _files_below(path, leave_out):
            if path.is_dir() and not looks_like_image(file):
                others += 1
            else:
                found[file.resolve()] = _Candidate(file)
    if not found:
        raise CaseError(f"{paths[0]}: no image found, expected DICOM, PNG, JPEG or NIfTI files")
    return [found[key] for key in sorted(found)], others


def _files_below(path: Path, leave_out: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    results = leave_out.resolve()
    for file in path.rglob("*"):
        if file.is_file() and results not in file.resolve().parents:
            yield file


def _read_manifest(path: Path) -> list[_Candidate]:
    table = read_table(path)
    if "path" not in table:
        raise CaseError(f"{path}: column 'path' is missing; found {', '.join(table.columns)}")
    if unknown := [name for name in table.columns if name not in _COLUMNS]:
        raise CaseError(f"{path}: unknown column '{unknown[0]}'; expected {', '.join(_COLUMNS)}")
    found = [
        _read_row(path, line, {str(k): str(v) for k, v in row.items()})
        for line, row in enumerate(table.to_dict("records"), start=2)
    ]
    if not found:
        raise CaseError(f"{path}: no rows, expected one per image")
    if len({candidate.path.resolve() for candidate in found}) < len(found):
        raise CaseError(f"{path}: a path is listed twice, expected once")
    return found


def _read_row(manifest: Path, line: int, row: dict[str, str]) -> _Candidate:
    where = f"{manifest.name} line {line}"
    path = manifest.parent / row["path"]
    view = row.get("view", "").upper()
    if view not in {"", PA, AP, "LATERAL"}:
        raise CaseError(f"{where}: view '{plain(view)}', expected PA, AP, lateral or empty")
    age = row.get("age", "")
    try:
        years = float(age) if age else None
    except ValueError as error:
        raise CaseError(f"{where}: age '{plain(age)}', expected years") from error
    said = XrayHeader(
        kind="",
        rows=0,
        columns=0,
        view=LATERAL if view == "LATERAL" else view,
        age=years,
        sex=row.get("sex", "").upper()[:1],
        patient_id=row.get("patient_id", ""),
    )
    return _Candidate(path, said, row.get("study_id", ""))


def take_in(
    candidates: Sequence[_Candidate],
    config: TriageConfig,
    specs: Mapping[str, XraySpec],
    names: Pseudonyms,
    *,
    progress: Progress = no_progress,
) -> Intake:
    """Read headers, set aside what may not be scored, group the rest into studies.

    Args:
        candidates: of `find_candidates`.
        config: eligibility and limits.
        specs: how the detector of each view has its images prepared.
        names: keyed hashes of studies, images and patients.
        progress: called per file.
    """

    def look(candidate: _Candidate) -> tuple[XrayHeader, str]:
        header = read_xray_header(candidate.path, limits=config.limits)
        return _with_said(header, candidate.said), digest_file(candidate.path)

    groups: dict[str, list[Image | Failure]] = {}
    patients: dict[str, set[str]] = {}
    seen: dict[str, str] = {}
    for done, (candidate, found) in enumerate(in_order(look, candidates), start=1):
        progress("reading headers", done, len(candidates))
        image_id = names.name("image", str(candidate.path.resolve()))
        if isinstance(found, EsadError):
            study = names.name("study", candidate.study_id or str(candidate.path.resolve()))
            groups.setdefault(study, []).append(_failure(study, image_id, "read", found))
            continue
        header, digest = found
        study = names.name("study", candidate.study_id or _study_key(header, candidate.path))
        group = groups.setdefault(study, [])
        names.name("patient", header.patient_id)
        patients.setdefault(study, set()).add(header.patient_id)
        reasons, notes = judge(header, config.eligibility, sorted(specs))
        view = header.view or config.eligibility.missing_view
        spec = specs.get(view, XraySpec())
        try:
            spec.check_shape(header.rows, header.columns)
            if conflict := _copy_of(header, digest, seen):
                reasons += [conflict, *_polarity(candidate.path, spec, config.limits)]
            if reasons:
                raise ImageError("; ".join(reasons))
            header = dataclasses.replace(header, view=view)
            group.append(Image(image_id, candidate.path, header, digest, notes))
        except EsadError as error:
            group.append(_failure(study, image_id, "select", error))
    return _to_intake(groups, patients)


def _to_intake(groups: dict[str, list["Image | Failure"]], patients: dict[str, set[str]]) -> Intake:
    intake = Intake()
    for study, found in groups.items():
        images = tuple(item for item in found if isinstance(item, Image))
        failures = [item for item in found if isinstance(item, Failure)]
        if images and len(patients[study] - {""}) > 1:
            error = CaseError("the images of this study name different patients; check the source")
            failures += [_failure(study, image.image_id, "select", error) for image in images]
            images = ()
        intake.failures += failures
        if images:
            intake.studies.append(Study(study, images, len(failures)))
    return intake


def _failure(study: str, image_id: str, stage: str, error: EsadError) -> Failure:
    return Failure.of(f"{study}/{image_id}", stage, error)


def _with_said(header: XrayHeader, said: XrayHeader | None) -> XrayHeader:
    """The manifest's word over the file's."""
    if said is None:
        return header
    given = {name: getattr(said, name) for name in ("view", "age", "sex", "patient_id")}
    return dataclasses.replace(header, **{k: v for k, v in given.items() if v not in {"", None}})


def _study_key(header: XrayHeader, path: Path) -> str:
    """The study's UID where it has one; a file without is a study of its own."""
    uid = header.study_uid
    return uid if uid and UID(uid).is_valid else str(path.resolve())


def _copy_of(header: XrayHeader, digest: str, seen: dict[str, str]) -> str:
    """Why an image whose SOP Instance UID was met before is not taken; empty for a new one."""
    uid = header.sop_instance_uid
    if not uid or uid not in seen:
        seen[uid] = digest
        return ""
    if seen[uid] == digest:
        return "is a copy of an image that is taken already"
    return "another image has the same SOP Instance UID and other content"


def _polarity(path: Path, spec: XraySpec, limits: Limits) -> list[str]:
    """Of two different images with one UID the wrong one may be a negative: then say so too."""
    try:
        spec.check_polarity(read_xray(path, limits=limits).pixels)
    except ImageError as error:
        return [str(error)]
    return []


def judge(
    header: XrayHeader, rules: EligibilitySpec, views: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Why an image may not be scored (all reasons), and what is assumed where it is silent."""
    reasons: list[str] = []
    notes: list[str] = []
    if header.kind == "DICOM":
        _judge_source(header, rules, reasons, notes)
    if header.age is None:
        if rules.missing_age == "set_aside":
            reasons.append("the patient's age is not stated (eligibility.missing_age)")
        notes.append("age unknown")
    elif header.age < rules.min_age:
        reasons.append(f"the patient is {header.age:.0f}, under {rules.min_age:g} years")
    if header.view == "":
        if rules.missing_view == "set_aside":
            reasons.append(
                "its view is not stated; say it with --missing-view or a manifest's column 'view'"
            )
        notes.append(f"view not stated, taken as {rules.missing_view}")
    view = header.view or rules.missing_view
    if header.view == LATERAL:
        reasons.append("lateral view, expected PA or AP")
    elif view not in views and view != "set_aside":
        reasons.append(f"view {view}, expected {' or '.join(views)} (no detector for it)")
    return reasons, tuple(notes)


def _judge_source(
    header: XrayHeader, rules: EligibilitySpec, reasons: list[str], notes: list[str]
) -> None:
    if header.modality not in rules.modalities:
        expected = " or ".join(rules.modalities)
        reasons.append(f"modality {header.modality or 'not stated'}, expected {expected}")
    if header.for_processing:
        reasons.append("raw detector values (FOR PROCESSING), expected FOR PRESENTATION")
    if header.species:
        reasons.append(f"of an animal ({header.species})")
    if not header.body_part:
        if rules.missing_body_part == "set_aside":
            reasons.append("its body part is not stated (eligibility.missing_body_part)")
        notes.append("body part not stated")
    elif not any(part in header.body_part for part in rules.body_parts):
        reasons.append(f"body part {header.body_part}, expected {' or '.join(rules.body_parts)}")


def check_views(rules: EligibilitySpec, views: Sequence[str]) -> None:
    """Refuse to take unstated views as one that no detector accepts.

    Raises:
        ConfigError: with the views.
    """
    if rules.missing_view not in {"set_aside", *views}:
        raise ConfigError(
            f"eligibility.missing_view {rules.missing_view}: no detector for it; the detectors'"
            f" views are {', '.join(views)}"
        )
