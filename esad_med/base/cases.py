"""Cases: what a manifest says about each slide or image, checked before any pixel is read."""

import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from esad_med.base.errors import CaseError
from esad_med.base.limits import Limits
from esad_med.base.text_limits import check_table
from esad_med.base.texts import plain_cell

MANIFEST_COLUMNS = ("path", "case_id", "patient_id", "split", "label", "annotation", "mpp")
SPLITS = ("train", "val", "calibration", "test", "")
# What stands beside the cases' folders in a run's.
_RUN_FILES = {"config.yaml", "failures.csv", "journal.jsonl", "run.json", "slides.csv"}
_LONGEST_NAME = 200  # file systems take 255, and .CASE.1234.partial must fit
_WINDOWS_DEVICE = re.compile(
    r"(con|conin\$|conout\$|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])( *\..*)?", re.IGNORECASE
)
_LABELS = {"normal": 0, "0": 0, "tumor": 1, "tumour": 1, "anomalous": 1, "1": 1, "": None}


@dataclass(frozen=True)
class Case:
    """One row of a manifest.

    Attributes:
        case_id: unique name of the slide or image; also its file name in results.
        path: the slide or image file.
        patient_id: whose it is; empty where unknown.
        split: "train", "val", "calibration", "test" or empty.
        truth: 0 normal, 1 anomalous, None where unknown; for a slide it speaks of the whole slide.
        annotation: outlines of the anomalous regions, or None.
        mpp: level-0 resolution in µm per pixel that overrides the file's own, or None.
        mpp_otherwise: the same where the file says none that can be, or None.
    """

    case_id: str
    path: Path
    patient_id: str = ""
    split: str = ""
    truth: int | None = None
    annotation: Path | None = None
    mpp: float | None = None
    mpp_otherwise: float | None = None


def read_manifest(
    path: Path, *, limits: Limits | None = None, files: Mapping[str, Path] | None = None
) -> list[Case]:
    """Read a manifest CSV with the columns `MANIFEST_COLUMNS`.

    Only ``path`` is required; relative paths are looked up beside the manifest; ``case_id``
    defaults to the file's stem; ``label`` is normal / tumor / 0 / 1 or empty.

    Args:
        path: the CSV.
        limits: how large it may be.
        files: the files that are meant, by stem, where a path may name another file of the same
            case, such as the slide of a feature file; it need not exist.

    Raises:
        CaseError: columns missing or unknown, a path that does not exist, a value that cannot be
            read, a case or path listed twice, a patient in two splits.
    """
    table = read_table(path, limits=limits)
    if "path" not in table:
        raise CaseError(
            f"{path}: column 'path' is missing; found {', '.join(table.columns)}"
            f"{_separator_hint(table)}"
        )
    if unknown := [name for name in table.columns if name not in MANIFEST_COLUMNS]:
        raise CaseError(
            f"{path}: unknown column '{unknown[0]}'; expected {', '.join(MANIFEST_COLUMNS)}"
        )
    if table.empty:
        raise CaseError(f"{path}: no rows, expected one per slide")
    cases = [
        _read_row(path, line, {str(k): str(v) for k, v in row.items()}, files)
        for line, row in enumerate(table.to_dict("records"), start=2)
    ]
    check_cases(cases, source=path.name)
    return cases


def read_table(path: Path, *, limits: Limits | None = None) -> pd.DataFrame:
    """Read a CSV, packed by gzip or not, with every cell as a string, empty where missing.

    Raises:
        CaseError: the file cannot be read, is not a table, or is larger than the limits.
    """
    try:
        check_table(path, limits=limits or Limits())
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                index_col=False,
                compression="gzip" if path.suffix.lower() == ".gz" else None,
            )
    except OSError as error:
        raise CaseError(f"{path}: cannot be read ({error.strerror})") from error
    except pd.errors.ParserWarning as error:
        raise CaseError(f"{path}: its rows have more cells than its header has columns") from error
    except ValueError as error:  # what pandas raises are ValueErrors
        raise CaseError(f"{path}: not a CSV table ({error})") from error
    table.columns = table.columns.str.strip()
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()][0]
        raise CaseError(f"{path}: column '{twice}' stands there twice, expected once")
    for name in table.columns:
        table[name] = table[name].fillna("").str.strip()  # a row shorter than the header
    return table


def _separator_hint(table: pd.DataFrame) -> str:
    only = str(table.columns[0]) if len(table.columns) == 1 else ""
    return "; separate the columns with commas" if set(only) & set(";\t|") else ""


