"""Triage: what is scored and what set aside, ranks, results, and that nobody's name gets out."""

import json
import os
import shutil
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from composed_xrays import draw_pixels
from PIL import Image

from data_prep.xray import read_xray
from data_prep.xray_chain import XraySpec, xray_chain
from esad_med.base.config import load_config
from esad_med.base.errors import CaseError, ConfigError, ModelError
from pipelines.triage import TriageSummary, triage
from pipelines.triage_files import find_candidates
from pipelines.triage_intake import TriageConfig
from pipelines.triage_scoring import ViewDetector, load_detectors


@pytest.fixture(scope="session")
def by_view(xray_detectors) -> dict[str, ViewDetector]:
    return load_detectors(list(xray_detectors.values()))


def run(paths, by_view, out: Path, *settings: str, **options) -> TriageSummary:
    config = load_config(TriageConfig, None, list(settings))
    paths = [paths] if isinstance(paths, Path) else paths
    return triage(paths, by_view, out, config, say=lambda _: None, **options)


def reasons(summary: TriageSummary) -> list[str]:
    return [failure.message for failure in summary.failures]


def said(rows) -> set[tuple[str, ...]]:
    """The notes of each study but the one on few held-out normals, which all of them have here."""
    few = "normals only"
    assert all(any(few in note for note in row["notes"]) for row in rows)
    return {tuple(note for note in row["notes"] if few not in note) for row in rows}


def test_studies_are_ranked_by_their_least_normal_image(by_view, write_dicom, tmp_path):
    folder = tmp_path / "in"
    for number in range(6):
        view = "PA" if number % 2 else "AP"
        path = folder / f"s{number % 4}" / f"i{number}.dcm"
        uid = pydicom.uid.generate_uid(entropy_srcs=[f"study {number % 4}"])
        write_dicom(path, seed=number, ViewPosition=view, StudyInstanceUID=uid)
    summary = run(folder, by_view, tmp_path / "out")
    rows = summary.studies
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    keys = [(row["percentile"], row["excess"]) for row in rows]
    assert keys == sorted(keys, reverse=True)
    assert sorted(row["images"] for row in rows) == [1, 1, 2, 2]
    for row in rows:
        study = json.loads(
            (tmp_path / "out" / "studies" / row["case_id"] / "study.json").read_text()
        )
        assert row["percentile"] == max(image["percentile"] for image in study["images"])
        driving = next(i for i in study["images"] if i["image_id"] == row["driving_image"])
        assert (driving["score"], driving["view"]) == (row["score"], row["view"])
    table = pd.read_csv(tmp_path / "out" / "worklist.csv")
    assert table["case_id"].tolist() == [row["case_id"] for row in rows]
    written = json.loads((tmp_path / "out" / "worklist.json").read_text())
    assert written["studies"] == rows
    assert summary.failures == []


