"""DICOM results: read by other programs than ours, filed under the study, the same every time."""

import dataclasses
import datetime
import io
import logging
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, config
from pydicom.dataelem import DataElement
from pydicom.sr.codedict import codes
from pydicom.tag import Tag

from esad_med.base.errors import CaseError, ConfigError
from esad_med.outputs import dicom
from esad_med.outputs.dicom import (
    ImageResult,
    StudyResult,
    build_secondary_capture,
    build_structured_report,
    write_dicom,
)

pytest.importorskip("highdicom", reason="the extra 'dicom' is not installed")

CR = "1.2.840.10008.5.1.4.1.1.1"
ROOT = "1.2.826.0.1.3680043.8.498.77"
RULE = "highest percentile of its images"
CREATED = datetime.datetime(2026, 1, 2, 3, 4, 5)
BUILDERS = {
    "report": build_structured_report,
    "capture": lambda result: build_secondary_capture(result, make_picture()),
}


def make_source(number=1, **changes):
    """The header of a composed radiograph as a file gives it: nothing of it converted yet.

    A change to None leaves the attribute out; bytes are written as they are.
    """
    values = {
        "SOPClassUID": CR,
        "SOPInstanceUID": f"{ROOT}.3.{number}",
        "StudyInstanceUID": f"{ROOT}.1",
        "SeriesInstanceUID": f"{ROOT}.2",
        "Modality": "CR",
        "PatientName": "Doe^Jane",
        "PatientID": "P-4711",
        "PatientBirthDate": "19600229",
        "PatientSex": "F",
        "StudyDate": "20251231",
        "StudyTime": "235959.5",
        "StudyID": "S1",
        "AccessionNumber": "A-0815",
        "ReferringPhysicianName": "Ward^Three",
        "BodyPartExamined": "CHEST",
        "Manufacturer": "Maker",
    }
    source = Dataset()
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is wrong on purpose
        for keyword, value in (values | changes).items():
            if isinstance(value, bytes):  # an OB is written untouched; implicit VR hides the OB
                source.add(DataElement(Tag(keyword), "OB", value + b" " * (len(value) % 2)))
            elif value is not None:
                setattr(source, keyword, value)
        file = io.BytesIO()
        pydicom.dcmwrite(file, source, implicit_vr=True, little_endian=True)
        file.seek(0)
        return pydicom.dcmread(file, force=True)


def make_image(source=None, **changes):
    values = {
        "source": source or make_source(),
        "view": "PA",
        "score": 1.2345678901234567,
        "percentile": 97.25,
        "reconstruction": 1.0,
        "norm": 0.2345678901234567,
        "detector": "ab" * 32,
    }
    return ImageResult(**(values | changes))


def make_result(*images, **changes):
    values = {
        "images": images or (make_image(),),
        "driving": 0,
        "rule": RULE,
        "version": "0.1.0",
        "created": CREATED,
    }
    return StudyResult(**(values | changes))


def make_pair(first=None, second=None):
    """A study of two images by two detectors; the second drives."""
    one = make_image(first or make_source(1), score=0.5, percentile=20.0)
    other = make_image(second or make_source(2), view="AP", percentile=99.5, detector="cd" * 32)
    return make_result(one, other, driving=1)


def make_picture(height=15, width=7):
    """Odd in both directions: DICOM pads pixel data to an even number of bytes."""
    size = height * width * 3
    return (np.arange(size) % 251).astype(np.uint8).reshape(height, width, 3)


def to_bytes(dataset, path):
    write_dicom(path, dataset)
    return path.read_bytes()


def read_report(path):
    from highdicom.sr import srread

    return srread(path).content.get_image_measurement_groups()


def numbers_of(group):
    return {m.name.value: m.value for m in group.get_measurements()}


def evaluations_of(group):
    return {e.name.value: e.value for e in group.get_qualitative_evaluations()}


def texts_of(group):
    items = group[0].ContentSequence
    texts = [item for item in items if item.ValueType == "TEXT"]
    return {t.ConceptNameCodeSequence[0].CodeMeaning: t.TextValue for t in texts}


