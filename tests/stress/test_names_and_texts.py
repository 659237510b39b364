"""2,000 names and texts through all that is written: no path escapes, no script, no formula."""

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from odd_texts import odd_texts
from pydicom import Dataset, dcmread
from shapely.geometry import box

from data_prep.annotations import read_annotation
from data_prep.slide_writing import write_asap
from esad_med.base.cases import Case, check_cases, read_manifest
from esad_med.base.errors import CaseError, EsadError
from esad_med.base.identifiers import Pseudonyms
from esad_med.base.runs import Failure, write_csv, write_failures
from esad_med.base.texts import printable, table_to_csv
from esad_med.outputs.dicom import ImageResult, StudyResult, build_structured_report, write_dicom
from esad_med.outputs.exchange import write_coordinates_h5
from esad_med.outputs.figures import write_histogram
from esad_med.outputs.heatmap import write_heatmap
from esad_med.outputs.quality import write_tiling_picture
from esad_med.outputs.report import SlideReport, TilePicture, render_report
from esad_med.outputs.worklist import Picture, Worklist, WorklistRow, render_worklist
from pipelines.dicom_header import hashed, is_uid

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)
_PER_PAGE = 40


@pytest.fixture(scope="module")
def texts(rounds: Callable[[int, int], int]) -> list[str]:
    return odd_texts(rounds(300, 2000))


def usable(name: str, path: Path) -> bool:
    try:
        check_cases([Case(name, path)], source="test")
    except CaseError:
        return False
    return True


def is_formula(cell: str) -> bool:
    """Our own reading of what a spreadsheet computes, whatever it splits cells at."""
    if _NUMBER.fullmatch(cell):
        return False
    parts = re.split(r"[;\t\r\n]", cell)
    return any(part.lstrip()[:1] in set("=+-@\uff1d\uff0b\uff0d\uff20") - {""} for part in parts)


def test_the_table_holds_formulas_and_names_of_both_kinds(texts, tmp_path):
    good = [text for text in texts if usable(text, tmp_path)]
    assert 20 < len(good) < len(texts) - 100
    assert sum(is_formula(text) for text in texts) > 30


def test_case_ids_name_one_folder_inside_on_any_system(texts, tmp_path):
    for text in texts:
        if not usable(text, tmp_path):
            continue
        folder = tmp_path / "run" / text
        folder.mkdir(parents=True)
        (folder / f".{text}.12345.partial").touch()
        assert folder.resolve().parent == (tmp_path / "run").resolve()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [text]
        assert PureWindowsPath(text).name == text or ":" in text
        assert not PureWindowsPath(text).is_reserved()
        assert text.isprintable()
        assert not is_formula(text)
        (folder / f".{text}.12345.partial").unlink()
        folder.rmdir()


def test_a_refusal_shows_no_sign_that_nobody_sees(texts, tmp_path):
    for text in (t for t in texts if not usable(t, tmp_path)):
        with pytest.raises(CaseError) as found:
            check_cases([Case(text, tmp_path)], source="test")
        assert str(found.value).isprintable(), text


def test_case_ids_that_a_file_system_takes_for_one_are_refused_together(texts, tmp_path):
    good = [text for text in texts if usable(text, tmp_path)]
    for form in (str.upper, str.lower, str.swapcase, lambda s: unicodedata.normalize("NFD", s)):
        for text in (t for t in good if form(t) != t and usable(form(t), tmp_path)):
            pair = [Case(text, tmp_path / "a"), Case(form(text), tmp_path / "b")]
            with pytest.raises(CaseError, match="by case or accent"):
                check_cases(pair, source="test")


def test_manifests_give_usable_ids_or_a_case_error(texts, tmp_path):
    (tmp_path / "a.tif").touch()
    table = tmp_path / "manifest.csv"
    for text in texts:
        cell = text.encode(errors="replace").decode()
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [["path", "case_id", "patient_id"], ["a.tif", cell, cell], ["a.tif", "x", ""]][:2]
            )
        try:
            (case,) = read_manifest(table)
        except CaseError:
            continue
        assert usable(case.case_id, tmp_path)


def test_uids_and_identifiers_never_name_a_path(texts, tmp_path):
    names = Pseudonyms(tmp_path / "private")
    for text in texts:
        for kind in ("study", "image", "patient"):
            assert not text or re.fullmatch(rf"{kind}-[0-9a-f]{{16}}", names.name(kind, text))
        if is_uid(text):
            assert re.fullmatch(r"[0-9.]{1,64}", text)
            assert re.fullmatch("[0-9a-f]{64}", hashed(text))
    names.save()
    again = Pseudonyms(tmp_path / "private")
    assert all(again.resolve(again.name("study", text)) == text for text in texts if text)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["key", "map.csv", "private"]