def test_scores_are_the_detector_s_on_the_chain_s_sample(by_view, write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", seed=3)
    row = run(path, by_view, tmp_path / "out").studies[0]
    sample = xray_chain(XraySpec())(read_xray(path).pixels)
    detector = by_view["PA"].detector
    scores = detector.score(sample[None])
    assert row["score"] == pytest.approx(float(scores.score[0]), abs=1e-5)
    assert row["percentile"] == pytest.approx(float(detector.percentile(scores.score)[0]), abs=0.01)
    folder = tmp_path / "out" / "studies" / row["case_id"]
    residual = nib.load(next(folder.glob("*_residual.nii.gz")))
    expected = detector.residual_map(sample[None])[0]
    assert np.allclose(residual.get_fdata()[:, :, 0].T, expected, atol=1e-6)
    with Image.open(next(folder.glob("*_overlay.png"))) as picture:
        assert picture.size == (160, 160)


def test_one_picture_in_any_form_has_one_score(by_view, write_dicom, tmp_path):
    pixels = draw_pixels(5)
    folder = tmp_path / "in"
    write_dicom(folder / "mono2.dcm", pixels=pixels)
    write_dicom(folder / "mono1.dcm", pixels=255 - pixels, PhotometricInterpretation="MONOCHROME1")
    Image.fromarray(pixels).save(folder / "plain.png")
    deep = pixels.astype(np.uint16) * 16
    write_dicom(
        folder / "deep.dcm", pixels=deep, BitsStored=12, HighBit=11, WindowCenter=2040.5,
        WindowWidth=4081,
    )  # fmt: skip
    rows = run(folder, by_view, tmp_path / "out", "eligibility.missing_view=PA").studies
    assert len(rows) == 4
    scores = [row["score"] for row in rows]
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-5)  # batches round differently
    assert said(rows) == {(), ("age unknown", "view not stated, taken as PA")}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ViewPosition": "LL"}, "lateral view, expected PA or AP"),
        ({"PatientOrientation": ["A", "F"]}, "lateral view"),
        ({"ViewPosition": None}, "its view is not stated"),
        ({"ViewPosition": "RLO"}, "view RLO, expected AP or PA (no detector for it)"),
        ({"PatientAge": "017Y"}, "the patient is 17, under 18 years"),
        ({"PatientAge": "030M"}, "the patient is 2, under 18 years"),
        ({"PatientAge": None, "PatientBirthDate": "20100101"}, "the patient is 10, under 18"),
        ({"BodyPartExamined": "HAND"}, "body part HAND, expected CHEST or THORAX"),
        ({"Modality": "MR"}, "modality MR, expected CR or DX or DR"),
        ({"Modality": "OT"}, "modality OT"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "raw detector values"),
        ({"PatientSpeciesDescription": "Canis lupus"}, "of an animal, expected a person"),
        ({"pixels": np.zeros((40, 40), np.uint8)}, "40x40 pixels, expected at least 64"),
        ({"pixels": np.zeros((100, 300), np.uint8)}, "expected sides of at most 2:1"),
        ({"pixels": 255 - draw_pixels(0)}, "probably inverted"),
        ({"PixelData": None}, "holds no pixel data"),
        ({"NumberOfFrames": 3}, "several frames"),
        ({"WindowCenter": 10, "WindowWidth": 0}, "no such window can be"),
        ({"Rows": 200}, "cannot be decoded"),
        ({"PhotometricInterpretation": "RGB"}, "expected gray"),
        ({"PatientAge": "215M"}, "the patient is 17, under 18 years"),
        (
            {
                "PatientAge": None,
                "PatientBirthDate": "20100101",
                "StudyDate": None,
                "AcquisitionDate": "20200102",
            },
            "the patient is 10, under 18",
        ),
        ({"ViewPosition": "PA/LAT"}, "view of another name, expected AP or PA"),
        ({"ViewPosition": "AP AXIAL"}, "view of another name"),
        ({"ViewPosition": "Mueller^Hans"}, "view of another name"),
        ({"Modality": "SMITH JOHN"}, "modality of another name"),
        ({"BodyPartExamined": "SMITH"}, "body part of another name"),
    ],
)
def test_what_may_not_be_scored_is_set_aside_with_its_reason(
    by_view, write_dicom, tmp_path, changes, reason
):
    write_dicom(tmp_path / "in" / "good.dcm", seed=1)
    write_dicom(tmp_path / "in" / "bad.dcm", seed=2, **changes)
    summary = run(tmp_path / "in", by_view, tmp_path / "out")
    assert len(summary.studies) == 1
    assert len(summary.failures) == 1
    assert reason in reasons(summary)[0]
    assert reasons(summary)[0] in (tmp_path / "out" / "failures.csv").read_text().replace('""', '"')
    page = (tmp_path / "out" / "worklist.html").read_text()
    assert summary.failures[0].case_id in page


def test_what_is_missing_is_a_setting(by_view, write_dicom, tmp_path):
    write_dicom(tmp_path / "in" / "a.dcm", PatientAge=None, BodyPartExamined=None)
    rows = run(tmp_path / "in", by_view, tmp_path / "a").studies
    assert said(rows) == {("age unknown", "body part not stated")}
    for setting, word in (("missing_age", "age is not stated"), ("missing_body_part", "body part")):
        strict = run(
            tmp_path / "in", by_view, tmp_path / setting, f"eligibility.{setting}=set_aside"
        )
        assert strict.studies == []
        assert word in reasons(strict)[0]
    young = run(tmp_path / "in", by_view, tmp_path / "b", "eligibility.min_age=0")
    assert len(young.studies) == 1