def run_tool(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed (Debian: dicom3tools, dcmtk)")
    run = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    assert run.returncode == 0 or command[0] == "dciodvfy", run.stderr
    return (run.stdout + run.stderr).decode("utf-8", errors="replace")


def assert_valid(result, folder):
    """Both objects of a study, as dciodvfy sees them."""
    for kind, build in BUILDERS.items():
        write_dicom(folder / f"{kind}.dcm", build(result))
        said = run_tool("dciodvfy", folder / f"{kind}.dcm")
        assert {"report": "ComprehensiveSR", "capture": "SCImage"}[kind] in said.splitlines()
        assert [line for line in said.splitlines() if "Error" in line] == [], kind


def test_report_gives_back_every_number_reference_and_algorithm(tmp_path):
    result = make_pair()
    write_dicom(tmp_path / "sr.dcm", build_structured_report(result))
    study, *groups = read_report(tmp_path / "sr.dcm")
    assert len(groups) == 2
    for group, image in zip(groups, result.images, strict=True):
        assert numbers_of(group) == {
            "PERCENTILE": image.percentile,
            "SCORE": image.score,
            "RECONSTRUCTION": image.reconstruction,
            "NORM": image.norm,
        }
        (reference,) = group.source_images
        assert reference.referenced_sop_instance_uid == image.source.SOPInstanceUID
        assert reference.referenced_sop_class_uid == CR
        texts = texts_of(group)
        assert texts["Algorithm Name"] == "esad-med ESAD"
        assert texts["Algorithm Version"] == "0.1.0"
        assert texts["Algorithm Parameters"] == f"detector SHA-256 {image.detector}"
        assert evaluations_of(group)["SCOPE"].meaning == "One image"
    views = [evaluations_of(group)["111031"].meaning for group in groups]
    assert views == ["postero-anterior", "antero-posterior"]
    assert numbers_of(study) == {"PERCENTILE": 99.5, "SCORE": result.driver.score}
    assert study.source_images[0].referenced_sop_instance_uid == f"{ROOT}.3.2"


def test_report_says_how_the_study_is_scored_by_whom_and_what_it_is_not_for(tmp_path):
    write_dicom(tmp_path / "sr.dcm", build_structured_report(make_pair()))
    study, *groups = read_report(tmp_path / "sr.dcm")
    assert texts_of(study)["Rule of the study's score"] == RULE
    assert evaluations_of(study)["SCOPE"].meaning == "Whole study"
    for group in (study, *groups):
        assert evaluations_of(group)["INTENDED_USE"].meaning.endswith("not for diagnosis")
    units = {m.name.value: m.unit for m in study.get_measurements()}
    assert units == {"PERCENTILE": codes.UCUM.Percent, "SCORE": codes.UCUM.NoUnits}
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert report.PreliminaryFlag == "PRELIMINARY"
    schemes = report.CodingSchemeIdentificationSequence
    assert [scheme.CodingSchemeDesignator for scheme in schemes] == ["99ESAD"]
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    listed = [i.ReferencedSOPInstanceUID for s in evidence for i in s.ReferencedSOPSequence]
    assert sorted(listed) == [f"{ROOT}.3.1", f"{ROOT}.3.2"]


def test_report_names_the_program_as_its_observer(tmp_path):
    from highdicom.sr import srread

    write_dicom(tmp_path / "sr.dcm", build_structured_report(make_result()))
    (observer,) = srread(tmp_path / "sr.dcm").content.get_observer_contexts()
    assert observer.observer_type == codes.DCM.Device
    assert observer.observer_identifying_attributes.name == "esad-med"
    assert observer.observer_identifying_attributes.model_name == "esad-med 0.1.0"


@settings(max_examples=25)
@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(min_value=0, max_value=100),
)
def test_numbers_survive_to_the_last_bit(score, percentile):
    image = make_image(score=score, percentile=percentile)
    file = io.BytesIO()
    build_structured_report(make_result(image)).save_as(file, enforce_file_format=True)
    file.seek(0)
    found = numbers_of(read_report(file)[1])
    assert (found["SCORE"], found["PERCENTILE"]) == (score, percentile)


def test_numbers_of_numpy_are_numbers_too(tmp_path):
    image = make_image(score=np.float32(1.5), percentile=np.float64(50))
    write_dicom(tmp_path / "sr.dcm", build_structured_report(make_result(image)))
    assert numbers_of(read_report(tmp_path / "sr.dcm")[1])["SCORE"] == 1.5


