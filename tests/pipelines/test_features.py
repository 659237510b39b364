"""Feature files and encoders: the same scores by either way, another encoder refused."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from onnx_models import write_encoder

from esad_med.base.store import SampleStore
from esad_med.method.detector import Detector
from esad_med.method.scores import slide_score

QUICK = ("--epochs", 2, "--set", "members=2")
LABELS = ("--set", "labels.truth_threshold=0.3")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What the tests of this module share: encoders, a store of embeddings, a detector."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def encoder(home):
    """An encoder of twelve values that takes pictures of any size."""
    return write_encoder(home / "tiny.onnx")


@pytest.fixture
def embedded(home, run_command, composed, encoder):
    """All four composed slides as embeddings, with the same as feature files in the store."""
    out = home / "embedded"
    if not out.exists():
        options = ("--encoder", encoder, "--features-h5", *LABELS)
        outcome = run_command("tile", composed / "manifest.csv", "--out", out, *options)
        assert outcome.code == 0, outcome.err
    return out


@pytest.fixture
def imported(home, run_command, composed, embedded):
    """The feature files read back; the table names the slides."""
    out, table = home / "imported", composed / "manifest.csv"
    if not out.exists():
        options = ("--table", table, "--out", out, *LABELS)
        outcome = run_command("import", "--features", embedded / "features", *options)
        assert outcome.code == 0, outcome.err
    return out


@pytest.fixture
def detector(home, run_command, imported):
    """A detector of embeddings, trained for seconds."""
    out = home / "detector"
    if not out.exists():
        assert run_command("train", imported, "--out", out, *QUICK).code == 0
    return out


def test_a_feature_file_read_back_is_the_store_it_was_written_with(embedded, imported):
    first, second = SampleStore(embedded), SampleStore(imported)
    assert first.samples.shape[1:] == (12,)
    assert first.digest == second.digest
    columns = [name for name in first.rows if name != "tissue_fraction"]
    pd.testing.assert_frame_equal(first.rows[columns], second.rows[columns])
    assert second.rows["tissue_fraction"].isna().all()
    for key in ("kind", "modality", "value_range", "mpp", "preparation", "encoder"):
        assert first.contract[key] == second.contract[key], key


def test_both_ways_to_a_slide_score_agree(run_command, composed, encoder, imported, detector, home):
    """`screen --encoder`, and a feature file read back, scored, and put under the slide rule."""
    out = home / "screened"
    slides = (composed / "tumor_2.tif", composed / "normal_1.tif")
    with_it = ("--detector", detector, "--encoder", encoder)
    outcome = run_command("screen", *slides, *with_it, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    store, model = SampleStore(imported), Detector.load(detector)
    for slide in json.loads(outcome.out)["slides"]:
        own = store.samples[store.rows["case_id"] == slide["case_id"]]
        assert len(own) == slide["tiles"] > 50
        score = slide_score(model.score(own).score)
        assert round(score, 6) == slide["slide_score"]
        folder = out / slide["case_id"]
        assert (folder / "heatmap.tif").exists()
        assert str(model.input.encoder.digest) in (folder / "report.html").read_text("utf-8")
    scores = home / "scores.csv"
    assert run_command("score", imported, "--detector", detector, "--out", scores).code == 0
    table = pd.read_csv(scores)
    screened = pd.read_csv(out / "tumor_2" / "scores.csv")
    own = table[table["case_id"] == "tumor_2"].reset_index(drop=True)
    np.testing.assert_allclose(screened["score"], own["score"], rtol=2e-5)
    assert run_command("evaluate", scores).code == 0


def test_workers_load_the_encoder_themselves(run_command, composed, encoder, embedded, detector):
    home = embedded.parent
    for name, extra in (("beside", ("--workers", 1)),):
        options = ("--encoder", encoder, *LABELS, *extra)
        outcome = run_command("tile", composed / "manifest.csv", "--out", home / name, *options)
        assert outcome.code == 0, outcome.err
        assert SampleStore(home / name).digest == SampleStore(embedded).digest


def test_a_detector_refuses_another_encoder_another_preparation_or_none(
    run_command, composed, home, encoder, detector, trained
):
    other = write_encoder(home / "other.onnx", seed=1)
    prepared = shutil.copy(encoder, home / "prepared.onnx")
    (home / "prepared.yaml").write_text("mean: [0.5, 0.5, 0.5]\n")
    own = Detector.load(detector).input.encoder

    def screen(folder, *options):
        slide = composed / "normal_1.tif"
        command = ("screen", slide, "--detector", folder, "--out", home / "no", *options)
        outcome = run_command(*command)
        assert outcome.code == 4
        assert not (home / "no").exists()
        return outcome.err

    said = screen(detector, "--encoder", other)
    assert own.digest in said
    assert "'other'" in said
    said = screen(detector, "--encoder", prepared)
    assert "same model with another preparation" in said
    assert "mean [0.5, 0.5, 0.5], expected [0.485" in said
    said = screen(detector)
    assert "no encoder" in said
    assert own.digest in said
    assert "trained without an encoder" in screen(trained, "--encoder", encoder)
    assert "pictures of 32 pixels" in screen(
        detector, "--encoder", encoder, "--set", "tiles.size_px=32"
    )
    assert "µm per pixel" in screen(detector, "--encoder", encoder, "--set", "tiles.mpp=2")


def test_a_store_of_another_encoder_is_not_scored(run_command, composed, home, detector, store):
    for path, word in ((store, "no encoder"), (None, "'other'")):
        if path is None:
            other = write_encoder(home / "other.onnx", seed=1)
            path = home / "by-other"
            slide = composed / "normal_1.tif"
            assert run_command("tile", slide, "--out", path, "--encoder", other).code == 0
        outcome = run_command("score", path, "--detector", detector, "--out", home / "no.csv")
        assert outcome.code == 4
        assert word in outcome.err


def trident(path, *, count=30, dim=8, shift=0, **attributes):
    """A file as TRIDENT writes it: a vector and a corner per tile of 512 level-0 pixels."""
    random = np.random.default_rng(count + dim + shift)
    with h5py.File(path, "w") as file:
        file["features"] = random.normal(size=(count, dim)).astype(np.float16)
        grid = np.stack(np.unravel_index(np.arange(count), (100, 10)), 1)[:, ::-1] * 512
        file["coords"] = grid
        known = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40}
        known |= {"target_magnification": 20, "overlap": 0, "name": path.stem}
        file["coords"].attrs.update(known | attributes)
    return path


def import_(run_command, out, *features, options=("--encoder-name", "uni_v1")):
    named = [part for path in features for part in ("--features", path)]
    return run_command("import", *named, "--out", out, *options)


def test_files_of_trident_by_a_stated_name(run_command, tmp_path):
    first, second = (trident(tmp_path / f"{name}.h5", shift=i) for i, name in enumerate("ab"))
    outcome = import_(run_command, tmp_path / "store", first, second)
    assert outcome.code == 0, outcome.err
    store = SampleStore(tmp_path / "store")
    with h5py.File(first) as file:
        np.testing.assert_array_equal(store.samples[:30], file["features"][:].astype(np.float32))
    assert store.rows["x_level0"].iloc[:3].tolist() == [0, 512, 1024]
    assert store.rows["case_id"].tolist() == ["a"] * 30 + ["b"] * 30
    assert store.contract["mpp"] == 0.5
    assert store.contract["encoder"]["name"] == "uni_v1"
    assert store.contract["encoder"]["digest"] is None
    assert store.contract["preparation"]["tiles"]["size_px"] == 256
    assert store.contract["preparation"]["stain"]["method"] == "none"
    assert run_command("train", tmp_path / "store", "--out", tmp_path / "d", *QUICK).code == 0
    again = import_(run_command, tmp_path / "store", first, second)
    assert "complete already" in again.out
    other = ("--encoder-name", "uni_v2")
    assert import_(run_command, tmp_path / "other", first, options=other).code == 0
    scored = ("score", tmp_path / "other", "--detector", tmp_path / "d")
    outcome = run_command(*scored, "--out", tmp_path / "s.csv")
    assert outcome.code == 4
    assert "'uni_v2'" in outcome.err
    assert "'uni_v1'" in outcome.err


def test_bad_files_of_many_are_set_aside(run_command, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for index in range(3):
        trident(folder / f"good{index}.h5", shift=index)
    trident(folder / "narrow.h5", dim=4)
    trident(folder / "coarse.h5", target_magnification=10)
    with h5py.File(trident(folder / "holed.h5"), "a") as file:
        file["features"][7, 3] = np.nan
    (folder / "text.h5").write_text("no HDF5")
    outcome = import_(run_command, tmp_path / "store", folder, options=("--encoder-name", "e"))
    assert outcome.code == 3
    store = SampleStore(tmp_path / "store")
    assert set(store.rows["case_id"]) == {"good0", "good1", "good2"}
    assert len(store) == 90
    failures = pd.read_csv(tmp_path / "store" / "failures.csv").set_index("case_id")["message"]
    assert "4 values" in failures["narrow"]
    assert "at 1 µm per pixel" in failures["coarse"]
    assert "vector 7 holds nan" in failures["holed"]
    assert "not an HDF5 file" in failures["text"]
    with_worker = import_(
        run_command, tmp_path / "by", folder, options=("--encoder-name", "e", "--workers", 1)
    )
    assert with_worker.code == 3
    assert SampleStore(tmp_path / "by").digest == store.digest


def test_what_files_do_not_say_must_be_given(run_command, tmp_path):
    bare = tmp_path / "clam.h5"  # CLAM writes no attributes beside features
    with h5py.File(trident(bare), "a") as file:
        for name in list(file["coords"].attrs):
            del file["coords"].attrs[name]
    out = tmp_path / "store"
    assert "--encoder-name" in import_(run_command, out, bare, options=()).err
    named = ("--encoder-name", "e")
    assert "--mpp" in import_(run_command, out, bare, options=named).err
    named += ("--mpp", 0.5)
    assert "size_px" in import_(run_command, out, bare, options=named).err
    assert not out.exists()
    assert import_(run_command, out, bare, options=(*named, "--set", "size_px=256")).code == 0
    wrong = ("--encoder-name", "e", "--mpp", 1)
    outcome = import_(run_command, tmp_path / "no", trident(tmp_path / "t.h5"), options=wrong)
    assert outcome.code == 4
    assert "its mpp is 0.5" in outcome.err


def test_a_table_gives_labels_and_names_every_slide(run_command, composed, tmp_path):
    for name in ("normal_1", "tumor_1", "stray"):
        trident(tmp_path / f"{name}.h5", count=9, patch_size_level0=128, level0_magnification=20)
    table = tmp_path / "slides.csv"
    lines = ["path,patient_id,split,label,annotation,mpp", "far/normal_1.svs,p0,train,normal,,"]
    lines.append(f"far/tumor_1.svs,p1,test,tumor,{composed / 'tumor_1.xml'},0.5")
    lines.append("far/missing.svs,p2,train,normal,,")
    table.write_text("\n".join(lines) + "\n")
    options = ("--encoder-name", "e", "--table", table)
    outcome = import_(run_command, tmp_path / "store", tmp_path, options=options)
    assert outcome.code == 3
    failures = pd.read_csv(tmp_path / "store" / "failures.csv").set_index("case_id")["message"]
    assert "no such file" in failures["missing"]
    assert "no row" in failures["stray"]
    rows = SampleStore(tmp_path / "store").rows
    assert rows.groupby("case_id")["split"].first().to_dict()["normal_1"] == "train"
    assert (rows.loc[rows["case_id"] == "normal_1", "truth"] == 0).all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--features-h5",), "--encoder"),
        (("--protocol", "dpa", "--encoder", "m.onnx"), "dpa"),
    ],
)
def test_tiling_options_that_do_not_go_together(run_command, composed, tmp_path, options, word):
    outcome = run_command("tile", composed, "--out", tmp_path / "s", *options)
    assert outcome.code == 2
    assert word in outcome.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--features", "x.h5", "--crop", 64), "--features"),
        (("--encoder-name", "e"), "pictures"),
        ((), "FOLDER"),
    ],
)
def test_options_that_do_not_go_together(run_command, tmp_path, options, word):
    outcome = run_command("import", "--out", tmp_path / "s", *options)
    assert outcome.code == 2
    assert word in outcome.err
