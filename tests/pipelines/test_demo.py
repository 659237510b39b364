"""`esad-med demo` in small: the composed test slides and a training of seconds."""

import json

import pytest

from esad_med.base.cases import read_manifest
from pipelines import demo


@pytest.fixture
def small(monkeypatch, composed):
    """Four small slides instead of eight, and a shorter training."""
    manifest = composed / "manifest.csv"
    monkeypatch.setattr(demo, "compose_demo_slides", lambda *_, **__: read_manifest(manifest))
    quick = {"network": {"width": 0.0625}, "members": 1, "epochs": 2}
    monkeypatch.setattr(demo, "_TRAINING", quick)


def test_the_demo_runs_twice_and_says_what_is_composed(small, run_command, tmp_path):
    out = tmp_path / "demo"
    first = run_command("demo", "--out", out, "--json")
    assert first.code == 0, first.err
    result = json.loads(first.out)
    assert set(result["slide_scores"]) == {"normal_2", "tumor_2"}
    assert 0 <= result["tile_auc"] <= 1
    assert (out / "screened" / "tumor_2" / "report.html").exists()
    assert "composed" in first.err
    again = run_command("demo", "--out", out)
    assert again.code == 0, again.err
    assert f"{result['tile_auc']:.3f}" in again.out
