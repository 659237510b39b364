"""Bad input: a message that names the thing and the remedy, the exit code, and nothing left over.

Each case of the tables is one thing a user can get wrong; all go through the command itself.
"""

import csv
import errno
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from PIL import Image

from esad_med.base.store import SampleStore


def write_slide(path, rgb, *, mpp=0.5, dtype=np.uint8, damage=()):
    """A tiled pyramid without loss; the compressed bytes of the level-0 tiles `damage` are gone."""
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 2):
            picture = rgb[::step, ::step].astype(dtype)
            writer.write(picture, subfiletype=int(step > 1), **options)
    if not damage:
        return path
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[1]  # the level that is read at 1 µm per pixel
        places = [(page.dataoffsets[i], page.databytecounts[i]) for i in damage]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\xff" * count)
    return path


@pytest.fixture(scope="session")
def picture(composed):
    """Level 0 of a composed slide, (2048, 2048, 3) uint8."""
    with openslide.OpenSlide(composed / "normal_1.tif") as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


@pytest.fixture
def no_leftovers(tmp_path):
    """No temporary file or folder may stay behind, whatever happened."""
    yield
    left = [p for p in tmp_path.rglob("*") if p.name.endswith((".partial", ".old"))]
    assert not left


pytestmark = pytest.mark.usefixtures("no_leftovers")


def refused(outcome, *fragments, code=4):
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    for fragment in fragments:
        assert fragment in outcome.err, outcome.err


# --- slides -------------------------------------------------------------------------------------

GLASS = np.full((1024, 1024, 3), 244, np.uint8)


def one_stain():
    """A block of a single constant color on glass."""
    rgb = GLASS.copy()
    rgb[128:896, 128:896] = (180, 90, 150)
    return rgb


def text_file(folder, picture):
    (folder / "slide.svs").write_text("this is no slide")


def empty_file(folder, picture):
    (folder / "slide.svs").touch()