def test_an_unknown_view_is_not_claimed(tmp_path):
    write_dicom(tmp_path / "sr.dcm", build_structured_report(make_result(make_image(view=""))))
    assert "111031" not in evaluations_of(read_report(tmp_path / "sr.dcm")[1])


def test_one_file_given_twice_is_listed_once_as_evidence(tmp_path):
    report = build_structured_report(make_result(make_image(), make_image(score=2.0)))
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == 1
    assert_valid(make_result(make_image(), make_image(score=2.0)), tmp_path)


def test_capture_keeps_each_pixel_and_refers_to_the_driving_image(tmp_path):
    picture = make_picture()
    write_dicom(tmp_path / "sc.dcm", build_secondary_capture(make_pair(), picture))
    capture = pydicom.dcmread(tmp_path / "sc.dcm")
    assert (capture.pixel_array == picture).all()
    (source,) = capture.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == f"{ROOT}.3.2"
    assert source.ReferencedSOPClassUID == CR
    assert capture.Modality == "OT"
    assert capture.BodyPartExamined == "CHEST"
    assert "BurnedInAnnotation" not in capture  # the source does not say
    assert capture.SeriesDescription == "ESAD residual overlay (research use only)"
    assert list(capture.ImageType) == ["DERIVED", "SECONDARY"]
    assert "not for diagnosis" in capture.DerivationDescription
    assert capture.PhotometricInterpretation == "RGB"
    assert "Laterality" not in capture
    assert not capture.PatientOrientation


@pytest.mark.parametrize(
    ("stated", "wanted"), [("YES", "YES"), ("NO", "NO"), ("maybe", None), (None, None)]
)
def test_burned_in_names_stay_marked(stated, wanted):
    source = make_source()
    if stated is not None:
        source.BurnedInAnnotation = stated
    capture = build_secondary_capture(make_result(make_image(source)), make_picture())
    assert capture.get("BurnedInAnnotation") == wanted


def test_a_picture_seen_through_a_stride_is_written_as_it_looks(tmp_path):
    picture = np.repeat(make_picture(), 2, axis=1)[:, ::2][::-1]
    write_dicom(tmp_path / "sc.dcm", build_secondary_capture(make_result(), picture))
    assert (pydicom.dcmread(tmp_path / "sc.dcm").pixel_array == picture).all()


@pytest.mark.parametrize(("stated", "wanted"), [("01", "01"), ("00", None), (None, None)])
def test_what_was_compressed_with_loss_stays_marked(stated, wanted):
    result = make_result(make_image(make_source(LossyImageCompression=stated)))
    capture = build_secondary_capture(result, make_picture())
    assert capture.get("LossyImageCompression") == wanted


@pytest.mark.parametrize("kind", BUILDERS)
def test_same_study_same_bytes(kind, tmp_path):
    first = to_bytes(BUILDERS[kind](make_pair()), tmp_path / "a.dcm")
    assert to_bytes(BUILDERS[kind](make_pair()), tmp_path / "b.dcm") == first


def uids(result):
    objects = [build(result) for build in BUILDERS.values()]
    return [uid for o in objects for uid in (o.SOPInstanceUID, o.SeriesInstanceUID)]


def test_uids_hang_on_images_detectors_and_version_only():
    result = make_pair()
    known = uids(result)
    assert len(set(known)) == 4
    later = dataclasses.replace(result, created=CREATED + datetime.timedelta(days=1))
    turned = dataclasses.replace(result, images=result.images[::-1], driving=0)
    assert uids(later) == uids(turned) == known
    one = result.images[0]
    for other in (
        dataclasses.replace(result, version="0.2.0"),
        dataclasses.replace(result, driving=0),
        dataclasses.replace(result, images=result.images[1:], driving=0),
        make_result(dataclasses.replace(one, detector="ef" * 32), result.images[1], driving=1),
        make_pair(second=make_source(3)),
    ):
        assert not set(uids(other)) & set(known)


def test_tracking_uids_tell_all_groups_apart(tmp_path):
    write_dicom(tmp_path / "sr.dcm", build_structured_report(make_pair()))
    groups = read_report(tmp_path / "sr.dcm")
    assert len({group.tracking_uid for group in groups}) == 3