def test_no_identifier_leaves_the_private_folder(by_view, write_dicom, tmp_path, capsys):
    folder = tmp_path / "in" / "Secret_Sam"
    write_dicom(folder / "SECRET-4711.dcm", seed=1)
    write_dicom(folder / "SECRET-lateral.dcm", seed=2, ViewPosition="LL")
    (folder / "SECRET-damaged.dcm").write_bytes((folder / "SECRET-4711.dcm").read_bytes()[:400])
    out = tmp_path / "out"
    lines: list[str] = []
    config = load_config(TriageConfig, None, [])
    triage([tmp_path / "in"], by_view, out, config, say=lines.append)
    uid = str(pydicom.dcmread(folder / "SECRET-4711.dcm").StudyInstanceUID)
    secrets = [b"secret", uid.encode(), b"acc-99", b"20200102"]
    files = [path for path in out.rglob("*") if path.is_file() and "private" not in path.parts]
    assert len(files) > 8
    for path in files:
        content = (path.name.encode() + path.read_bytes()).lower()
        assert not [secret for secret in secrets if secret in content], path
    assert not [line for line in lines if "secret" in line.lower()]
    assert "secret" not in "".join(capsys.readouterr()).lower()
    private = out / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((private / "map.csv").stat().st_mode) == 0o600
    known = pd.read_csv(private / "map.csv", dtype=str)
    assert set(known["kind"]) == {"patient", "study", "image"}
    assert "SECRET-4711" in set(known["identifier"])


def test_identifiers_are_shown_when_asked_for(by_view, write_dicom, tmp_path):
    path = write_dicom(tmp_path / "in" / "a.dcm")
    run(tmp_path / "in", by_view, tmp_path / "out", identified=True)
    table = pd.read_csv(tmp_path / "out" / "worklist.csv", dtype=str)
    assert table["Patient ID"].tolist() == ["SECRET-4711"]
    assert table["File"].tolist() == [str(path)]
    assert "SECRET-4711" in (tmp_path / "out" / "worklist.html").read_text()


def test_a_shared_key_gives_the_same_names_and_another_key_others(by_view, write_dicom, tmp_path):
    write_dicom(tmp_path / "in" / "a.dcm")
    names = [
        run(tmp_path / "in", by_view, tmp_path / out, key_file=key).studies[0]["case_id"]
        for out, key in (("a", tmp_path / "key"), ("b", tmp_path / "key"), ("c", None))
    ]
    assert names[0] == names[1] != names[2]