def truncated(folder, picture):
    whole = write_slide(folder / "whole", picture).read_bytes()
    (folder / "whole").unlink()
    (folder / "slide.tif").write_bytes(whole[: len(whole) // 2])


def folder_as_slide(folder, picture):
    (folder / "slide.svs").mkdir()


def without_mpp(folder, picture):
    write_slide(folder / "slide.tif", picture, mpp=None)


def at_72_dpi(folder, picture):
    write_slide(folder / "slide.tif", picture, mpp=25_400 / 72)


def too_coarse(folder, picture):
    write_slide(folder / "slide.tif", picture, mpp=4.0)


def sixteen_bit(folder, picture):
    write_slide(folder / "slide.tif", picture, dtype=np.uint16)


def glass_only(folder, picture):
    write_slide(folder / "slide.tif", GLASS)


def smaller_than_a_tile(folder, picture):
    write_slide(folder / "slide.tif", picture[900:964, 900:964])


def degenerate_stain(folder, picture):
    write_slide(folder / "slide.tif", one_stain())


def damaged_throughout(folder, picture):
    write_slide(folder / "slide.tif", picture, damage=range(16))


BAD_SLIDES = [
    (text_file, "not a slide"),
    (empty_file, "the file is empty (0 bytes)"),
    (truncated, "slide.tif"),
    (folder_as_slide, "is a folder, expected a slide file"),
    (without_mpp, "no microns-per-pixel (looked at openslide.mpp-x, tiff.XResolution)"),
    (at_72_dpi, "72 dpi is a default, no measurement"),
    (too_coarse, "its finest level has 4 µm per pixel, expected 1 or less"),
    (sixteen_bit, "16 bits per channel, expected 8"),
    (glass_only, "no tissue found"),
    (smaller_than_a_tile, "smaller than one tile"),
    (degenerate_stain, "degenerate stain matrix"),
    (damaged_throughout, "slide.tif"),
]


@pytest.mark.parametrize(
    ("make", "message"), BAD_SLIDES, ids=[make.__name__ for make, _ in BAD_SLIDES]
)
def test_a_bad_slide_is_set_aside_by_tile_and_screen(
    make, message, picture, trained, run_command, tmp_path
):
    folder = tmp_path / "slides"
    folder.mkdir()
    make(folder, picture)
    slide = next(folder.iterdir())
    for command in (("tile",), ("screen", "--detector", trained)):
        out = tmp_path / command[0]
        outcome = run_command(*command, slide, "--out", out)
        refused(outcome, "slide: set aside", message, code=3)
        failures = pd.read_csv(out / "failures.csv")
        assert failures["case_id"].tolist() == ["slide"]
        assert failures["error"].tolist() == ["SlideError"]
        assert message in failures["message"][0]
    assert not (tmp_path / "tile" / "store.json").exists()


@pytest.fixture
def holed(tmp_path, picture):
    """A slide with one damaged tile in the middle of its tissue, beside a good one."""
    folder = tmp_path / "holed"
    folder.mkdir()
    write_slide(folder / "a_holed.tif", picture, damage=(5,))
    write_slide(folder / "b_good.tif", picture)
    return folder


def test_a_corrupt_tile_is_recorded_by_tile_and_the_rest_goes_on(holed, run_command, tmp_path):
    outcome = run_command("tile", holed, "--out", tmp_path / "store", "--stain", "none", "--json")
    assert outcome.code == 3
    store = SampleStore(tmp_path / "store")
    with (tmp_path / "store" / "failures.csv").open() as file:
        failures = list(csv.DictReader(file))
    holed_facts, good_facts = store.contract["slides"]
    assert 0 < holed_facts["unreadable"] == len(failures) < holed_facts["tiles"]
    assert holed_facts["tiles"] + holed_facts["unreadable"] == good_facts["tiles"]
    assert good_facts["unreadable"] == 0
    assert {f["error"] for f in failures} == {"SlideError"}
    assert all(f["case_id"].startswith("a_holed_") for f in failures)
    lost = {f["case_id"].removeprefix("a_holed_") for f in failures}
    kept = set(store.rows.query("case_id == 'a_holed'")["sample_id"].str.removeprefix("a_holed_"))
    whole = set(store.rows.query("case_id == 'b_good'")["sample_id"].str.removeprefix("b_good_"))
    assert kept == whole - lost
    assert json.loads(outcome.out)["failures"] == failures

    again = run_command("tile", holed, "--out", tmp_path / "store", "--stain", "none")
    assert "complete already" in again.out
    assert again.code == 3  # a second look does not make the tiles readable


def test_a_corrupt_tile_is_recorded_by_screen_and_the_rest_goes_on(
    holed, trained, run_command, tmp_path
):
    out = tmp_path / "out"
    outcome = run_command("screen", holed, "--detector", trained, "--out", out)
    assert outcome.code == 3
    result = json.loads((out / "a_holed" / "slide.json").read_text())
    good = json.loads((out / "b_good" / "slide.json").read_text())
    assert result["tiles"] + result["unreadable_tiles"] == good["tiles"]
    assert len(result["failures"]) == result["unreadable_tiles"] > 0
    assert len(pd.read_csv(out / "a_holed" / "scores.csv")) == result["tiles"]
    assert len(pd.read_csv(out / "failures.csv")) == result["unreadable_tiles"]
    assert result["failures"][0]["case_id"] in (out / "a_holed" / "report.html").read_text()


@pytest.mark.data
def test_the_broken_slide_of_the_data_is_set_aside(data_root, trained, run_command, tmp_path):
    broken = data_root / "wsi" / "broken.svs"
    refused(run_command("tile", broken, "--out", tmp_path / "s"), "broken.svs", code=3)
    screen = ("screen", broken, "--detector", trained, "--out", tmp_path / "o")
    refused(run_command(*screen), "broken.svs", code=3)


# --- annotations --------------------------------------------------------------------------------


def asap(points):
    items = "".join(f'<Coordinate Order="0" X="{x}" Y="{y}" />' for x, y in points)
    return (
        '<ASAP_Annotations><Annotations><Annotation Name="A" Type="Polygon" PartOfGroup="Tumor">'
        f"<Coordinates>{items}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )


BAD_ANNOTATIONS = {
    "malformed": ("a.xml", "<ASAP_Annotations><Anno", "not a well-formed XML"),
    "other root": ("a.xml", "<svg/>", "expected 'ASAP_Annotations'"),
    "no number": ("a.xml", asap([("x", 1), (2, 2), (3, 1)]), "annotation 1"),
    "another slide": (
        "a.xml",
        asap([(90_000, 90_000), (91_000, 90_000), (91_000, 91_000)]),
        "another slide",
    ),
    "partly outside": ("a.xml", asap([(100, 100), (5000, 100), (100, 900)]), "expected within"),
    "no polygon": ("a.xml", asap([]), "no polygon found"),
    "not JSON": ("a.geojson", "{", "not a JSON file"),
    "no features": ("a.geojson", "[1]", "GeoJSON"),
    "unknown kind": ("a.doc", "x", "no known annotation"),
    "on glass": ("a.xml", asap([(1, 1), (40, 1), (40, 40)]), "on none of the slide's"),
    "entity bomb": (
        "a.xml",
        '<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations>&b;</ASAP_Annotations>',
        "XML",
    ),
}


@pytest.mark.parametrize("name", BAD_ANNOTATIONS)
def test_a_bad_annotation_sets_the_slide_aside(name, composed, run_command, tmp_path):
    file, text, message = BAD_ANNOTATIONS[name]
    (tmp_path / file).write_text(text)
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"path,annotation\n{composed / 'tumor_1.tif'},{file}\n")
    refused(run_command("tile", manifest, "--dry-run"), file, message, code=3)


# --- manifests ----------------------------------------------------------------------------------

BAD_MANIFESTS = {
    "no path column": ("slide\nA\n", "column 'path' is missing"),
    "unknown column": ("path,lable\nA,normal\n", "unknown column 'lable'"),
    "column twice": ("path, path\nA,A\n", "stands there twice"),
    "cells beyond the header": ("path,label\nA,normal,x\n", "more cells than its header"),
    "no rows": ("path\n", "no rows"),
    "empty file": ("", "not a CSV table"),
    "unknown path": ("path\nnowhere.svs\n", "'nowhere.svs' does not exist"),
    "endless path": (f"path\n{'x' * 5000}\n", "does not exist"),
    "slide twice": ("path,case_id\nA,a\nA,b\n", "is listed twice"),
    "case twice": ("path,case_id\nA,a\nB,a\n", "'a' is listed twice"),
    "patient in train and test": (
        "path,patient_id,split\nA,p7,train\nB,p7,test\n",
        "patient p7: found in split 'train' and in split 'test'",
    ),
    "unknown label": ("path,label\nA,perhaps\n", "label 'perhaps' is unknown"),
    "unknown split": ("path,split\nA,exam\n", "split 'exam' is unknown"),
    "NaN as mpp": ("path,mpp\nA,nan\n", "mpp 'nan' is not a positive number"),
    "case_id leaves the folder": ("path,case_id\nA,../../x\n", "usable as a folder's name"),
    "annotation is a folder": ("path,annotation\nA,.\n", "expected an annotation file"),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_bad_manifest_is_refused(name, composed, trained, run_command, tmp_path):
    text, message = BAD_MANIFESTS[name]
    for letter, slide in (("A", "normal_1"), ("B", "tumor_1")):
        text = text.replace(letter, str(composed / f"{slide}.tif"))
    (tmp_path / "manifest.csv").write_text(text)
    for command in (("tile",), ("screen", "--detector", trained)):
        outcome = run_command(*command, tmp_path / "manifest.csv", "--out", tmp_path / "out")
        refused(outcome, "manifest.csv" if "patient" not in name else "", message)
        assert not (tmp_path / "out").exists()


def test_a_slide_named_like_a_table_is_refused(composed, trained, run_command, tmp_path):
    slide = tmp_path / "slides.csv.tif"
    shutil.copy(composed / "normal_1.tif", slide)
    outcome = run_command("screen", slide, "--detector", trained, "--out", tmp_path / "out")
    refused(outcome, "case_id 'slides.csv' must be usable as a folder's name")
    assert not (tmp_path / "out").exists()


def test_tumor_in_a_slide_called_normal_is_set_aside(composed, run_command, tmp_path):
    manifest = tmp_path / "m.csv"
    slide = composed / "tumor_1"
    manifest.write_text(f"path,label,annotation\n{slide}.tif,normal,{slide}.xml\n")
    refused(run_command("tile", manifest, "--dry-run"), "labels the case normal", code=3)


# --- settings -----------------------------------------------------------------------------------

BAD_SETTINGS = {
    "unknown key": (("--set", "tiles.sise=3"), "tiles.sise: unknown key; did you mean 'size_px'?"),
    "no value": (("--set", "tiles"), "expected KEY=VALUE"),
    "impossible date": (("--set", "tiles.mpp=2026-13-45"), "not YAML"),
    "stride 0": (("--stride", 0), "tiles.stride_px"),
    "huge stride": (("--stride", "9" * 400), "tiles.stride_px"),
    "huge size": (("--size", 10**9), "tiles.size_px"),
    "mpp 0": (("--mpp", 0), "tiles.mpp"),
    "mpp NaN": (("--mpp", "nan"), "tiles.mpp"),
    "min-tissue 2": (("--min-tissue", 2), "tiles.min_tissue"),
    "stain": (("--stain", "purple"), "'vahadane'"),
    "no config file": (("--config", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
    "no annotations": (("--annotations", "nowhere"), "nowhere: no such folder"),
    "other annotations": (("--annotations", str(Path(__file__).parent)), "of none of the 1 slides"),
    "slide-mpp 0": (("--slide-mpp", 0), "--slide-mpp 0: expected 0.05 to 20"),
    "slide-mpp NaN": (("--slide-mpp", "nan"), "--slide-mpp nan: expected"),
    "no target": (("--target", "nowhere.png"), "nowhere.png: no such file"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_bad_setting_is_refused(name, composed, run_command):
    options, message = BAD_SETTINGS[name]
    refused(run_command("tile", composed / "normal_1.tif", "--dry-run", *options), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiles: {sise: 3}", "tiles.sise: unknown key"),
        ("[1, 2]", "expected a mapping"),
        ("tiles: [", "not a YAML file"),
        ("a: 2026-13-45", "not a YAML file"),
        ("a: " + "[" * 3000, "not a YAML file"),
        ("tiles: {mpp: abc}", "tiles.mpp"),
    ],
)
def test_a_bad_config_file_is_refused(text, message, composed, run_command, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    command = ("tile", composed / "normal_1.tif", "--dry-run", "--config", tmp_path / "c.yaml")
    refused(run_command(*command), "c.yaml", message)


BAD_TRAININGS = {
    "width 0": (("--width", 0), "network.width"),
    "negative seed": (("--seed", -1), "seed"),
    "no epochs": (("--epochs", 0), "epochs"),
    "preset": (("--preset", "best"), "preset"),
    "device": (("--device", "tpu"), "device"),
    "more labels than anomalies": (("--set", "data.labeled_count=100000"), "data.labeled_count"),
    "no such class column": (
        ("--set", "data.class_column=foo", "--set", "data.labeled_classes=1"),
        "'foo'",
    ),
    "diverges": (
        ("--set", "optimizer.lr=1e30", "--set", "optimizer.clip=null", "--set", "epochs=2"),
        "is not finite",
    ),
}


@pytest.mark.parametrize("name", BAD_TRAININGS)
def test_a_bad_training_is_refused(name, store, run_command, tmp_path):
    options, message = BAD_TRAININGS[name]
    quick = ("--set", "members=1", "--set", "precision=float32")
    refused(run_command("train", store, "--out", tmp_path / "d", *quick, *options), message)
    assert not (tmp_path / "d" / "checksums.json").exists()


def test_a_negative_seed_of_the_demo_is_refused_before_anything_is_made(run_command, tmp_path):
    refused(run_command("demo", "--seed", -1, "--out", tmp_path / "demo"), "seed")
    assert not (tmp_path / "demo").exists()


# --- stores -------------------------------------------------------------------------------------


def edit_json(file, **changes):
    """Change keys of a JSON file; ``a__b`` is key b of key a."""
    values = json.loads(file.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        inner = values
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    file.write_text(json.dumps(values))


def flip_last_byte(file):
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def drop_last_row(file):
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def edit_text(old, new):
    return lambda file: file.write_text(file.read_text().replace(old, new, 1))


BAD_STORES = {
    "samples missing": ("samples.npy", Path.unlink, "samples.npy"),
    "samples empty": ("samples.npy", lambda f: f.write_bytes(b""), "not a readable array"),
    "samples cut": ("samples.npy", lambda f: f.write_bytes(f.read_bytes()[:9000]), "samples.npy"),
    "samples damaged": ("samples.npy", flip_last_byte, "samples.npy"),
    "rows missing": ("samples.csv", Path.unlink, "samples.csv"),
    "a row too few": ("samples.csv", drop_last_row, "come from different runs"),
    "a row edited": ("samples.csv", edit_text("p0", "p9"), "edited or damaged"),
    "column renamed": ("samples.csv", edit_text("split", "spilt"), "'split' is missing"),
    "contract missing": ("store.json", Path.unlink, "store.json"),
    "contract no JSON": ("store.json", lambda f: f.write_text("{"), "not a JSON file"),
    "other format": ("store.json", lambda f: edit_json(f, format="2"), "format '2'"),
    "other shape": ("store.json", lambda f: edit_json(f, shape=[1]), "different runs"),
    "no digests": ("store.json", lambda f: edit_json(f, digests=3), "store.json"),
    "mpp is a word": ("store.json", lambda f: edit_json(f, mpp="fine"), "edited or damaged"),
    "mpp is NaN": ("store.json", lambda f: edit_json(f, mpp=float("nan")), "edited or damaged"),
    "preparation a list": ("store.json", lambda f: edit_json(f, preparation=[1]), "store.json"),
}


@pytest.mark.parametrize("name", BAD_STORES)
def test_a_bad_store_is_refused(name, store, run_command, tmp_path):
    file, damage, message = BAD_STORES[name]
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    damage(copy / file)
    quick = ("--width", 0.03125, "--epochs", 1, "--set", "members=1")
    refused(run_command("train", copy, "--out", tmp_path / "d", *quick), message)


# --- detectors ----------------------------------------------------------------------------------


def seal(detector):
    """Fresh checksums, as a clever hand would write them."""
    names = ("weights.safetensors", "contract.json")
    sums = {n: hashlib.sha256((detector / n).read_bytes()).hexdigest() for n in names}
    (detector / "checksums.json").write_text(json.dumps(sums))


def contract(**changes):
    def edit(detector):
        edit_json(detector / "contract.json", **changes)
        seal(detector)

    return edit


BAD_DETECTORS = {
    "weights damaged": (lambda d: flip_last_byte(d / "weights.safetensors"), "damaged"),
    "weights missing": (lambda d: (d / "weights.safetensors").unlink(), "missing"),
    "checksums missing": (lambda d: (d / "checksums.json").unlink(), "not a finished detector"),
    "checksums no JSON": (lambda d: (d / "checksums.json").write_text("x"), "not a JSON file"),
    "contract edited": (lambda d: edit_json(d / "contract.json", views=8), "damaged"),
    "another format": (contract(format="2"), "format '2'"),
    "unknown key": (contract(extra=1), "extra: unknown key"),
    "another network": (contract(network__width=1.0), "do not fit"),
    "another mpp": (contract(input__mpp=0.5), "µm per pixel, this detector expects 0.5"),
    "another size": (contract(input__sample_shape=[32, 32, 3]), "this detector expects (32, 32)"),
    "another stain": (contract(input__stain="macenko"), "this detector expects macenko"),
    "another stain target": (
        contract(input__stain_target__max_concentration=[1.0, 1.0]),
        "is not the one this detector was trained with",
    ),
    "another modality": (contract(input__modality="radiography"), "expects radiography"),
    "another value range": (contract(input__value_range=[0, 1]), "value range"),
}


@pytest.mark.parametrize("name", BAD_DETECTORS)
def test_a_bad_detector_is_refused_by_score_and_screen(
    name, composed, store, trained, run_command, tmp_path
):
    damage, message = BAD_DETECTORS[name]
    detector = tmp_path / "detector"
    shutil.copytree(trained, detector)
    damage(detector)
    score = ("score", store, "--detector", detector, "--out", tmp_path / "s.csv")
    refused(run_command(*score), message)
    assert not (tmp_path / "s.csv").exists()
    slide = composed / "normal_1.tif"
    refused(run_command("screen", slide, "--detector", detector, "--out", tmp_path / "o"), message)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("changes", [{"preparation__stain_target": {"name": 1}}])
def test_a_preparation_of_something_else_is_refused(
    changes, composed, trained, run_command, tmp_path
):
    detector = tmp_path / "detector"
    shutil.copytree(trained, detector)
    contract(**changes)(detector)
    slide = composed / "normal_1.tif"
    outcome = run_command("screen", slide, "--detector", detector, "--out", tmp_path / "o")
    refused(outcome, "preparation")


def test_a_precision_that_the_hardware_lacks_is_refused_before_anything_is_written(
    composed, store, trained, run_command, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    use = ("--detector", trained, "--precision", "int8", "--out")
    refused(run_command("score", store, *use, tmp_path / "s.csv"), "VNNI", "bfloat16")
    refused(run_command("screen", composed / "normal_1.tif", *use, tmp_path / "o"), "VNNI")
    assert not list(tmp_path.iterdir())


def test_a_store_is_no_detector_and_a_detector_no_store(store, trained, run_command, tmp_path):
    out = ("--out", tmp_path / "x")
    refused(run_command("score", store, "--detector", store, *out), "is a SampleStore")
    refused(run_command("score", trained, "--detector", trained, *out), "is a detector")
    refused(run_command("score", store, "--detector", tmp_path / "no", *out), "no such folder")
    refused(run_command("train", tmp_path / "no", *out), "no such folder")


def test_a_training_is_resumed_with_its_own_settings_only(store, trained, run_command, tmp_path):
    detector = tmp_path / "detector"
    shutil.copytree(trained, detector)
    train = ("train", store, "--out", detector)
    refused(run_command(*train), "--resume", "--overwrite")
    refused(run_command(*train, "--resume"), "cannot be resumed, network.width was 0.0625")
    shutil.rmtree(detector / "checkpoints")
    refused(run_command(*train, "--resume"), "without its checkpoints")
    assert (detector / "checksums.json").exists()  # the finished detector still stands


def test_a_damaged_checkpoint_is_named(store, trained, run_command, tmp_path):
    detector = tmp_path / "detector"
    shutil.copytree(trained, detector)
    next((detector / "checkpoints").glob("member0*.pt")).write_bytes(b"x")
    same = ("--config", trained / "config.yaml")
    outcome = run_command("train", store, "--out", detector, "--resume", *same)
    refused(outcome, "the checkpoint is missing or damaged", "member0.json")


# --- tables of scores ---------------------------------------------------------------------------

HEADER = "sample_id,case_id,patient_id,truth,score\n"
BAD_SCORES = {
    "empty file": ("", "not a CSV table"),
    "other columns": ("a,b\n1,2\n", "column 'score' is missing"),
    "no rows": (HEADER, "no normal sample"),
    "NaN": (HEADER + "a,c,p,0,nan\nb,c,p,1,1\n", "not finite"),
    "infinite": (HEADER + "a,c,p,0,inf\nb,c,p,1,1\n", "not finite"),
    "huge": (HEADER + "a,c,p,0,1e308\nb,c,p,1,-1e308\n", "not finite"),
    "empty score": (HEADER + "a,c,p,0,\nb,c,p,1,1\n", "not finite"),
    "a word": (HEADER + "a,c,p,0,high\nb,c,p,1,1\n", "holds no numbers"),
    "truth 2": (HEADER + "a,c,p,2,1\nb,c,p,1,1\n", "truth must be 0, 1 or empty"),
    "one class": (HEADER + "a,c,p,0,1\nb,c,p,0,1\n", "no anomalous sample"),
}


@pytest.mark.parametrize("name", BAD_SCORES)
def test_a_bad_table_of_scores_is_refused(name, run_command, tmp_path):
    text, message = BAD_SCORES[name]
    (tmp_path / "s.csv").write_text(text)
    refused(run_command("evaluate", tmp_path / "s.csv", "--out", tmp_path / "e"), message)
    assert not (tmp_path / "e").exists()


def test_evaluation_asks_for_what_is_there(run_command, tmp_path):
    (tmp_path / "s.csv").write_text(HEADER + "a,c,,0,1\nb,c,,1,2\n")
    evaluate = ("evaluate", tmp_path / "s.csv")
    refused(run_command(*evaluate, "--group", "scanner"), "'scanner' is missing")
    refused(run_command(*evaluate, "--by", "patient"), "is unknown")
    refused(run_command(*evaluate, "--by", "phase"), "phase", code=2)
    refused(run_command("evaluate", tmp_path), "no folder of `screen`")
    refused(run_command("evaluate", tmp_path / "no.csv"), "cannot be read")


def test_an_unfinished_or_damaged_screening_is_not_evaluated(run_command, tmp_path):
    (tmp_path / "journal.jsonl").touch()
    refused(run_command("evaluate", tmp_path), "screening is not finished")
    for table, message in (
        ("slide\na\n", "'case_id' is missing"),
        ("case_id\na\n", "a/scores.csv: is missing"),
        ("case_id\n", "no slide could be screened"),
    ):
        (tmp_path / "slides.csv").write_text(table)
        refused(run_command("evaluate", tmp_path), message)


# --- pictures to import -------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (96, 96, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    (folder / "table.csv").write_text("path,label\n0.png,0\n1.png,1\n2.png,0\n")
    return folder


BAD_IMPORTS = {
    "crop 4": (("--crop", 4), "size_px"),
    "huge crop": (("--crop", 10**6), "size_px"),
    "crop beyond all pictures": (("--crop", 4096), "expected at least 4096x4096"),
    "mpp 0": (("--mpp", 0), "mpp"),
    "column of digits": (("--label", "1"), "column '1' for the label is missing"),
    "column like YAML": (("--group", "a: b"), "column 'a: b' for the group is missing"),
    "stain by": (("--stain-by", "color"), "'group' or 'set'"),
}


@pytest.mark.parametrize("name", BAD_IMPORTS)
def test_a_bad_import_is_refused(name, pictures, run_command, tmp_path):
    options, message = BAD_IMPORTS[name]
    table = ("--table", pictures / "table.csv", "--stain", "none", "--mpp", 1)
    refused(run_command("import", pictures, *table, "--out", tmp_path / "s", *options), message)
    assert not (tmp_path / "s").exists()


def test_a_damaged_picture_is_set_aside(pictures, run_command, tmp_path):
    data = (pictures / "1.png").read_bytes()
    (pictures / "1.png").write_bytes(data[: len(data) // 2])
    table = ("--table", pictures / "table.csv", "--stain", "none", "--mpp", 1)
    outcome = run_command("import", pictures, *table, "--out", tmp_path / "s")
    refused(outcome, "1: set aside, 1.png: cannot be read", code=3)
    assert len(SampleStore(tmp_path / "s")) == 2


# --- --out --------------------------------------------------------------------------------------


@pytest.fixture
def commands(composed, store, trained, pictures):
    """One working command line for each command that writes, without its --out."""
    slide = composed / "normal_1.tif"
    table = ("--table", pictures / "table.csv", "--stain", "none", "--mpp", 1)
    return {
        "tile": ("tile", slide, "--stain", "none"),
        "import": ("import", pictures, *table),
        "train": ("train", store, "--width", 0.03125, "--epochs", 1, "--set", "members=1"),
        "screen": ("screen", slide, "--detector", trained),
    }


FOLDER_COMMANDS = ("tile", "import", "train", "screen")


@pytest.mark.parametrize("name", FOLDER_COMMANDS)
def test_a_file_at_out_stays(name, commands, run_command, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for out in (tmp_path / "mine", tmp_path / "mine" / "below"):
        refused(run_command(*commands[name], "--out", out), "mine", "choose another --out")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", FOLDER_COMMANDS)
def test_a_folder_of_something_else_is_never_replaced(name, commands, run_command, tmp_path):
    mine = tmp_path / "mine"
    (mine / "checkpoints").mkdir(parents=True)
    for file in ("README.md", "config.yaml", "checkpoints/x.pt"):
        (mine / file).write_text("mine")
    overwrite = () if name == "screen" else ("--overwrite",)
    for options in ((), overwrite):
        outcome = run_command(*commands[name], "--out", mine, *options)
        refused(outcome, "mine: exists and is", "choose another --out")
    files = {str(f.relative_to(mine)): f.read_text() for f in mine.rglob("*") if f.is_file()}
    assert files == dict.fromkeys(("README.md", "config.yaml", "checkpoints/x.pt"), "mine")


def test_screening_spares_the_data_folder_of_a_slide(composed, trained, run_command, tmp_path):
    """A .mrxs slide keeps its pixels in a folder of its own name."""
    shutil.copy(composed / "normal_1.tif", tmp_path / "case.tif")
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "Data0000.dat").write_text("pixels")
    (tmp_path / "journal.jsonl").touch()
    screen = ("screen", tmp_path / "case.tif", "--detector", trained)
    refused(run_command(*screen, "--out", tmp_path), "is no result of `screen`")
    assert (tmp_path / "case" / "Data0000.dat").read_text() == "pixels"


def test_tables_are_never_written_over_other_tables(store, trained, run_command, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    score = ("score", copy, "--detector", trained, "--out")
    refused(run_command(*score, copy / "samples.csv"), "is no table of scores")
    refused(run_command(*score, copy), "is a folder, expected the name of a CSV")
    SampleStore(copy)
    (tmp_path / "slides.csv").write_text("mine")
    (tmp_path / "s.csv").write_text(HEADER + "a,c,p,0,1\nb,c,p,1,2\n")
    evaluate = ("evaluate", tmp_path / "s.csv", "--out", tmp_path)
    refused(run_command(*evaluate), "holds a slides.csv of another command")
    assert (tmp_path / "slides.csv").read_text() == "mine"


@pytest.mark.parametrize("name", [*FOLDER_COMMANDS, "score", "evaluate"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_locked_disk_leaves_nothing_half_written(
    name, reason, commands, store, trained, run_command, tmp_path, monkeypatch
):
    (tmp_path / "s.csv").write_text(HEADER + "a,c,p,0,1\nb,c,p,1,2\n")
    out = tmp_path / "new" / "out"
    commands["score"] = ("score", store, "--detector", trained)
    commands["evaluate"] = ("evaluate", tmp_path / "s.csv")
    text = "No space left on device" if reason == errno.ENOSPC else "Read-only file system"

    def fail(_):
        raise OSError(reason, text)

    monkeypatch.setattr("os.fsync", fail)  # every file passes here before it gets its name
    refused(run_command(*commands[name], "--out", out), "cannot be written", text, "--out")
    files = [p.name for p in tmp_path.joinpath("new").rglob("*") if p.is_file()]
    finished = {"store.json", "checksums.json", "slide.json", "evaluation.json", "out"}
    assert not finished & set(files)
    monkeypatch.undo()
    resume = ("--resume",) if name == "train" else ()
    assert run_command(*commands[name], "--out", out, *resume).code == 0


def test_a_disk_that_fills_while_tiles_are_written(composed, run_command, tmp_path, monkeypatch):
    """Buffered samples fail again when the file is closed."""
    out = tmp_path / "store"
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if len(data) > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def close(self):
            self.file.close()
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        return Full(file) if path.name == "samples.npy" else file

    monkeypatch.setattr(Path, "open", open_full)
    command = ("tile", composed / "normal_1.tif", "--stain", "none", "--out")
    refused(run_command(*command, out), f"{out}: cannot be written (No space left on device)")
    assert [path.name for path in tmp_path.iterdir()] == [".store.unfinished"]
    monkeypatch.undo()
    assert run_command(*command, out).code == run_command(*command, tmp_path / "other").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "store"]
    for name in ("samples.npy", "samples.csv", "store.json", "quality/normal_1.png"):
        assert (out / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


# --- names --------------------------------------------------------------------------------------


def test_odd_names_are_fine(composed, trained, run_command, tmp_path):
    """Spaces, other scripts and links: everything a file may be called, as far as it is UTF-8."""
    slide = tmp_path / "ünï 切片 (1) #2.tif"
    slide.symlink_to(composed / "normal_1.tif")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    command = ("tile", slide, "--out", tmp_path / "link", "--stain", "none", "--png", "--hdf5")
    assert run_command(*command).code == 0
    assert SampleStore(tmp_path / "real").rows["case_id"].unique().tolist() == [slide.stem]
    assert (tmp_path / "link").is_symlink()
    out = tmp_path / "out <b>"
    outcome = run_command("screen", slide, "--detector", trained, "--out", out)
    assert outcome.code == 0, outcome.err
    assert slide.stem in (out / slide.stem / "report.html").read_text()


def test_out_may_be_the_current_folder(composed, run_command, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    slide = composed / "normal_1.tif"
    assert run_command("tile", slide, "--out", ".", "--stain", "none").code == 0
    assert (tmp_path / "here" / "store.json").exists()


def test_a_name_that_is_not_utf8_is_refused(composed, run_command, tmp_path):
    name = tmp_path / "sl\udcffide.tif"
    shutil.copy(composed / "normal_1.tif", name)
    refused(run_command("tile", name, "--out", tmp_path / "s"), "is not UTF-8; rename")
    name.unlink()  # pytest's own clean-up prints names