@pytest.mark.parametrize("kind", BUILDERS)
def test_objects_carry_the_studys_identifiers(kind, tmp_path):
    source = make_source(IssuerOfPatientID="Clinic", StudyDescription="Chest PA", PatientAge="065Y")
    write_dicom(tmp_path / "a.dcm", BUILDERS[kind](make_result(make_image(source))))
    written = pydicom.dcmread(tmp_path / "a.dcm")
    for keyword in (
        *dicom.IDENTIFIERS,
        *("StudyInstanceUID", "IssuerOfPatientID", "StudyDescription", "PatientAge"),
    ):
        assert written[keyword].value == source[keyword].value, keyword
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert (written.ContentDate, written.ContentTime) == ("20260102", "030405")
    assert "SpecificCharacterSet" not in written


NAMES = {
    "ISO_IR 100": "Müller^Jörg",
    "ISO_IR 101": "Wałęsa^Łucja",
    "ISO_IR 144": "Люкceмбypг",
    "ISO_IR 126": "Διονυσιος",
    "ISO_IR 192": "Wang^XiaoDong=王^小东",
    "GB18030": "Wang^XiaoDong=王^小东",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
}


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("charset", NAMES)
def test_names_keep_their_character_set_and_bytes(charset, kind, tmp_path):
    names = charset.split("\\")
    source = make_source(SpecificCharacterSet=names, PatientName=NAMES[charset])
    raw = source.get_item("PatientName").value
    write_dicom(tmp_path / "a.dcm", BUILDERS[kind](make_result(make_image(source))))
    written = pydicom.dcmread(tmp_path / "a.dcm")
    assert written.get_item("PatientName").value.rstrip() == raw.rstrip()
    assert written.PatientName == NAMES[charset]
    found = written.SpecificCharacterSet
    assert ([found] if isinstance(found, str) else list(found)) == names


