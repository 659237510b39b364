"""`tile` and `screen` killed at random moments: nothing partial stands, and the end is the same."""

import json
import random

import pytest
from commands import contents, kill_until_done, leftovers, run

from esad_med.base.store import SampleStore

TIMES = ("run.json",)  # holds times
SCREENED = {
    "scores.csv",
    "slide.json",
    "heatmap.tif",
    "lesions.geojson",
    "report.html",
    "thumbnail.jpg",
}


@pytest.mark.parametrize("workers", [0, 1])
def test_tile_killed_at_random_moments_gives_the_same_bytes(composed, tmp_path, rounds, workers):
    asked = ("tile", composed / "manifest.csv", "--png", "--hdf5", "--workers", workers)
    code, _, err, seconds = run(*asked, "--out", tmp_path / "whole")
    assert code == 0, err
    whole = contents(tmp_path / "whole", but=TIMES)
    randomness, kills, round_ = random.Random(workers), 0, 0
    wanted = rounds(2, 25)
    while kills < wanted:
        parent = tmp_path / f"round{round_}"
        parent.mkdir()
        out = parent / "store"

        def check(out=out) -> None:
            assert not out.exists() or SampleStore(out).verify() is None

        kills += kill_until_done(
            (*asked, "--out", out),
            lambda: randomness.uniform(0.2, 1.0) * seconds,
            check,
            most=wanted - kills,
        )
        assert contents(out, but=TIMES) == whole
        assert [path.name for path in parent.iterdir()] == ["store"]
        round_ += 1
    print(f"tile, {workers} workers: {kills} kills in {round_} rounds, same bytes")


@pytest.mark.parametrize("workers", [0, 1])
def test_screen_killed_at_random_moments_gives_the_same_bytes(
    composed, trained, tmp_path, rounds, workers
):
    asked = ("screen", composed / "manifest.csv", "--detector", trained, "--workers", workers)
    code, _, err, seconds = run(*asked, "--out", tmp_path / "whole")
    assert code == 0, err
    whole = contents(tmp_path / "whole", but=(*TIMES, "journal.jsonl"))
    randomness, kills, round_ = random.Random(workers), 0, 0
    wanted = rounds(2, 25)
    while kills < wanted:
        out = tmp_path / f"round{round_}"

        def check(out=out) -> None:
            for folder in (path for path in out.glob("[!.]*") if path.is_dir()):
                assert {path.name for path in folder.iterdir()} == SCREENED
                json.loads((folder / "slide.json").read_text())

        kills += kill_until_done(
            (*asked, "--out", out),
            lambda: randomness.uniform(0.2, 1.0) * seconds,
            check,
            most=wanted - kills,
        )
        assert contents(out, but=(*TIMES, "journal.jsonl")) == whole
        assert leftovers(out) == []
        round_ += 1
    print(f"screen, {workers} workers: {kills} kills in {round_} rounds, same bytes")
