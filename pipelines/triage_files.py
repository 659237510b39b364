"""Which files are to be looked at: those named, images below folders, or the rows of a manifest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.xray import looks_like_image
from data_prep.xray_header import AP, LATERAL, PA, XrayHeader, shown
from esad_med.base.cases import files_below, read_table
from esad_med.base.errors import CaseError
from esad_med.base.limits import Limits
from esad_med.base.runs import JOURNAL

_OLDEST = 130
_COLUMNS = ("path", "study_id", "patient_id", "view", "age", "sex")


@dataclass(frozen=True)
class Candidate:
    """A file, and what a manifest says of it."""

    path: Path
    said: XrayHeader | None = None
    study_id: str = ""


def find_candidates(
    paths: Sequence[Path], *, leave_out: Path, limits: Limits | None = None
) -> tuple[list[Candidate], int]:
    """Files to look at: those named, images below folders, or the rows of one manifest.

    Args:
        paths: files, folders, or one CSV.
        leave_out: a folder whose files are results; those of other triages are left out, too.
        limits: how large a manifest may be.

    Returns:
        The candidates by path, and how many other files in folders were passed over.

    Raises:
        CaseError: a path that does not exist, a manifest that cannot be used, nothing found.
    """
    if any(path.suffix.lower() == ".csv" for path in paths):
        if len(paths) > 1:
            raise CaseError(f"{len(paths)} paths with a manifest among them; give it alone")
        return _read_manifest(paths[0], limits), 0
    found: dict[Path, Candidate] = {}
    others = 0
    for path in paths:
        if not path.exists():
            raise CaseError(f"{path}: no such file or folder")
        for file in _files(path, leave_out):
            if path.is_dir() and not looks_like_image(file):
                others += 1
            else:
                found[file.resolve()] = Candidate(file.absolute())  # for workers elsewhere
    if not found:
        raise CaseError(
            f"{paths[0]}: no image found, expected DICOM, PNG, JPEG or NIfTI files;"
            " results of a triage are left out"
        )
    return [found[key] for key in sorted(found)], others


def is_run(folder: Path) -> bool:
    """Whether a folder holds the results of a triage, which are no radiographs."""
    return all((folder / name).exists() for name in (JOURNAL, "run.json", "private"))


def _files(path: Path, leave_out: Path) -> Iterator[Path]:
    """A file itself, or what lies below a folder, but no results."""
    if not path.is_dir():
        return iter([path])
    results = leave_out.resolve()
    return files_below(path, skip=lambda folder: folder.resolve() == results or is_run(folder))


def _read_manifest(path: Path, limits: Limits | None) -> list[Candidate]:
    table = read_table(path, limits=limits)
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


def _years(text: str) -> float | None:
    try:
        years = float(text)
    except ValueError:
        return None
    return years if 0 <= years <= _OLDEST else None


def _read_row(manifest: Path, line: int, row: dict[str, str]) -> Candidate:
    where = f"{manifest.name} line {line}"
    path = (manifest.parent / row["path"]).absolute()
    view = row.get("view", "").upper()
    if view not in {"", PA, AP, "LATERAL"}:
        raise CaseError(f"{where}: view {shown(view)}, expected PA, AP, lateral or empty")
    age = row.get("age", "")
    years = _years(age)
    if age and years is None:
        raise CaseError(f"{where}: age is no number of years from 0 to {_OLDEST}")
    said = XrayHeader(
        kind="",
        rows=0,
        columns=0,
        view=LATERAL if view == "LATERAL" else view,
        age=years,
        sex=row.get("sex", "").upper()[:1],
        patient_id=row.get("patient_id", ""),
    )
    return Candidate(path, said, row.get("study_id", ""))