def files_below(folder: Path, *, skip: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Every file in a folder and its subfolders, in order; links to folders are followed.

    Args:
        folder: where to begin.
        skip: says of a folder whether to leave it out, with all below it.
    """
    seen: set[Path] = set()  # links may lead back to where they are
    for name, folders, files in os.walk(folder, followlinks=True):
        here = Path(name)
        if here.resolve() in seen or skip(here):
            folders.clear()
            continue
        seen.add(here.resolve())
        folders.sort()
        yield from (here / file for file in sorted(files) if (here / file).is_file())


def check_cases(cases: Sequence[Case], *, source: str) -> None:
    """Refuse unusable names, duplicates, and patients that stand in more than one split.

    Raises:
        CaseError: with the first offender.
    """
    for case in cases:
        if why := _why_no_folder_name(case.case_id):
            shown = ascii(case.case_id[:60])[1:-1] if "unseen" in why else case.case_id[:60]
            raise CaseError(
                f"{source}: case_id '{shown}' must be usable as a folder's name: it {why}; give"
                " the slide another in a manifest's column 'case_id'"
            )
    _refuse_duplicate_names(cases, source)
    _refuse_duplicates([str(case.path.resolve()) for case in cases], "path", source)
    check_patients((case.patient_id, case.split) for case in cases)


def check_patients(pairs: Iterable[tuple[str, str]], *, what: str = "patient") -> None:
    """Refuse a patient whose samples stand in more than one split.

    Args:
        pairs: (patient_id, split) of each case; empty entries say nothing.
        what: patient, or what else must not cross.

    Raises:
        CaseError: naming the patient and the splits.
    """
    seen: dict[str, str] = {}
    for patient_id, split in pairs:
        if not patient_id or not split:
            continue
        first = seen.setdefault(patient_id, split)
        if first != split:
            raise CaseError(
                f"{what} {patient_id}: found in split '{first}' and in split '{split}', expected"
                f" one; results would be too good to be true; move all of a {what} to one split"
            )


def _refuse_duplicate_names(cases: Sequence[Case], source: str) -> None:
    """Names are one where a file system may take them for one: other case, other composition."""
    seen: dict[str, Case] = {}
    for case in cases:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", case.case_id).casefold())
        first = seen.setdefault(key, case)
        if first is case:
            continue
        same = first.case_id == case.case_id
        other = "is listed twice" if same else f"differs from '{first.case_id}' by case or accent"
        raise CaseError(
            f"{source}: case_id '{case.case_id}' {other} ({first.path} and {case.path}), expected"
            " once; give each its own in a manifest's column 'case_id'"
        )


def _refuse_duplicates(values: Sequence[str], name: str, source: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise CaseError(f"{source}: {name} '{value}' is listed twice, expected once")
        seen.add(value)


def _read_row(
    manifest: Path, line: int, row: dict[str, str], files: Mapping[str, Path] | None
) -> Case:
    where = f"{manifest.name} line {line}"
    if files is None:
        path = _find_file(manifest, row["path"], where)
    else:
        path = _match_file(files, row, where)
    case_id = row.get("case_id") or path.stem
    split = row.get("split", "").lower()
    if split not in SPLITS:
        raise CaseError(f"{where}: split '{split}' is unknown; expected train, val, test or empty")
    label = row.get("label", "").lower()
    if label not in _LABELS:
        raise CaseError(f"{where}: label '{label}' is unknown; expected normal, tumor or empty")
    annotation = row.get("annotation", "")
    return Case(
        case_id=case_id,
        path=path,
        patient_id=row.get("patient_id", ""),
        split=split,
        truth=_LABELS[label],
        annotation=_find_annotation(manifest, annotation, where) if annotation else None,
        mpp=_read_mpp(row.get("mpp", ""), where),
    )


def _why_no_folder_name(name: str) -> str:
    """Why this cannot name a folder, on any system, seen by anybody; empty where it can."""
    if not name.isprintable():
        return "holds unseen characters (control, bidirectional or zero width)"
    if not name or set(name) & set("/\\") or name.casefold() in _RUN_FILES:
        return f"is empty, holds / or \\, or is one of {', '.join(sorted(_RUN_FILES))}"
    if len(name.encode()) > _LONGEST_NAME:
        return f"takes {len(name.encode())} bytes, expected up to {_LONGEST_NAME} bytes"
    if name[0] in "-." or name[-1] in ". " or name != name.strip():
        return "begins with - or ., or ends with . or a space"
    if _WINDOWS_DEVICE.fullmatch(name):
        return "is a device under Windows"
    if plain_cell(name) != name:
        return "is a formula to a spreadsheet (= + - @ at the begin or behind ;)"
    return ""


def _find_file(manifest: Path, name: str, where: str) -> Path:
    path = Path(name)
    path = path if path.is_absolute() else manifest.parent / path
    if not name or not os.path.exists(path):  # noqa: PTH110 - False for names that cannot be
        raise CaseError(f"{where}: '{name}' does not exist (relative paths start at the manifest)")
    return path.absolute()


def _match_file(files: Mapping[str, Path], row: dict[str, str], where: str) -> Path:
    """The file of a row by the stem of its path, or by its case_id; else the bare name."""
    stem, case_id = Path(row["path"]).stem.replace("\0", "?"), row.get("case_id", "")
    if not stem and not case_id:
        raise CaseError(f"{where}: neither path nor case_id, expected one that names a file")
    return files.get(stem) or files.get(case_id) or Path(stem or case_id)


def _find_annotation(manifest: Path, name: str, where: str) -> Path:
    path = _find_file(manifest, name, where)
    if not path.is_file():
        raise CaseError(f"{where}: '{name}' is a folder, expected an annotation file")
    return path


def _read_mpp(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        mpp = float(text)
    except ValueError:
        mpp = 0.0
    if not 0 < mpp < float("inf"):
        raise CaseError(f"{where}: mpp '{text}' is not a positive number of µm per pixel")
    return mpp