def test_a_rule_beyond_the_studys_character_set_moves_both_to_utf8(tmp_path):
    source = make_source(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    result = make_result(make_image(source), rule="Mittel der höchsten λ₁-Werte")
    write_dicom(tmp_path / "sr.dcm", build_structured_report(result))
    written = pydicom.dcmread(tmp_path / "sr.dcm")
    assert written.SpecificCharacterSet == "ISO_IR 192"
    assert written.PatientName == "Müller^Jörg"
    rule = texts_of(read_report(tmp_path / "sr.dcm")[0])["Rule of the study's score"]
    assert rule == "Mittel der höchsten λ₁-Werte"


@pytest.mark.parametrize("charset", [None, "ISO_IR 6", "KLINGON", "ISO_IR 192"])
@pytest.mark.parametrize("codec", ["utf-8", "latin-1"])
def test_names_in_an_undeclared_character_set_are_read_as_meant(charset, codec, tmp_path):
    name = "Müller^Jörg"
    source = make_source(PatientName=name.encode(codec), SpecificCharacterSet=charset)
    write_dicom(tmp_path / "sr.dcm", build_structured_report(make_result(make_image(source))))
    written = pydicom.dcmread(tmp_path / "sr.dcm")
    assert written.PatientName == name
    assert written.SpecificCharacterSet == "ISO_IR 192"


def test_character_sets_that_cannot_be_combined_are_not_passed_on(tmp_path):
    names = ["ISO_IR 100", "ISO 2022 IR 87"]
    raw = "Yamada^Tarou=山田^太郎".encode("iso2022_jp")
    source = make_source(SpecificCharacterSet=names, PatientName=raw)
    write_dicom(tmp_path / "sr.dcm", build_structured_report(make_result(make_image(source))))
    written = pydicom.dcmread(tmp_path / "sr.dcm")
    assert written.PatientName == "Yamada^Tarou=山田^太郎"
    assert written.SpecificCharacterSet == "ISO_IR 192"


ODD = {
    "PatientID": ["SECRET1\\SECRET2", None, "SECRET" * 12, "SEC\nRET", ""],
    "PatientName": ["SECRET\\TWO", None, "SECRET" * 20, "A=B=C=SECRET", "A^B^C^D^E^SECRET"],
    "PatientBirthDate": ["19991332", "20230229", "SECRET", "19600101-19700101", None],
    "PatientSex": ["SECRET", "", None, "X", "FEMALE"],
    "StudyDate": [None, "", "2025-12-31", "2025", "２０２５1231".encode()],
    "StudyTime": ["25", "1200-1300", "noon", "12:61", None],
    "AccessionNumber": ["SECRET OF MORE THAN 16", "A\\SECRET", None, "", "\t"],
    "StudyID": ["SECRET OF MORE THAN 16", None, "", "\\", "\x1b"],
    "ReferringPhysicianName": ["SECRET\\TWO", None, "", "A=B=C=D", "W" * 70],
}
ELSEWHERE = {
    "PatientAge": "62",
    "StudyDescription": "SECRET" * 12,
    "Laterality": "",
    "PatientOrientation": "",
    "BodyPartExamined": None,
    "Manufacturer": None,
    "IssuerOfPatientID": "SEC\\RET",
    "InstanceCreatorUID": "../../SECRET",
    "FrameOfReferenceUID": "1.2.0840.SECRET",
}


@pytest.mark.parametrize("row", range(5))
def test_what_is_not_valid_in_a_source_is_left_empty_and_not_repeated(row, tmp_path, caplog):
    odd = {keyword: values[row] for keyword, values in ODD.items()}
    result = make_result(make_image(make_source(**odd, **ELSEWHERE)))
    with caplog.at_level(logging.DEBUG):
        for kind, build in BUILDERS.items():
            raw = to_bytes(build(result), tmp_path / f"{kind}.dcm")
            assert b"SECRET" not in raw
            written = pydicom.dcmread(tmp_path / f"{kind}.dcm")
            assert [k for k in ODD if written[k].value] == []
            assert "PatientAge" not in written
            assert "Laterality" not in written
    assert "SECRET" not in caplog.text
    assert ROOT not in caplog.text
    assert_valid(result, tmp_path)


def test_names_of_one_component_are_kept_without_a_word(tmp_path, caplog):
    result = make_result(make_image(make_source(PatientName="SECRET")))
    for kind, build in BUILDERS.items():
        write_dicom(tmp_path / f"{kind}.dcm", build(result))  # a warning would be an error here
        assert pydicom.dcmread(tmp_path / f"{kind}.dcm").PatientName == "SECRET"
    assert "SECRET" not in caplog.text


def test_dates_of_before_dicom_are_understood():
    source = make_source(StudyDate="1993.02.24", StudyTime="17:58:00")
    report = build_structured_report(make_result(make_image(source)))
    assert (report.StudyDate, report.StudyTime) == ("19930224", "175800")


def test_sources_made_in_memory_serve_as_well(tmp_path):
    source = make_source()
    for element in source:  # converted by looking at it
        assert element.value is not None
    source.PatientName = "Müller^Jörg"
    write_dicom(tmp_path / "sr.dcm", build_structured_report(make_result(make_image(source))))
    written = pydicom.dcmread(tmp_path / "sr.dcm")
    assert written.PatientName == "Müller^Jörg"
    assert written.PatientID == "P-4711"


@pytest.mark.parametrize("keyword", dicom.UIDS)
@pytest.mark.parametrize(
    "value", [None, "", "../../SECRET", "1.2.0840.113619", "1." * 40 + "1", f"{ROOT}\\{ROOT}"]
)
def test_a_source_that_cannot_be_referred_to_is_refused_without_its_identifiers(keyword, value):
    source = make_source(**{keyword: value})
    with pytest.raises(CaseError, match=f"{keyword} of a source image is ") as caught:
        make_image(source)
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view": "lateral"}, "PA, AP or none"),
        ({"score": float("nan")}, "finite"),
        ({"norm": float("inf")}, "finite"),
        ({"percentile": 100.5}, "0-100"),
        ({"percentile": float("nan")}, "0-100"),
        ({"detector": "abc"}, "64 hexadecimal"),
    ],
)
def test_image_results_that_no_detector_gives(changes, message):
    with pytest.raises(ValueError, match=message):
        make_image(**changes)


