"""Feature files and encoders: the same scores by either way, another encoder refused."""

import json

import numpy as np
import pandas as pd
import pytest
from onnx_models import write_encoder

from esad_med.base.store import SampleStore
from esad_med.method.detector import Detector
from esad_med.method.scores import slide_score

QUICK = ("--epochs", 2, "--set", "members=2")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder of twelve values that takes pictures of any size."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.onnx")


@pytest.fixture(scope="module")
def manifest(composed):
    """All four composed slides."""
    return composed / "manifest.csv"


@pytest.fixture
def by_encoder(run_command, manifest, encoder, tmp_path):
    """A store of embeddings, with the same as feature files in it."""
    out = tmp_path / "embedded"
    options = ("--encoder", encoder, "--features-h5", "--set", "labels.truth_threshold=0.3")
    outcome = run_command("tile", manifest, "--out", out, *options)
    assert outcome.code == 0, outcome.err
    return out


def test_both_ways_to_a_slide_score_agree(run_command, composed, manifest, encoder, by_encoder):
    """`screen --encoder`, and a feature file read back, scored, and put under the slide rule."""
    here = by_encoder.parent
    import_ = ("import", "--features", by_encoder / "features", "--table", manifest)
    outcome = run_command(
        *import_, "--out", here / "imported", "--set", "labels.truth_threshold=0.3"
    )
    assert outcome.code == 0, outcome.err
    first, second = SampleStore(by_encoder), SampleStore(here / "imported")
    assert first.digest == second.digest
    same = ["sample_id", "case_id", "patient_id", "split", "semi_label", "truth", "x_level0"]
    pd.testing.assert_frame_equal(first.rows[same], second.rows[same])
    for key in ("kind", "modality", "value_range", "mpp", "preparation", "encoder"):
        assert first.contract[key] == second.contract[key], key

    detector = here / "detector"
    assert run_command("train", here / "imported", "--out", detector, *QUICK).code == 0
    scores = here / "scores.csv"
    outcome = run_command("score", here / "imported", "--detector", detector, "--out", scores)
    assert outcome.code == 0, outcome.err
    outcome = run_command(
        *("screen", composed / "tumor_2.tif", composed / "normal_1.tif"),
        *("--detector", detector, "--encoder", encoder, "--out", here / "screened", "--json"),
    )
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(scores)
    for slide in json.loads(outcome.out)["slides"]:
        own = table.loc[table["case_id"] == slide["case_id"], "score"].to_numpy()
        assert len(own) == slide["tiles"] > 50
        assert slide_score(own) == pytest.approx(slide["slide_score"], abs=2e-6)
        assert "tiny" in slide["provenance"]["Encoder"]
    assert (here / "screened" / "tumor_2" / "heatmap.tif").exists()
    assert str(Detector.load(detector).input.encoder.digest) in (
        here / "screened" / "tumor_2" / "report.html"
    ).read_text(encoding="utf-8")
