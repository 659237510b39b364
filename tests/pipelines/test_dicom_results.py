"""A study's scores as DICOM, and triage as the node calls it."""

import errno
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from composed_xrays import draw_pixels
from PIL import Image

from esad_med.base.config import load_config
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.execution import Place, open_executor
from pipelines.dicom_triage import make_study_triage
from pipelines.triage import triage
from pipelines.triage_intake import TriageConfig
from pipelines.triage_scoring import load_detectors


@pytest.fixture
def study_triage(xray_detectors, tmp_path):
    return make_study_triage(
        list(xray_detectors.values()), out=tmp_path / "node", config=None, settings=[], device="cpu"
    )


def test_a_study_gives_a_report_and_a_picture_that_name_it(study_triage, write_dicom, tmp_path):
    study = {"StudyInstanceUID": "1.2.3.99"}
    files = [
        write_dicom(tmp_path / "in" / "pa.dcm", seed=1, **study),
        write_dicom(tmp_path / "in" / "ap.dcm", seed=2, ViewPosition="AP", **study),
    ]
    (tmp_path / "out").mkdir()
    report, capture = (pydicom.dcmread(p) for p in study_triage(files, tmp_path / "out"))
    assert report.Modality == "SR"
    assert report.PatientID == capture.PatientID == "SECRET-4711"
    assert report.StudyInstanceUID == capture.StudyInstanceUID == "1.2.3.99"
    referenced = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    uids = {item.ReferencedSOPInstanceUID for s in referenced for item in s.ReferencedSOPSequence}
    assert uids == {pydicom.dcmread(path).SOPInstanceUID for path in files}
    picture = capture.pixel_array
    assert picture.shape[1:] == (160, 3)
    assert picture.shape[0] > 160
    assert (picture[:160].astype(int).max(2) - picture[:160].min(2)).max() > 30  # some color


def test_the_same_study_gives_the_same_uids(study_triage, write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", seed=1)
    found = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        found.append(
            [pydicom.dcmread(p).SOPInstanceUID for p in study_triage([path], tmp_path / name)]
        )
    assert found[0] == found[1]


def test_beside_this_process_a_study_gives_the_same_objects(xray_detectors, write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", seed=1)
    lateral = write_dicom(tmp_path / "b.dcm", seed=1, ViewPosition="LL")
    chosen = {"config": None, "settings": [], "device": "cpu", "out": tmp_path / "node"}
    found = []
    with open_executor(Place(1)) as executor:
        for where in (None, executor):
            run = make_study_triage(list(xray_detectors.values()), executor=where, **chosen)
            folder = tmp_path / str(len(found))
            folder.mkdir()
            found.append([pydicom.dcmread(result) for result in run([path], folder)])
            with pytest.raises(CaseError, match="lateral view"):
                run([lateral], folder)
    for here, there in zip(*found, strict=True):
        assert here.SOPInstanceUID == there.SOPInstanceUID
        assert here.get("PixelData") == there.get("PixelData")


def test_a_full_disk_is_told_from_a_bad_study(study_triage, write_dicom, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        error = ConfigError("sr.dcm cannot be written")
        raise error from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipelines.dicom_triage.write_results", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space") as raised:
        study_triage([write_dicom(tmp_path / "a.dcm", seed=1)], tmp_path / "out")
    assert pickle.loads(pickle.dumps(raised.value)).errno == errno.ENOSPC


def test_a_study_without_an_image_to_score_is_an_error_without_names(
    study_triage, write_dicom, tmp_path
):
    path = write_dicom(tmp_path / "a.dcm", ViewPosition="LL", PatientAge="004Y")
    (tmp_path / "out").mkdir()
    with pytest.raises(CaseError, match="the patient is 4, under 18 years; lateral view") as error:
        study_triage([path], tmp_path / "out")
    assert "SECRET" not in str(error.value)
    assert str(tmp_path) not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_results_are_not_triaged_again(study_triage, write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", seed=1)
    (tmp_path / "out").mkdir()
    results = study_triage([path], tmp_path / "out")
    (tmp_path / "again").mkdir()
    with pytest.raises(CaseError, match="modality"):
        study_triage(results, tmp_path / "again")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is missing")
def test_triage_writes_dicom_beside_and_dciodvfy_finds_no_error(
    xray_detectors, write_dicom, tmp_path
):
    write_dicom(tmp_path / "in" / "a.dcm", seed=1)
    Image.fromarray(draw_pixels(2)).save(tmp_path / "in" / "b.png")
    config = load_config(TriageConfig, None, ["eligibility.missing_view=PA"])
    detectors = load_detectors(list(xray_detectors.values()))
    out = tmp_path / "out"
    triage([tmp_path / "in"], detectors, out, config, dicom=True, say=lambda _: None)
    files = sorted((out / "private" / "dicom").glob("*/*.dcm"))
    assert [path.name for path in files] == ["sc.dcm", "sr.dcm"]  # none of the PNG
    for path in files:
        assert _errors(path) == []


def _errors(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is missing")
def test_dciodvfy_does_find_errors(study_triage, write_dicom, tmp_path):
    (tmp_path / "out").mkdir()
    path = study_triage([write_dicom(tmp_path / "a.dcm")], tmp_path / "out")[1]
    dataset = pydicom.dcmread(path)
    del dataset.SOPInstanceUID
    dataset.save_as(tmp_path / "broken.dcm")
    assert _errors(tmp_path / "broken.dcm") != []


def test_pixels_are_whole_numbers_of_the_picture(study_triage, write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", seed=1)
    (tmp_path / "out").mkdir()
    capture = pydicom.dcmread(study_triage([path], tmp_path / "out")[1])
    gray = capture.pixel_array[:8, :8].astype(int)  # outside of the crop
    assert np.abs(gray - draw_pixels(1)[:8, :8, None]).max() <= 1
