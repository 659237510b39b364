"""NIH ChestX-ray14: its table, the published lists, and which image stands for what.

The table's header has unquoted commas inside two bracketed names, so "OriginalImage[Width,Height]"
comes as two columns; the edition of 2017 ends each row with an empty cell and writes ages as
"058Y". Lists hold one image name a line, as text or text.gz.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from data_prep.xray_header import years_of
from esad_med.base.cases import SPLITS, files_below, read_table
from esad_med.base.errors import CaseError, ImageError
from esad_med.base.limits import Limits

NO_FINDING = "No Finding"
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema"),
    *("Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia"),
    "Pneumothorax",
)
VIEWS = ("PA", "AP")

_COLUMNS = {
    "Image Index": "image",
    "Finding Labels": "findings",
    "Patient ID": "patient_id",
    "Patient Age": "age",
    "View Position": "view",
}
_LIMITS = Limits(file_mib=64, unpacked_mib=64, table_mib=64)  # NIH's table has 8 MiB
_MOST_HEADER = 10_000  # characters
_SEX = ("Patient Gender", "Patient Sex")  # of the editions 2017 and 2020


def read_nih_table(path: Path) -> pd.DataFrame:
    """Read `Data_Entry_2017*.csv`, as text or gzip.

    Returns:
        A row per image: image (file name), findings (joined by ``|``), patient_id, view, age (years
        or missing), sex, truth (0 for No Finding, else 1).

    Raises:
        CaseError: too large, columns are missing, an image is listed twice, or a finding or view is
            unknown.
    """
    _check_table(path)
    table = read_table(path, limits=_LIMITS)
    if missing := [name for name in _COLUMNS if name not in table]:
        raise CaseError(
            f"{path}: column '{missing[0]}' is missing; found {', '.join(map(str, table.columns))};"
            " expected NIH's Data_Entry table"
        )
    rows = table[list(_COLUMNS)].rename(columns=_COLUMNS)
    sex = next((name for name in _SEX if name in table), None)
    rows["sex"] = table[sex] if sex else ""
    rows["age"] = rows["age"].map(years_of)
    rows["findings"] = [_check_findings(path, n, v) for n, v in enumerate(rows["findings"], 2)]
    rows["truth"] = (rows["findings"] != NO_FINDING).astype("Int8")
    if len(wrong := rows.index[~rows["view"].isin(VIEWS)]):
        raise CaseError(
            f"{path} line {wrong[0] + 2}: view '{rows['view'][wrong[0]][:20]}', expected PA or AP"
        )
    if len(twice := rows.index[rows["image"].duplicated()]):
        raise CaseError(f"{path} line {twice[0] + 2}: the image is listed before, expected once")
    return rows


def _check_table(path: Path) -> None:
    """Pandas would unpack a table of any size, and take any number of columns."""
    try:
        start = _read_text(path)[:_MOST_HEADER]
    except (ImageError, UnicodeDecodeError) as error:
        raise CaseError(f"{path}: not NIH's table ({error})") from error
    if "\n" not in start:
        raise CaseError(f"{path}: its first line is longer than that of NIH's table")


def _read_text(path: Path) -> str:
    """The content of a text file, packed by gzip or not, within limits.

    Raises:
        ImageError: damaged or too large.
        UnicodeDecodeError: no text.
    """
    data = _LIMITS.read_bytes(path)
    if path.suffix.lower() == ".gz":
        data = _LIMITS.gunzip(io.BytesIO(data))
    return data.decode("utf-8-sig")


def _check_findings(path: Path, line: int, text: str) -> str:
    found = text.split("|")
    known = all(name in FINDINGS for name in found) or found == [NO_FINDING]
    if not known or len(set(found)) != len(found):
        raise CaseError(
            f"{path} line {line}: findings '{text[:80]}', expected '{NO_FINDING}' or some of"
            f" {', '.join(FINDINGS)}, joined by |"
        )
    return text


Match = Literal["only", "contains"]


def has_finding(findings: "pd.Series[str]", finding: str, match: Match) -> "pd.Series[bool]":
    """Which images have a finding, alone or among others; "any" is whatever is not No Finding."""
    if finding == "any":
        return findings != NO_FINDING
    if match == "only":
        return findings == finding
    return findings.map(lambda text: finding in text.split("|"))


@dataclass(frozen=True)
class ImageList:
    """A published list: its images, and what its name says of them.

    Attributes:
        name: of the file.
        images: file names, in the list's order.
        split: train, val or test.
        truth: 0 where the name says normal, 1 where it says anomaly, None where neither.
    """

    name: str
    images: tuple[str, ...]
    split: str
    truth: int | None


def read_image_list(text: str) -> ImageList:
    """Read a list given as ``FILE`` or ``SPLIT=FILE``.

    Without SPLIT the file's name tells it: train (also train_val), val or test, as in
    ``train_val_list.txt`` or ``PA_normal_test.txt.gz``; normal or anomaly in it says the truth.

    Raises:
        CaseError: cannot be read, empty, an image twice, or no split to be told.
    """
    given, equals, name = text.partition("=")
    split, path = (given, Path(name)) if equals and given in SPLITS else ("", Path(text))
    words = re.split(r"[^a-z]+", path.name.lower())
    split = split or next((s for s in ("train", "test", "val") if s in words), "")
    split = split or ("train" if "trainval" in words else "")
    if not split:
        raise CaseError(
            f"{path}: its name says neither train, val nor test; give it as"
            f" --split-list train={path.name}"
        )
    images = _read_lines(path)
    anomalous = {"anomaly", "anomalous", "abnormal"} & {*words}
    truth = 0 if "normal" in words else 1 if anomalous else None
    return ImageList(path.name, images, split, truth)


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in _read_text(path).splitlines()]
    except (ImageError, UnicodeDecodeError) as error:
        raise CaseError(f"{path}: not a list of image names ({error})") from error
    images = tuple(line for line in lines if line)
    if not images:
        raise CaseError(f"{path}: no image names, expected one a line")
    if len(set(images)) != len(images):
        twice = next(name for name, count in Counter(images).items() if count > 1)
        raise CaseError(f"{path}: '{twice[:80]}' is listed twice, expected once")
    return images


def join_lists(lists: Iterable[ImageList]) -> Mapping[str, tuple[str, int | None]]:
    """Split and truth of each listed image.

    Raises:
        CaseError: two lists name the same image.
    """
    found: dict[str, tuple[str, int | None]] = {}
    origin: dict[str, str] = {}
    for one in lists:
        for image in one.images:
            if image in found:
                raise CaseError(
                    f"'{image[:80]}' stands in {origin[image]} and in {one.name}, expected one list"
                )
            found[image] = (one.split, one.truth)
            origin[image] = one.name
    return found


def find_images(folders: Iterable[Path], suffixes: Iterable[str]) -> dict[str, Path]:
    """Every image below some folders by its file name, NIH's twelve ``images_0*`` among them.

    Raises:
        CaseError: a folder that does not exist, or one name at two places.
    """
    wanted, found = tuple(suffixes), dict[str, Path]()
    for folder in folders:
        if not folder.is_dir():
            raise CaseError(f"{folder}: no such folder; expected one that holds images")
        for path in files_below(folder):
            if not path.name.lower().endswith(wanted):
                continue
            if path.name in found:
                raise CaseError(
                    f"'{path.name}' lies in {found[path.name].parent} and in {path.parent},"
                    " expected once"
                )
            found[path.name] = path
    return found