def test_no_cell_is_a_formula_and_rows_stay_rows(texts, tmp_path):
    # as objects: PyArrow, where it is installed, holds no lone surrogates
    column = pd.Series(texts, dtype=object)
    table = pd.DataFrame({"case_id": column, "score": -1.5, "note": column})
    write_csv(tmp_path / "a.csv", ("case_id", "score", "note"), table.itertuples(index=False))
    write_failures(tmp_path / "b.csv", [Failure(t, "read", "ImageError", t) for t in texts])
    pages = [(tmp_path / name).read_bytes().decode() for name in ("a.csv", "b.csv")]
    pages.append(table_to_csv(table).encode(errors="backslashreplace").decode())
    assert pages[0] == pages[2]
    for page in pages:
        rows = list(csv.reader(io.StringIO(page, newline="")))
        assert len(rows) == len(texts) + 1
        assert len({len(row) for row in rows}) == 1
        assert not [cell for row in rows for cell in row if is_formula(cell)]
        assert "\r" not in page
    assert {row[1] for row in csv.reader(io.StringIO(pages[0], newline=""))} == {"score", "-1.5"}


def test_usable_case_ids_come_back_from_a_table_to_the_letter(texts, tmp_path):
    good = [text for text in texts if usable(text, tmp_path)]
    write_csv(tmp_path / "a.csv", ("case_id",), [(text,) for text in good])
    found = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    assert found["case_id"].tolist() == good


class Structure(HTMLParser):
    """Which elements a page has, with which attributes, and where it points."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: Counter[tuple[str, ...]] = Counter()
        self.urls: set[str] = set()
        self.classes: set[str] = set()
        self.other: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag, *(name for name, _ in attrs)] += 1
        for name, value in attrs:
            if name in {"src", "href", "action", "data", "poster", "background", "srcset"}:
                self.urls.add(str(value).partition(",")[0])
            if name in {"class", "id", "http-equiv"}:
                self.classes.add(f"{name}={value}")

    def handle_comment(self, data: str) -> None:
        self.other.append(data)

    def handle_pi(self, data: str) -> None:
        self.other.append(data)

    def unknown_decl(self, data: str) -> None:
        self.other.append(data)


def pages_of(texts: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Texts a page at a time, and as many plain ones for comparison."""
    for start in range(0, len(texts), _PER_PAGE):
        part = texts[start : start + _PER_PAGE]
        yield part, [f"plain {number}" for number in range(len(part))]


def slide_page(texts: list[str]) -> str:
    corners = np.array([[0, 0], [256, 0], [0, 256], [256, 256]])
    ones = np.linspace(0, 1, 4)
    gray = np.full((64, 64, 3), 200, np.uint8)
    report = SlideReport(
        case_id=texts[0],
        slide_score=1.0,
        slide_rule=texts[1],
        slide_percentile=50.0,
        maximum=1.0,
        threshold=0.5,
        threshold_rule=texts[2],
        area_above_mm2=0.1,
        area_tiled_mm2=0.2,
        xy_level0=corners,
        edge_level0=256,
        score=ones,
        percentile=100 * ones,
        reconstruction=ones,
        norm=ones,
        thumbnail=gray,
        downsample=8.0,
        slide_size=(512, 512),
        slide_mpp=0.5,
        normal_quantiles={0.5: 0.2, 0.99: 0.9},
        most=[TilePicture(3, gray)],
        least=[TilePicture(0, gray)],
        provenance={f"{number} {text}": text for number, text in enumerate(texts)},
        created=texts[3],
        failures=[(text, text) for text in texts[:20]],
    )
    return render_report(report)


def worklist_page(texts: list[str]) -> str:
    picture = Picture.of(np.full((8, 8, 3), 99, np.uint8))
    rows = tuple(
        WorklistRow(
            rank=rank,
            case_id=text,
            percentile=50.0,
            score=1.0,
            reconstruction=1.0,
            norm=1.0,
            view=text,
            images=1,
            set_aside=0,
            thumbnail=picture,
            overlay=picture,
            notes=(text, text),
            identifiers={f"{rank} {text}": text},
            above=False,
            detector=text,
        )
        for rank, text in enumerate(texts, start=1)
    )
    worklist = Worklist(
        rows=rows,
        set_aside=tuple((text, text, text) for text in texts),
        rule=texts[0],
        alarm_percentile=99.0,
        provenance={f"{number} {text}": text for number, text in enumerate(texts)},
        created=texts[1],
        identified=True,
        detectors=({f"{number} {text}": text for number, text in enumerate(texts)},),
        residual_scale=texts[2] or "x",
    )
    return render_worklist(worklist)


@pytest.mark.parametrize("render", [slide_page, worklist_page])
def test_pages_have_our_elements_and_nothing_else(texts, render):
    for odd, plain in pages_of(texts):
        found, expected = Structure(render(odd)), Structure(render(plain))
        assert found.elements == expected.elements, odd
        assert found.classes == expected.classes
        assert found.other == []
        assert {url for url in found.urls if not url.startswith("data:image/")} <= {"#set-aside"}
        assert not {name for element in found.elements for name in element[1:]} & {"style", "on"}
        assert not [e for e in found.elements if any(name.startswith("on") for name in e[1:])]
        assert "script" not in {element[0] for element in found.elements}