def test_a_rerun_scores_only_what_is_new_or_has_changed(by_view, write_dicom, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(3):
        write_dicom(folder / f"{number}.dcm", seed=number)
    first = run(folder, by_view, out)
    times = {p: p.stat().st_mtime_ns for p in out.glob("studies/*/study.json")}
    again = run(folder, by_view, out)
    assert again.studies == first.studies
    assert {p: p.stat().st_mtime_ns for p in out.glob("studies/*/study.json")} == times
    write_dicom(folder / "1.dcm", seed=9)
    write_dicom(folder / "3.dcm", seed=3)
    shutil.rmtree(next(iter(times)).parent)
    third = run(folder, by_view, out)
    assert len(third.studies) == 4
    kept = [path for path in times if path.exists() and path.stat().st_mtime_ns == times[path]]
    assert len(kept) in {1, 2}


def test_results_do_not_hang_on_the_order_of_files(by_view, write_dicom, tmp_path):
    paths = [write_dicom(tmp_path / f"{n}.dcm", seed=n) for n in range(5)]
    key = tmp_path / "key"
    one = run(paths, by_view, tmp_path / "a", key_file=key).studies
    other = run(paths[::-1], by_view, tmp_path / "b", key_file=key).studies
    assert one == other


def test_two_images_with_one_uid_and_copies(by_view, write_dicom, tmp_path):
    uids = {"SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3"}
    write_dicom(tmp_path / "in" / "a.dcm", seed=1, **uids)
    shutil.copy(tmp_path / "in" / "a.dcm", tmp_path / "in" / "b.dcm")
    write_dicom(tmp_path / "in" / "c.dcm", pixels=255 - draw_pixels(1), **uids)
    summary = run(tmp_path / "in", by_view, tmp_path / "out")
    assert summary.studies[0]["images"] == 1
    assert summary.studies[0]["set_aside"] == 2
    assert any("is a copy" in text for text in reasons(summary))
    assert any("other content; probably inverted" in text for text in reasons(summary))
    assert said(summary.studies) == {
        ("another image has the same SOP Instance UID and other content",)
    }


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_two_images_with_one_uid_the_order_of_files_decides_nothing(
    by_view, write_dicom, tmp_path, names
):
    uids = {"SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3"}
    true, fake = (tmp_path / "in" / f"{name}.dcm" for name in names)
    write_dicom(true, seed=1, **uids)
    write_dicom(fake, pixels=255 - draw_pixels(1), **uids)
    summary = run(tmp_path / "in", by_view, tmp_path / "out", identified=True)
    table = pd.read_csv(tmp_path / "out" / "worklist.csv")
    assert table["File"].tolist() == [str(true)]
    write_dicom(fake, seed=2, **uids)
    summary = run(tmp_path / "in", by_view, tmp_path / "both")
    assert summary.studies == []
    assert len(summary.failures) == 2


def test_a_copy_of_what_was_set_aside_is_judged_by_itself(by_view, write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", seed=1)
    shutil.copy(path, tmp_path / "b.dcm")
    (tmp_path / "list.csv").write_text("path,view\na.dcm,lateral\nb.dcm,PA\n")
    summary = run(tmp_path / "list.csv", by_view, tmp_path / "out")
    assert len(summary.studies) == 1
    assert reasons(summary) == ["lateral view, expected PA or AP"]


def test_a_study_of_two_patients_is_set_aside(by_view, write_dicom, tmp_path):
    for number in range(2):
        write_dicom(
            tmp_path / "in" / f"{number}.dcm", seed=number, StudyInstanceUID="1.2.3",
            PatientID=f"SECRET-{number}",
        )  # fmt: skip
    summary = run(tmp_path / "in", by_view, tmp_path / "out")
    assert summary.studies == []
    assert all("name different patients" in text for text in reasons(summary))


def test_uids_with_path_parts_stay_inside(by_view, write_dicom, tmp_path):
    path = write_dicom(tmp_path / "in" / "a.dcm")
    dataset = pydicom.dcmread(path)
    dataset["StudyInstanceUID"]._value = "../../../../etc/passwd"
    dataset.save_as(path)
    before = set(tmp_path.rglob("*"))
    summary = run(tmp_path / "in", by_view, tmp_path / "out")
    assert len(summary.studies) == 1
    new = set(tmp_path.rglob("*")) - before
    assert all((tmp_path / "out") in [path, *path.parents] for path in new)


def test_a_manifest_has_the_last_word(by_view, tmp_path):
    for number in range(3):
        Image.fromarray(draw_pixels(number)).save(tmp_path / f"{number}.png")
    (tmp_path / "list.csv").write_text(
        "path,study_id,patient_id,view,age\n0.png,s,p,PA,40\n1.png,s,p,AP,40\n2.png,t,q,PA,7\n"
    )
    summary = run(tmp_path / "list.csv", by_view, tmp_path / "out")
    assert [row["images"] for row in summary.studies] == [2]
    assert said(summary.studies) == {()}
    assert reasons(summary) == ["the patient is 7, under 18 years"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.png\n", "column 'path' is missing"),
        ("path,colour\na.png,red\n", "unknown column 'colour'"),
        ("path\n", "no rows"),
        ("path,view\na.png,sideways\n", "line 2: view of another name"),
        ("path,age\na.png,old\n", "line 2: age is no number"),
        ("path,age\na.png,nan\n", "line 2: age is no number"),
        ("path,age\na.png,-4\n", "line 2: age is no number"),
        ("path\na.png\na.png\n", "listed twice"),
    ],
)
def test_manifests_that_cannot_be_used(by_view, tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(CaseError, match=message):
        run(tmp_path / "list.csv", by_view, tmp_path / "out")


def test_paths_of_candidates_hold_for_workers_elsewhere(write_dicom, tmp_path, monkeypatch):
    write_dicom(tmp_path / "in" / "a.dcm")
    (tmp_path / "table.csv").write_text("path\nin/a.dcm\n")
    monkeypatch.chdir(tmp_path)
    for path in (Path("in"), Path("in/a.dcm"), Path("table.csv")):
        (candidate,), _ = find_candidates([path], leave_out=Path("out"))
        assert candidate.path == tmp_path / "in" / "a.dcm"


def test_missing_files_of_a_manifest_are_recorded(by_view, tmp_path):
    Image.fromarray(draw_pixels(0)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,view\na.png,PA\ngone.png,PA\n")
    summary = run(tmp_path / "list.csv", by_view, tmp_path / "out")
    assert len(summary.studies) == 1
    assert reasons(summary) == ["cannot be read (No such file or directory)"]


def test_results_inside_the_searched_folder_are_not_taken_for_images(
    by_view, write_dicom, tmp_path
):
    write_dicom(tmp_path / "a.dcm")
    (tmp_path / "notes.txt").write_text("no image")
    for _ in range(2):
        summary = run(tmp_path, by_view, tmp_path / "out", dicom=True)
        assert len(summary.studies) == 1
        assert summary.failures == []
        assert summary.passed_over == 1


def test_results_of_other_triages_are_no_radiographs(by_view, write_dicom, tmp_path):
    write_dicom(tmp_path / "a.dcm")
    run(tmp_path, by_view, tmp_path / "one", dicom=True)
    summary = run(tmp_path, by_view, tmp_path / "two", "eligibility.missing_view=PA")
    assert len(summary.studies) == 1
    assert summary.failures == []


def test_a_study_whose_uids_no_pacs_takes_is_scored_without_dicom(by_view, write_dicom, tmp_path):
    write_dicom(tmp_path / "in" / "good.dcm", seed=1)
    path = write_dicom(tmp_path / "in" / "bad.dcm", seed=2)
    dataset = pydicom.dcmread(path)
    dataset["StudyInstanceUID"]._value = "1.2.840.0001.5"
    dataset.save_as(path)
    for _ in range(2):
        summary = run(tmp_path / "in", by_view, tmp_path / "out", dicom=True)
        assert len(summary.studies) == 2
        assert [failure.stage for failure in summary.failures] == ["dicom"]
        assert len(list((tmp_path / "out" / "private" / "dicom").glob("*/sr.dcm"))) == 1


@pytest.mark.parametrize("damage", ["thumbnail", "overlay", "residual", "study", "dicom"])
def test_a_rerun_mends_what_is_missing_or_damaged(by_view, write_dicom, tmp_path, damage):
    write_dicom(tmp_path / "in" / "a.dcm")
    out = tmp_path / "out"
    first = run(tmp_path / "in", by_view, out, dicom=True)
    folder = out / "studies" / first.studies[0]["case_id"]
    if damage == "dicom":
        shutil.rmtree(out / "private" / "dicom")
    elif damage == "study":
        (folder / "study.json").write_text("{}")
    elif damage == "overlay":
        picture = next(folder.glob("*overlay*"))
        picture.write_bytes(picture.read_bytes()[:500])
    else:
        next(folder.glob(f"*{damage}*")).unlink()
    assert run(tmp_path / "in", by_view, out, dicom=True).studies == first.studies
    assert len(list(folder.iterdir())) == 4
    assert len(list((out / "private" / "dicom").glob("*/*.dcm"))) == 2
    with Image.open(next(folder.glob("*overlay*"))) as picture:
        picture.load()


def test_a_corrected_manifest_is_taken_over(by_view, tmp_path):
    Image.fromarray(draw_pixels(0)).save(tmp_path / "a.png")
    for age in (30, 77):
        (tmp_path / "list.csv").write_text(f"path,view,age\na.png,PA,{age}\n")
        run(tmp_path / "list.csv", by_view, tmp_path / "out")
        study = json.loads(next((tmp_path / "out").glob("studies/*/study.json")).read_text())
        assert study["images"][0]["age"] == age


def test_file_names_that_are_no_utf8(by_view, write_dicom, tmp_path):
    odd = os.fsdecode(b"M\xfcller.dcm")
    write_dicom(tmp_path / "in" / "a.dcm").rename(tmp_path / "in" / odd)
    summary = run(tmp_path / "in", by_view, tmp_path / "out", identified=True)
    assert len(summary.studies) == 1
    assert "udcfcller" in (tmp_path / "out" / "worklist.csv").read_text()


def test_a_failed_start_leaves_nothing(by_view, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / "list.csv"):
        (tmp_path / "list.csv").write_text("file\na.png\n")
        with pytest.raises(CaseError):
            run(path, by_view, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    Image.fromarray(draw_pixels(0)).save(tmp_path / "a.png")
    (tmp_path / "short").write_bytes(b"key")
    with pytest.raises(ConfigError, match="expected a key of 32"):
        run(tmp_path / "a.png", by_view, tmp_path / "out", key_file=tmp_path / "short")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CaseError, match="give it alone"):
        run([tmp_path / "list.csv", tmp_path], by_view, tmp_path / "out")


def test_the_run_folder_is_for_its_owner_alone(by_view, write_dicom, tmp_path):
    run(write_dicom(tmp_path / "a.dcm"), by_view, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_other_folders_and_detectors_are_refused(by_view, xray_detectors, trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    Image.fromarray(draw_pixels(0)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="no result of `triage`"):
        run(tmp_path / "a.png", by_view, tmp_path / "mine")
    message = f"{trained}: .* modality 'histology', expected 'chest radiograph'"
    with pytest.raises(ModelError, match=message):
        load_detectors([trained])
    with pytest.raises(ConfigError, match="a second detector for view PA"):
        load_detectors([xray_detectors["PA"], xray_detectors["PA"]])
    only_ap = {"AP": by_view["AP"]}
    with pytest.raises(ConfigError, match="missing_view PA: no detector"):
        run(tmp_path / "a.png", only_ap, tmp_path / "out", "eligibility.missing_view=PA")


def test_the_command_ranks_and_leaves_with_3(xray_detectors, write_dicom, tmp_path, run_command):
    for number in range(3):
        write_dicom(tmp_path / "in" / f"{number}.dcm", seed=number)
    flags = ["--detector", xray_detectors["PA"], "--out", tmp_path / "out"]
    done = run_command("triage", tmp_path / "in", *flags)
    assert done.code == 0
    assert "3 studies ranked" in done.out
    (tmp_path / "in" / "empty.dcm").touch()
    again = run_command("triage", tmp_path / "in", *flags, "--json")
    assert again.code == 3
    found = json.loads(again.out)
    assert len(found["studies"]) == 3
    assert found["failures"][0]["message"] == "is empty, expected an image"
    nothing = run_command("triage", tmp_path / "nowhere", *flags)
    assert nothing.code == 4
    strict = run_command("triage", tmp_path / "in", *flags, "--min-age", "90")
    assert "under 90 years" in strict.err


@pytest.mark.data
def test_every_good_file_is_triaged_and_every_odd_one_set_aside(data_root, by_view, tmp_path):
    root = data_root / "cxr_dicom"
    good = run([root / "chest", root / "wrapped_nih"], by_view, tmp_path / "good", dicom=True)
    assert good.failures == []
    assert len(good.studies) == 6
    odd = run(root / "odd", by_view, tmp_path / "odd", identified=True)
    assert odd.studies == []
    names = pd.read_csv(tmp_path / "odd" / "private" / "map.csv").set_index("case_id")["identifier"]
    found = {
        Path(names[failure.case_id.split("/")[1]]).name: failure.message for failure in odd.failures
    }
    expected = {
        "Fake_MONOHR1.dcm": "probably inverted",
        "MR_truncated.dcm": "modality MR, expected CR or DX",
        "RG1_J2KI_truncated_900_bytes.dcm": "damaged DICOM file",
        "RG3_JPLY": "body part EXTREMITY",
        "chrJapMulti_no_pixels.dcm": "holds no pixel data",
        "dx_image_canine_lateral.dcm": "the patient is 5, under 18 years",
        "no_meta.dcm": "not a PNG, JPEG, DICOM or NIfTI file",
        "rsna_truncated_60000_bytes.dcm": "damaged DICOM file",
        "rtplan.dcm": "holds no image (modality RTPLAN)",
    }
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert reason in found[name], name


@pytest.mark.data
def test_nih_s_own_pngs_and_dicom_around_their_pixels_score_alike(
    data_root, by_view, write_dicom, tmp_path
):
    pngs = sorted((data_root / "nih_cxr" / "png1024").glob("*.png"))
    assert len(pngs) == 6
    folder = tmp_path / "in"
    for path in pngs:
        pixels = np.asarray(Image.open(path).convert("L"))
        write_dicom(folder / f"{path.stem}.dcm", pixels=pixels)
        shutil.copy(path, folder)
    run(folder, by_view, tmp_path / "out", "eligibility.missing_view=PA", identified=True)
    table = pd.read_csv(tmp_path / "out" / "worklist.csv")
    table["stem"] = table["File"].map(lambda text: Path(text).stem)
    assert len(table) == 12
    pairs = table.groupby("stem")["score"].agg(["min", "max", "count"])
    assert (pairs["count"] == 2).all()
    assert pairs["max"].to_numpy() == pytest.approx(pairs["min"].to_numpy(), abs=1e-5)
    assert pairs["min"].nunique() == 6  # and pictures do differ
