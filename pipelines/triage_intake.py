"""What comes in for triage: headers read, images set aside or grouped into studies."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import Field

from data_prep.xray import read_xray, read_xray_header
from data_prep.xray_chain import XraySpec
from data_prep.xray_header import XrayHeader
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError, EsadError, ImageError
from esad_med.base.execution import InProcess, in_blocks, in_order
from esad_med.base.identifiers import Pseudonyms
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import Limits
from esad_med.base.runs import Failure, Progress, digest_file, no_progress
from pipelines.chest_xray import on_threads
from pipelines.triage_eligibility import EligibilitySpec, judge
from pipelines.triage_files import Candidate

_BLOCK = 64  # files


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
class _HeaderReader:
    """What the files and the manifest say of a block of candidates, and the files' digests."""

    limits: Limits

    def __call__(self, block: Sequence[Candidate]) -> list[tuple[XrayHeader, str] | EsadError]:
        found = []
        for _, result in on_threads(self._look, block):
            raise_if_interrupted()
            found.append(result)
        return found

    def _look(self, candidate: Candidate) -> tuple[XrayHeader, str]:
        header = read_xray_header(candidate.path, limits=self.limits)
        try:
            digest = digest_file(candidate.path)
        except OSError as error:  # its own words would name the file
            raise ImageError(f"cannot be read ({error.strerror})") from error
        return _with_said(header, candidate.said), digest


def take_in(
    candidates: Sequence[Candidate],
    config: TriageConfig,
    specs: Mapping[str, XraySpec],
    names: Pseudonyms,
    *,
    executor: Executor | None = None,
    ahead: int = 1,
    progress: Progress = no_progress,
) -> Intake:
    """Read headers, set aside what may not be scored, group the rest into studies.

    Args:
        candidates: of `find_candidates`.
        config: eligibility and limits.
        specs: how the detector of each view has its images prepared.
        names: keyed hashes of studies, images and patients.
        executor: where files are read; this process for None.
        ahead: how many blocks of files may be read ahead.
        progress: called per file.
    """
    executor = executor or InProcess()
    groups: dict[str, list[Image | Failure]] = {}
    patients: dict[str, set[str]] = {}
    blocks = (candidates[at : at + _BLOCK] for at in range(0, len(candidates), _BLOCK))
    read = in_blocks(
        executor, _HeaderReader(config.limits), blocks, ahead=ahead, limits=config.limits
    )
    for done, (candidate, found) in enumerate(read, start=1):
        progress("reading headers", done, len(candidates))
        image_id = names.name("image", str(candidate.path.resolve()))
        if isinstance(found, EsadError):
            study = names.name("study", candidate.study_id or str(candidate.path.resolve()))
            groups.setdefault(study, []).append(_failure(study, image_id, "read", found))
            continue
        header, digest = found
        study = names.name("study", candidate.study_id or _study_key(header, candidate.path))
        names.name("patient", header.patient_id)
        patients.setdefault(study, set()).add(header.patient_id)
        image = Image(image_id, candidate.path, header, digest)
        group = groups.setdefault(study, [])
        try:
            group.append(_select(image, config.eligibility, specs))
        except EsadError as error:
            group.append(_failure(study, image_id, "select", error))
    _settle_conflicts(groups, partial(_problems, executor, specs, config.limits))
    return _to_intake(groups, patients)


def _select(image: Image, rules: EligibilitySpec, specs: Mapping[str, XraySpec]) -> Image:
    """The image with its view settled and its notes, or the reasons why it may not be scored."""
    reasons, notes = judge(image.header, rules, sorted(specs))
    view = image.header.view or rules.missing_view
    specs.get(view, XraySpec()).check_shape(image.header.rows, image.header.columns)
    if reasons:
        raise ImageError("; ".join(reasons))
    return dataclasses.replace(
        image, header=dataclasses.replace(image.header, view=view), notes=notes
    )


def _settle_conflicts(
    groups: dict[str, list["Image | Failure"]], problems: Callable[[list[Image]], list[str]]
) -> None:
    """Settle which of several images with one SOP Instance UID is scored.

    Of equal ones the first; of different ones the one that can be read and is no negative, if
    there is only one, with a note. The order of files decides nothing.
    """
    by_uid: dict[str, list[tuple[str, Image]]] = {}
    for study, found in groups.items():
        for item in found:
            if isinstance(item, Image) and item.header.sop_instance_uid:
                by_uid.setdefault(item.header.sop_instance_uid, []).append((study, item))
    for claims in by_uid.values():
        if len(claims) > 1:
            _settle(claims, groups, problems)


def _settle(
    claims: list[tuple[str, Image]],
    groups: dict[str, list["Image | Failure"]],
    find_problems: Callable[[list[Image]], list[str]],
) -> None:
    distinct = {image.digest: (study, image) for study, image in reversed(claims)}
    several = len(distinct) > 1
    found = find_problems([image for _, image in distinct.values()]) if several else [""]
    problems = dict(zip(distinct, found, strict=True))
    usable = [digest for digest, problem in problems.items() if not problem]
    for study, image in claims:
        first = distinct[image.digest][1] is image
        if first and usable == [image.digest]:
            if len(distinct) > 1:
                note = "another image has the same SOP Instance UID and other content"
                _replace(
                    groups[study], image, dataclasses.replace(image, notes=(*image.notes, note))
                )
            continue
        reasons = ["is a copy of an image that is here already"]
        if first:
            reasons = ["another image has the same SOP Instance UID and other content"]
            reasons += [problems[image.digest]] if problems[image.digest] else []
        error = ImageError("; ".join(reasons))
        _replace(groups[study], image, _failure(study, image.image_id, "select", error))


def _replace(group: list["Image | Failure"], old: Image, new: "Image | Failure") -> None:
    group[next(index for index, item in enumerate(group) if item is old)] = new


def _problems(
    executor: Executor, specs: Mapping[str, XraySpec], limits: Limits, images: list[Image]
) -> list[str]:
    """Why each image cannot be the right one of several, empty where it can."""
    work = partial(_problem, specs, limits)
    found = in_order(executor, work, images, ahead=1, limits=limits)
    return [str(result) for _, result in found]


def _problem(specs: Mapping[str, XraySpec], limits: Limits, image: Image) -> str:
    try:
        pixels = read_xray(image.path, limits=limits).pixels
        specs[image.header.view].check_polarity(pixels)
    except ImageError as error:
        return str(error)
    return ""


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
    return header.study_uid or str(path.resolve())