def test_labels_of_heat_maps_coordinates_figures_and_outlines(texts, tmp_path):
    """A sample: each of these writes a whole file."""
    good = [text for text in texts if usable(text, tmp_path)]
    corners = np.array([[0, 0], [64, 0]])
    for text in texts[:: max(1, len(texts) // 60)]:
        write_heatmap(
            tmp_path / "map.tif",
            np.array([0.0, 1.0]),
            xy_level0=corners,
            edge_level0=64,
            slide_size=(128, 64),
            slide_mpp=0.5,
            limits=(0.0, 1.0),
            label=text,
        )
        with tifffile.TiffFile(tmp_path / "map.tif") as tiff:
            assert json.loads(tiff.pages[0].description)["content"].endswith(text)
        write_asap(tmp_path / "a.xml", [("".join(filter(str.isprintable, text)), SQUARE)])
        root = ElementTree.parse(tmp_path / "a.xml").getroot()
        assert len(list(root.iter("Annotation"))) == 1
        assert {element.tag for element in root.iter()} == OUTLINE_TAGS
    for text in good[:: max(1, len(good) // 20)]:
        write_coordinates_h5(
            tmp_path / "a.h5",
            corners,
            patch_size=64,
            patch_level=0,
            patch_size_level0=64,
            slide_size=(128, 64),
            level_size=(128, 64),
            slide_mpp=0.5,
            name=text,
        )
        with h5py.File(tmp_path / "a.h5") as file:
            assert file["coords"].attrs["name"] == text
        classes = {text: np.arange(3.0), "normal": np.arange(3.0)}
        write_histogram(tmp_path / "h", classes, title=text)
        svg = ElementTree.parse(tmp_path / "h.svg").getroot()
        assert not [e for e in svg.iter() if str(e.tag).endswith("script")]
        assert not [name for e in svg.iter() for name in e.attrib if name.startswith("on")]
        write_tiling_picture(
            tmp_path / "q.png",
            np.full((32, 64, 3), 200, np.uint8),
            mask=np.ones((32, 64), dtype=bool),
            downsample=2.0,
            xy_level0=corners,
            edge_level0=64,
            title=text,
            caption=text,
        )


SQUARE = [(0.0, 0.0), (9.0, 0.0), (9.0, 9.0)]
OUTLINE_TAGS = {"ASAP_Annotations", "Annotations", "Annotation", "Coordinates", "Coordinate"}
OUTLINE_TAGS |= {"AnnotationGroups", "Group", "Attributes"}


def test_groups_and_classes_of_outlines_are_read_or_refused(texts, tmp_path):
    ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
    for text in texts:
        feature = {
            "type": "Feature",
            "id": text,
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": text}},
        }
        path = tmp_path / "a.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        try:
            found = read_annotation(path, slide_size=(100, 100))
        except EsadError:
            continue
        assert found.tumor.within(box(0, 0, 100, 100))


CHEST = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
    "SOPInstanceUID": "1.2.3.4",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.1",
    "Modality": "CR",
}
FREE = ("PatientName", "PatientID", "AccessionNumber", "StudyID", "StudyDescription")
FREE = (*FREE, "ReferringPhysicianName", "InstitutionName")


@pytest.mark.filterwarnings("ignore::UserWarning:highdicom")
def test_reports_for_a_pacs_hold_valid_values_and_no_text_of_a_header_in_their_content(
    texts, tmp_path
):
    pytest.importorskip("highdicom", reason="the extra 'dicom' is not installed")
    import datetime

    now = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    written = 0
    for text in texts[:: max(1, len(texts) // 150)]:
        source = Dataset()
        source.SpecificCharacterSet = "ISO_IR 192"
        for keyword, value in CHEST.items():
            setattr(source, keyword, value)
        for keyword in FREE:
            setattr(source, keyword, text.encode(errors="replace").decode())
        image = ImageResult(source, "PA", 1.0, 50.0, 0.5, 0.5, "0" * 64)
        try:
            report = build_structured_report(StudyResult((image,), 0, "rule", "0", now))
        except CaseError:
            continue
        write_dicom(tmp_path / "sr.dcm", report)
        found = dcmread(tmp_path / "sr.dcm")
        written += 1
        assert found.StudyInstanceUID == "1.2.3"
        for keyword in FREE:
            value = str(found.get(keyword, "") or "")
            assert not re.search(r"[\x00-\x1f\x7f]", value)
            assert len(value) <= 200
        content = str(found.ContentSequence)
        assert len(text.strip()) < 4 or text.strip() not in content
    assert written > 100


def test_nothing_steers_a_terminal(texts):
    for text in texts:
        shown = printable(text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
