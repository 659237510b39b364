"""Radiographs and imported pictures by their embeddings: stores, a worklist without residuals."""

import json

import numpy as np
import pydicom
import pytest
from composed_xrays import draw_pixels
from onnx_models import write_encoder
from PIL import Image

from esad_med.base.store import SampleStore
from esad_med.method.encoder import load_encoder
from pipelines.dicom_triage import make_study_triage

QUICK = ("--epochs", 2, "--set", "members=2")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("xray-embeddings")


@pytest.fixture(scope="module")
def encoder(home):
    """A color encoder of 32 pixels: gray radiographs are repeated, and made smaller."""
    return write_encoder(home / "color.onnx", edge=32)


@pytest.fixture
def detector(home, nih, encoder, run_command):
    out = home / "PA"
    if not out.exists():
        table = ("--table", nih / "table.csv", "--match", "contains", "--fraction", 1)
        outcome = run_command("xray", nih, *table, "--out", home / "store", "--encoder", encoder)
        assert outcome.code == 0, outcome.err
        assert run_command("train", home / "store", "--out", out, *QUICK).code == 0
    return out


def test_a_store_holds_the_embeddings_of_its_pictures(nih, home, encoder, detector, run_command):
    assert (
        run_command("xray", nih, "--table", nih / "table.csv", "--out", home / "pixels").code == 0
    )
    pixels, store = SampleStore(home / "pixels"), SampleStore(home / "store")
    assert store.contract["encoder"]["digest"] == load_encoder(encoder).identity.digest
    assert store.contract["view_positions"] == ["PA"]
    own = store.rows["sample_id"].isin(pixels.rows["sample_id"])
    known = pixels.rows["sample_id"].isin(store.rows["sample_id"])
    expected = load_encoder(encoder)(np.asarray(pixels.samples)[known])
    np.testing.assert_allclose(store.samples[own], expected, rtol=1e-4, atol=1e-4)


def test_a_worklist_says_that_there_are_no_residual_maps(
    write_dicom, home, encoder, detector, run_command, tmp_path
):
    for number in range(3):
        write_dicom(tmp_path / "in" / f"i{number}.dcm", seed=number)
    out = tmp_path / "out"
    command = ("triage", tmp_path / "in", "--detector", detector, "--out", out)
    refused = run_command(*command)
    assert refused.code == 4
    assert "--encoder" in refused.err
    outcome = run_command(*command, "--encoder", encoder, "--dicom")
    assert outcome.code == 0, outcome.err
    page = (out / "worklist.html").read_text("utf-8")
    assert "there is no residual map" in page
    assert "Color scale of the residual" not in page
    assert load_encoder(encoder).identity.digest in page
    rows = json.loads((out / "worklist.json").read_text())["studies"]
    assert len(rows) == 3
    for row in rows:
        folder = out / "studies" / row["case_id"]
        assert not list(folder.glob("*_residual.nii.gz"))
        overlay = np.asarray(Image.open(next(folder.glob("*_overlay.png"))))
        assert (overlay == overlay[..., :1]).all()  # gray, with a frame
    captures = sorted((out / "private" / "dicom").glob("*/sc.dcm"))
    assert len(captures) == 3
    capture = pydicom.dcmread(captures[0])
    assert "no residual map" in capture.DerivationDescription
    assert "residual" not in capture.SeriesDescription
    again = run_command(*command, "--encoder", encoder, "--dicom", "--json")
    assert json.loads(again.out)["studies"] == rows


def test_the_node_triages_by_embeddings(write_dicom, encoder, detector, tmp_path):
    run = make_study_triage(
        [detector],
        out=tmp_path / "node",
        config=None,
        settings=[],
        device="cpu",
        encoder=encoder,
    )
    (tmp_path / "out").mkdir()
    path = write_dicom(tmp_path / "a.dcm", pixels=draw_pixels(1))
    assert [file.name for file in run([path], tmp_path / "out")] == ["sr.dcm", "sc.dcm"]


def test_imported_pictures_become_embeddings(run_command, encoder, tmp_path):
    random = np.random.default_rng(0)
    pictures = random.integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"p{index}.png")
    lines = ["path,label", *(f"p{index}.png,0" for index in range(4))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    options = ("--mpp", 1, "--stain", "none", "--encoder", encoder)
    table = ("--table", tmp_path / "t.csv", "--out", tmp_path / "store")
    outcome = run_command("import", tmp_path, *table, *options)
    assert outcome.code == 0, outcome.err
    store = SampleStore(tmp_path / "store")
    np.testing.assert_allclose(store.samples, load_encoder(encoder)(pictures), rtol=1e-5)
    assert store.contract["kind"] == "embeddings"
    assert store.contract["preparation"]["tiles"]["size_px"] == 64