def test_study_results_that_contradict_themselves():
    stranger = make_image(make_source(2, StudyInstanceUID=f"{ROOT}.9"))
    with pytest.raises(ValueError, match="one study") as caught:
        make_result(make_image(), stranger)
    assert ROOT not in str(caught.value)
    with pytest.raises(ValueError, match="no image 1 among 1"):
        make_result(driving=1)
    with pytest.raises(ValueError, match="no image 0 among 0"):
        StudyResult((), 0, RULE, "0.1.0", CREATED)
    with pytest.raises(ValueError, match="rule and a version"):
        make_result(rule="")


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (65536, 1, 3)])
def test_pictures_that_are_none(shape):
    with pytest.raises(ValueError, match="expected"):
        build_secondary_capture(make_result(), np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        build_secondary_capture(make_result(), np.zeros((4, 4, 3)))


@pytest.mark.parametrize("kind", BUILDERS)
def test_without_highdicom_the_remedy_is_named(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r"pip install 'esad-med\[dicom\]'"):
        BUILDERS[kind](make_result())


def test_files_have_a_preamble_and_stand_there_whole_or_not_at_all(tmp_path):
    report = build_structured_report(make_result())
    assert to_bytes(report, tmp_path / "sr.dcm")[128:132] == b"DICM"
    assert pydicom.dcmread(tmp_path / "sr.dcm").file_meta.MediaStorageSOPInstanceUID == (
        report.SOPInstanceUID
    )
    with config.disable_value_validation():
        report.Rows = "many"
    with pytest.raises(OSError, match="not an integer"):  # while it is encoded
        write_dicom(tmp_path / "broken.dcm", report)
    assert [path.name for path in tmp_path.iterdir()] == ["sr.dcm"]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_dicom(tmp_path / "no such folder" / "sr.dcm", build_structured_report(make_result()))


@pytest.mark.parametrize("result", [make_result(), make_pair()], ids=["one image", "two images"])
def test_composed_studies_are_valid_dicom(result, tmp_path):
    assert_valid(result, tmp_path)


def test_dcmtk_reads_the_report(tmp_path):
    write_dicom(tmp_path / "sr.dcm", build_structured_report(make_pair()))
    text = run_tool("dsrdump", "+Pl", "+Pc", tmp_path / "sr.dcm")  # whole texts, all codes
    name = '(PERCENTILE,99ESAD,"Anomaly score percentile among normal images")'
    assert f'<contains NUM:{name}="99.5" (%,UCUM,"Percent")>' in text
    assert RULE in text
    assert "Research use only, not for diagnosis" in text
    assert "cd" * 32 in text
    assert f"{ROOT}.3.2" in run_tool("dcmdump", tmp_path / "sr.dcm")


FILES = ("chest/*", "wrapped_nih/*")


@pytest.mark.data
def test_real_radiographs_give_valid_objects_under_their_own_study(data_root, tmp_path):
    files = [f for pattern in FILES for f in sorted((data_root / "cxr_dicom").glob(pattern))]
    assert len(files) == 6
    for file in files:
        source = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        twin = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        twin.SOPInstanceUID = f"{ROOT}.3.9"
        for result in (make_result(make_image(source)), make_pair(source, twin)):
            assert_valid(result, tmp_path)
            written = pydicom.dcmread(tmp_path / "report.dcm")
            assert written.StudyInstanceUID == source.StudyInstanceUID
            assert written.PatientName == source.PatientName
            assert len(read_report(tmp_path / "report.dcm")) == 1 + len(result.images)


@pytest.mark.data
def test_a_japanese_patient_keeps_name_and_bytes(data_root, tmp_path):
    file = data_root / "cxr_dicom" / "odd" / "chrJapMulti_no_pixels.dcm"
    source = pydicom.dcmread(file, force=True, stop_before_pixels=True)
    raw = source.get_item("PatientName").value
    result = make_result(make_image(source))
    assert_valid(result, tmp_path)
    for kind in BUILDERS:
        written = pydicom.dcmread(tmp_path / f"{kind}.dcm")
        assert written.get_item("PatientName").value == raw
        assert written.PatientName == "やまだ^たろう"
        assert list(written.SpecificCharacterSet) == ["", "ISO 2022 IR 87"]
        assert written.AccessionNumber == source.AccessionNumber
