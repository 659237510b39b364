"""What a DICOM header says of a radiograph, in all the ways that devices write it."""

import io

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import Collection
from xray_files import draw, make_dataset, to_bytes

from data_prep.xray_dicom_header import age_of, read_header, view_of
from data_prep.xray_dicom_values import text_of
from data_prep.xray_header import plain
from esad_med.base.errors import ImageError


def header_of(**changes):
    """By way of a file, as values are not checked when written into a data set."""
    return read_header(pydicom.dcmread(io.BytesIO(to_bytes(make_dataset(draw(), **changes)))))


def code(value, scheme="SCT", meaning="view"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


@pytest.mark.parametrize(
    ("position", "view"),
    [
        ("PA", "PA"),
        ("AP", "AP"),
        ("pa", "PA"),
        ("AP PORTABLE", "AP"),
        ("LL", "lateral"),
        ("RL", "lateral"),
        ("LATERAL", "lateral"),
        ("LAT", "lateral"),
        ("LLD", "LLD"),
        ("RLD", "RLD"),
        ("LLO", "LLO"),
        ("RAO", "RAO"),
        ("PADDED", "PADDED"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_view_position_is_understood(position, view):
    assert header_of(ViewPosition=position).view == view


def test_views_are_told_by_the_codes_of_the_standard():
    expected = {
        "Postero-anterior": "PA",
        "Antero-posterior": "AP",
        "Lateral": "lateral",
        "LeftLateral": "lateral",
        "RightLateral": "lateral",
    }
    known = {name.lower().replace("-", ""): name for name in dir(Collection("CID4010"))}
    found = 0
    for name, view in expected.items():
        keyword = known.get(name.lower().replace("-", ""))
        if keyword is None:
            continue
        found += 1
        item = getattr(Collection("CID4010"), keyword)
        ds = make_dataset(draw(), ViewPosition=None)
        ds.ViewCodeSequence = [code(item.value, item.scheme_designator)]
        assert view_of(ds) == view, name
    assert found >= 3


@pytest.mark.parametrize(("value", "view"), [("R-10206", "AP"), ("R-10214", "PA")])
def test_views_are_told_by_the_codes_of_older_devices(value, view):
    assert header_of(ViewPosition=None, ViewCodeSequence=[code(value, "SRT")]).view == view


def test_the_view_position_goes_before_the_code_and_an_unknown_code_is_shown():
    pa = code("272479007")
    assert header_of(ViewPosition="AP", ViewCodeSequence=[pa]).view == "AP"
    assert header_of(ViewPosition="", ViewCodeSequence=[pa]).view == "PA"
    assert header_of(ViewPosition=None, ViewCodeSequence=[code("12345")]).view == "12345"
    assert header_of(ViewPosition=None, ViewCodeSequence=[]).view == ""


@pytest.mark.parametrize("orientation", [["A", "F"], ["P", "F"], ["F", "P"], ["AL", "F"]])
def test_a_picture_from_front_to_back_is_lateral_whatever_else_is_said(orientation):
    assert header_of(ViewPosition="PA", PatientOrientation=orientation).view == "lateral"
    assert header_of(ViewPosition="PA", PatientOrientation=["L", "F"]).view == "PA"


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("058Y", 58),
        ("018M", 1.5),
        ("012W", 12 / 52.18),
        ("003D", 3 / 365.25),
        ("62", 62),
        ("62 y", 62),
        ("100Y", 100),
        ("1234Y", None),
        ("abc", None),
        ("-5Y", None),
        ("58,5", None),
        ("", None),
    ],
)
def test_ages_are_years(text, years):
    assert header_of(PatientAge=text).age == (pytest.approx(years) if years else None)


@pytest.mark.parametrize(
    ("born", "taken", "years"),
    [
        ("19600102", "20200102", 60),
        ("1960.01.02", "20200102", 60),
        ("20200102", "19600102", None),
        ("19601399", "20200102", None),
        ("1960", "20200102", None),
        ("19600102", None, None),
        ("", "20200102", None),
    ],
)
def test_an_age_that_is_not_stated_comes_from_the_dates(born, taken, years):
    ds = make_dataset(draw(), PatientAge=None, PatientBirthDate=born, StudyDate=taken)
    assert age_of(ds) == (pytest.approx(years, abs=0.01) if years else None)
    ds.PatientAge = "nonsense"
    assert age_of(ds) == (pytest.approx(years, abs=0.01) if years else None)
    ds.PatientAge = "044Y"
    assert age_of(ds) == 44


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"Modality": "dx"}, "modality", "DX"),
        ({"BodyPartExamined": "Chest"}, "body_part", "CHEST"),
        ({"BodyPartExamined": None}, "body_part", ""),
        ({"PatientSex": "m"}, "sex", "M"),
        ({"PatientSpeciesDescription": "Canis familiaris"}, "species", "Canis familiaris"),
        ({"PatientSpeciesDescription": "Homo sapiens"}, "species", ""),
        (
            {"PatientSpeciesCodeSequence": [code("448771007", meaning="Dog")]},
            "species",
            "Dog",
        ),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing", True),
        ({"PixelSpacing": [0.2, 0.1]}, "spacing_mm", (0.2, 0.1)),
        ({"ImagerPixelSpacing": [0.3, 0.1]}, "spacing_mm", (0.3, 0.1)),
        ({"PixelSpacing": [0, 0.1], "ImagerPixelSpacing": [1, 1]}, "spacing_mm", (1, 1)),
        ({"PixelSpacing": None}, "spacing_mm", None),
        ({"PatientID": "4711"}, "patient_id", "4711"),
        ({"PatientID": None}, "patient_id", ""),
    ],
)
def test_facts_are_told_as_they_are_used(changes, name, value):
    assert getattr(header_of(**changes), name) == value


def test_rows_that_are_no_whole_number_are_refused():
    ds = make_dataset(draw())
    ds.add_new("Rows", "LO", "many")
    with pytest.raises(ImageError, match="Rows is not a number"):
        read_header(ds)
    ds.add_new("Rows", "FD", 96.5)
    with pytest.raises(ImageError, match="Rows is not a whole number"):
        read_header(ds)


def test_a_code_sequence_that_is_no_sequence_says_nothing():
    ds = make_dataset(draw(), ViewPosition=None)
    ds.add_new("ViewCodeSequence", "LO", "PA")
    ds.add_new("PatientSpeciesCodeSequence", "LO", "dog")
    assert read_header(ds).view == ""
    assert read_header(ds).species == ""


@given(st.text(max_size=40))
def test_a_shown_code_is_short_and_holds_no_name(text):
    shown = plain(text)
    assert len(shown) <= 16
    assert all(letter.isascii() and (letter.isalnum() or letter in " _.+/-?") for letter in shown)
    assert plain(f"X{text}^") == "?"


def test_a_sequence_where_text_belongs_says_nothing_of_what_is_in_it():
    item = Dataset()
    item.PatientName = "Secret^Sam"
    dataset = make_dataset(draw())
    dataset[0x00080060] = DataElement(0x00080060, "SQ", [item])
    assert text_of(dataset, "Modality") == ""
