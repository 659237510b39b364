"""`esad-med screen --write`: what other programs get, of a TIFF and of a DICOM slide."""

import json
import shutil
from types import SimpleNamespace

import highdicom
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from dicom_slides import PATIENT, uid, write_dicom_slide
from pydicom import dcmread
from shapely.geometry import shape

from data_prep.annotations import read_annotation
from data_prep.demo_slides import compose_demo_picture, source_concentrations
from data_prep.slides import open_slide
from esad_med.base.errors import CaseError, EsadError
from esad_med.method.detector import Detector
from esad_med.outputs.lesions import SlideTiles
from pipelines import slide_exports

ALL = ("--write", "geojson", "--write", "asap", "--write", "dicom", "--write", "parquet")


@pytest.fixture(autouse=True, scope="module")
def low_threshold():
    """A detector trained for seconds leaves little above the 99th percentile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.screening_slide.ALARM_PERCENTILE", 60.0)
        yield


@pytest.fixture(scope="module")
def slides(composed, tmp_path_factory):
    """One picture as a TIFF and as a DICOM slide of two files, in one folder."""
    folder = tmp_path_factory.mktemp("slides")
    shutil.copy(composed / "tumor_2.tif", folder / "flat.tif")
    picture, _ = compose_demo_picture(
        source_concentrations(), 3, np.random.default_rng(3), size=2048
    )
    write_dicom_slide(folder, picture, mpp=0.5, name="wsm")
    return folder


@pytest.fixture(scope="module")
def screened(slides, trained, tmp_path_factory):
    """Both screened with everything written: exit code 3, for the TIFF has no DICOM."""
    from esad_med.cli import main

    out = tmp_path_factory.mktemp("screened") / "out"
    with pytest.raises(SystemExit) as stop:
        main(["screen", str(slides), "--detector", str(trained), "--out", str(out), *ALL])
    assert stop.value.code == 3
    return out


@pytest.fixture
def size(slides):
    with open_slide(slides / "flat.tif") as slide:
        return slide.size_level0


def test_both_slides_are_screened_and_one_file_is_missing_in_words(screened):
    assert pd.read_csv(screened / "slides.csv")["case_id"].tolist() == ["flat", "wsm0"]
    failures = pd.read_csv(screened / "failures.csv")
    assert failures[["case_id", "stage"]].to_numpy().tolist() == [["flat", "dicom"]]
    assert "leave out --write dicom" in failures["message"][0]
    common = {
        "lesions.geojson",
        "lesions.xml",
        "scores.parquet",
        "scores.csv",
        "slide.json",
        "thumbnail.jpg",
    }
    common |= {"heatmap.tif", "report.html"}
    assert {path.name for path in (screened / "flat").iterdir()} == common
    dicom = {"lesions_seg.dcm", "lesions_ann.dcm"}
    assert {path.name for path in (screened / "wsm0").iterdir()} == common | dicom


@pytest.mark.parametrize("name", ["flat", "wsm0"])
def test_every_format_says_the_same(screened, name, size):
    folder = screened / name
    table = pd.read_csv(folder / "scores.csv")
    threshold = json.loads((folder / "slide.json").read_text())["threshold"]
    above = table[table["score"] > threshold]
    assert len(above) > 3
    features = json.loads((folder / "lesions.geojson").read_text())["features"]
    tiles = [item for item in features if item["properties"]["objectType"] == "tile"]
    corners = [shape(item["geometry"]).bounds[:2] for item in tiles]
    assert corners == list(above[["x_level0", "y_level0"]].itertuples(index=False, name=None))
    lesions = shapely.union_all(
        [shape(f["geometry"]) for f in features if f["properties"]["objectType"] == "annotation"]
    )
    assert lesions.area == len(above) * 128**2
    for file in ("lesions.xml", "lesions.geojson"):
        read = read_annotation(folder / file, slide_size=size).tumor
        assert read.symmetric_difference(lesions).area == 0
    typed = pq.read_table(folder / "scores.parquet").to_pandas()
    assert list(typed.columns) == list(table.columns)
    for column in ("x_level0", "y_level0", "score", "percentile", "reconstruction", "norm"):
        np.testing.assert_allclose(typed[column], table[column], rtol=1e-4, atol=6e-3)


def test_the_dicom_results_cover_the_same_tiles_and_name_the_patient_inside_only(screened):
    folder = screened / "wsm0"
    table = pd.read_csv(folder / "scores.csv")
    threshold = json.loads((folder / "slide.json").read_text())["threshold"]
    above = table[table["score"] > threshold]
    seg = highdicom.seg.segread(folder / "lesions_seg.dcm")
    mask = seg.get_total_pixel_matrix(combine_segments=True).astype(bool)
    expected = np.zeros_like(mask)
    for x, y in above[["x_level0", "y_level0"]].to_numpy() // 32:
        expected[y : y + 4, x : x + 4] = True
    assert (mask == expected).all()
    ann = highdicom.ann.annread(folder / "lesions_ann.dcm")
    assert ann.AnnotationGroupSequence[0].NumberOfAnnotations == len(above)
    assert str(seg.PatientName) == PATIENT["PatientName"]
    secrets = (*PATIENT.values(), "ACC-77", uid("study"), uid("study", "instance", 0))
    for path in screened.rglob("*"):
        assert not any(text in path.name for text in secrets)
        if path.is_file() and path.suffix != ".dcm":
            data = path.read_bytes()
            assert not any(text.encode() in data for text in secrets), path


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("SharedFunctionalGroupsSequence", "its header is damaged"),
        ("FrameOfReferenceUID", "cannot be laid over"),
    ],
)
def test_a_damaged_header_costs_the_dicom_results_only(
    slides, tmp_path, monkeypatch, keyword, message
):
    source = dcmread(slides / "wsm0.dcm", stop_before_pixels=True)
    delattr(source, keyword)
    monkeypatch.setattr(slide_exports, "read_slide_header", lambda *_: source)
    slide = SimpleNamespace(path=slides / "wsm0.dcm", size_level0=(2048, 2048), vendor="dicom")
    tiles = SlideTiles(np.zeros((1, 2), int), 128.0, {"score": np.ones(1)}, 0.5, "f", (9, 9), 1, {})
    with pytest.raises(EsadError, match=message) as refused:
        slide_exports._write_dicom(tmp_path, tiles, [], slide, SimpleNamespace(digest="0" * 64))
    assert not list(tmp_path.iterdir())
    assert source.StudyInstanceUID not in str(refused.value)


def test_tables_carry_the_detector_and_can_be_evaluated(screened, trained, run_command):
    digest = Detector.load(trained).digest.encode()
    for path in (screened / "slides.parquet", screened / "flat" / "scores.parquet"):
        assert pq.read_schema(path).metadata[b"esad_med.detector"] == digest
    schema = pq.read_schema(screened / "slides.parquet")
    kinds = {field.name: str(field.type) for field in schema}
    assert kinds["case_id"] == kinds["patient_id"] == "string"
    assert kinds["tiles"] == kinds["truth"] == "int64"
    assert kinds["slide_score"] == "double"


def test_scores_of_a_store_as_parquet(store, trained, run_command, tmp_path):
    for name in ("s.csv", "s.parquet"):
        done = run_command("score", store, "--detector", trained, "--out", tmp_path / name)
        assert done.code == 0, done.err
    results = [
        json.loads(run_command("evaluate", tmp_path / name, "--json").out)
        for name in ("s.csv", "s.parquet")
    ]
    assert results[0]["measures"]["score"]["auc"] == pytest.approx(
        results[1]["measures"]["score"]["auc"], abs=1e-4
    )
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "mine.parquet")
    refused = run_command("score", store, "--detector", trained, "--out", tmp_path / "mine.parquet")
    assert refused.code == 4
    assert "is no table of scores" in refused.err


def test_a_rerun_keeps_and_other_formats_redo(screened, slides, trained, run_command, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(screened, out)
    before = (out / "flat" / "lesions.geojson").read_bytes()
    command = ("screen", slides / "flat.tif", "--detector", trained, "--out", out, "--json")
    again = run_command(*command, *ALL)
    assert again.code == 3
    assert json.loads((out / "run.json").read_text())["counts"] == {"slides kept": 1}
    fewer = run_command(*command, "--set", "exports.tiles=all")
    assert fewer.code == 0, fewer.err
    names = {path.name for path in (out / "flat").iterdir()}
    assert "lesions.geojson" in names
    assert not names & {"lesions.xml", "scores.parquet"}
    assert not (out / "slides.parquet").exists()
    all_tiles = (out / "flat" / "lesions.geojson").read_bytes()
    assert len(all_tiles) > len(before)
    assert set(pd.read_csv(out / "slides.csv")["case_id"]) == {"flat", "wsm0"}
    assert json.loads(all_tiles)["features"][0]["id"] == json.loads(before)["features"][0]["id"]


@pytest.mark.parametrize(("missing", "written"), [("pyarrow", "parquet"), ("highdicom", "dicom")])
def test_a_missing_extra_stops_the_run_before_it_begins(
    slides, trained, run_command, tmp_path, monkeypatch, missing, written
):
    for module in ("esad_med.base.parquet", "esad_med.outputs.dicom"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == missing else True)
    out = tmp_path / "out"
    command = ("screen", slides / "flat.tif", "--detector", trained, "--out", out)
    done = run_command(*command, "--write", written)
    assert done.code == 4
    assert f"pip install 'esad-med[{written}]'" in done.err
    assert not out.exists()


def test_an_unknown_format_is_named_with_the_known_ones(slides, trained, run_command, tmp_path):
    command = ("screen", slides / "flat.tif", "--detector", trained, "--out", tmp_path / "out")
    done = run_command(*command, "--write", "shapefile")
    assert done.code == 4
    assert "exports.write.0" in done.err
    assert "'geojson', 'asap', 'dicom' or 'parquet'" in done.err


def test_geojson_of_another_slide_is_refused(
    screened, slides, size, run_command, trained, tmp_path
):
    """The DICOM slide's picture has the same size: only the fingerprint tells them apart."""
    folder = tmp_path / "outlines"
    folder.mkdir()
    shutil.copy(screened / "wsm0" / "lesions.geojson", folder / "flat.geojson")
    command = ("screen", slides / "flat.tif", "--detector", trained, "--out", tmp_path / "out")
    done = run_command(*command, "--annotations", folder)
    assert done.code == 3
    message = pd.read_csv(tmp_path / "out" / "failures.csv")["message"][0]
    assert "was made for a slide of 2048x2048 pixels with fingerprint" in message
    assert "give the slide its own file" in message
    with pytest.raises(CaseError, match="was made for a slide of 2048x2048"):
        read_annotation(folder / "flat.geojson", slide_size=(4096, 4096))
    shutil.copy(screened / "flat" / "lesions.geojson", folder / "flat.geojson")
    assert run_command(*command, "--annotations", folder).code == 0


SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]


def collection(ring, **members):
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
    }
    return {"type": "FeatureCollection", **members, "features": [feature]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (collection(SQUARE, esad_med={"slide": {"fingerprint": 3}}), "names no slide with"),
        (collection(SQUARE, esad_med=[]), "names no slide with"),
        (
            collection(SQUARE, crs={"properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}),
            "expected level-0 pixels",
        ),
        (collection([[x + 5000, y] for x, y in SQUARE]), "is it the annotation of another slide"),
        (collection([[-80.1, 25.7], [-80, 25.7], [-80, 25.8]]), "of another slide"),
        (collection([[0, 0], [1e400, 0], [1, 1]]), "is no position"),
        (collection([[0, 0], ["1", None], [1, 1]]), "is no position"),
        (collection([[0, 0], [5, 5], [0, 0]]), "no polygon found"),
    ],
)
def test_geojson_that_cannot_be_of_this_slide_is_refused(tmp_path, content, message):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(content))
    with pytest.raises(CaseError, match=message):
        read_annotation(path, slide_size=(1000, 1000))


def test_a_ring_that_crosses_itself_keeps_both_its_lobes(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(collection([[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]])))
    assert read_annotation(path, slide_size=(1000, 1000)).tumor.area == 5000
