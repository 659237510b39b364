"""`esad-med view`: what a screened folder says, its index, viewers as files, what is refused."""

import json
import re
import shutil

import numpy as np
import openslide
import pandas as pd
import pytest
from PIL import Image

from data_prep.slide_writing import write_pyramid
from esad_med.base.errors import CaseError, ConfigError, SlideError
from esad_med.base.limits import Limits
from esad_med.outputs.openseadragon import LICENSE, SCRIPT
from pipelines.viewing import ScreenedFolder, ViewSpec, make_viewer, read_top_tiles, write_index
from pipelines.viewing_files import write_viewers
from pipelines.viewing_slides import SlideFiles


@pytest.fixture
def folder(screening, tmp_path):
    """A copy of the screened folder, to be changed."""
    return shutil.copytree(screening, tmp_path / "screened")


@pytest.fixture
def library(monkeypatch):
    """Stands for OpenSeadragon: no test here runs it."""
    found = {SCRIPT: b"// library", LICENSE: b"license"}
    monkeypatch.setattr("pipelines.viewing_files.read_openseadragon", lambda: found)
    return found


def change(path, **changes):
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | changes))


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


def test_a_folder_is_read_highest_score_first(screening):
    read = ScreenedFolder.read(screening)
    assert sorted(read.slides) == ["normal_1", "tumor_1"]
    scores = [facts.slide_score for facts in read.slides.values()]
    assert scores == sorted(scores, reverse=True)
    assert read.set_aside == (("lost", "lost.tif: the file is empty (0 bytes)"),)
    assert (read.detector, read.created) == ("d" * 12, "2026-01-02")


def test_the_index_says_what_slides_csv_says(screening):
    page = (screening / "index.html").read_text()
    table = pd.read_csv(screening / "slides.csv")
    for row in table.itertuples():
        assert f'data-value="{row.slide_score}"' in page
        assert f'data-value="{row.tiles}"' in page
        assert f'src="{row.case_id}/thumbnail.jpg"' in page
        assert (screening / row.case_id / "thumbnail.jpg").stat().st_size < 20_000
    assert "DOE^JANE" not in page
    assert "viewer/index.html" not in page  # there are none yet


def test_a_calibrated_detectors_decisions_are_shown(folder):
    decision = {"outcome": "alarm", "p_value": 0.0125, "rule": "r", "more": [1]}
    change(folder / "tumor_1" / "slide.json", decision=decision)
    table = pd.read_csv(folder / "tumor_1" / "scores.csv")
    table["p_value"] = np.where(np.arange(len(table)) % 2, np.nan, 0.25)
    table.to_csv(folder / "tumor_1" / "scores.csv", index=False)
    write_index(folder)
    page = (folder / "index.html").read_text()
    assert ">alarm</td>" in page
    assert 'data-value="0.0125"' in page
    read = ScreenedFolder.read(folder)
    viewer, _ = make_viewer(read, read.slides["tumor_1"], ViewSpec())
    assert "p 0.2500" in viewer
    assert '<strong class="decision">alarm</strong> <span>p 0.01250' in viewer
    assert "<dt>Decision</dt>" in viewer
    assert "Decision" not in make_viewer(read, read.slides["normal_1"], ViewSpec())[0]


def test_the_viewer_lists_the_highest_tiles_with_both_terms(screening):
    read = ScreenedFolder.read(screening)
    page, heat = make_viewer(read, read.slides["tumor_1"], ViewSpec(tiles=7))
    table = pd.read_csv(screening / "tumor_1" / "scores.csv")
    top = table.sort_values("score", ascending=False).head(7)
    assert data_of(page)["tiles"] == top[["x_level0", "y_level0"]].to_numpy().tolist()
    assert page.count("data-rank=") == 7
    first = top.iloc[0]
    assert f"score {first.score:.3f}" in page
    assert f"reconstruction {first.reconstruction:.3f}" in page
    assert f"norm {first.norm:.3f}" in page
    assert "DOE^JANE" not in page
    assert "not for diagnosis" in page.lower()
    assert set(np.unique(heat[..., 3])) == {0, 255}


def test_the_heat_map_lies_over_the_slide(screening):
    read = ScreenedFolder.read(screening)
    facts = read.slides["tumor_1"]
    page, heat = make_viewer(read, facts, ViewSpec())
    data = data_of(page)
    level0_px = data["heatWidth"] * facts.geometry.size_level0[0] / heat.shape[1]
    for x, y in data["tiles"]:
        center = [int((side + data["edge"] / 2) / level0_px) for side in (y, x)]
        assert heat[center[0], center[1], 3] == 255
    tiled = facts.tiles * (data["edge"] / level0_px) ** 2
    assert (heat[..., 3] == 255).sum() == pytest.approx(tiled, rel=0.02)


def test_viewers_are_written_and_kept(folder, composed, library):
    read, files = ScreenedFolder.read(folder), SlideFiles([composed])
    said = []
    outcome = write_viewers(read, files, ViewSpec(), say=said.append)
    assert (outcome.slides, outcome.failures) == (list(read.slides), {})
    viewer = folder / "tumor_1" / "viewer"
    with Image.open(max(viewer.glob("tiles/*/0_0.jpg"), key=lambda p: int(p.parent.name))) as tile:
        shown = np.asarray(tile).astype(int)
    slide = openslide.OpenSlide(composed / "tumor_1.tif")
    pixels = np.asarray(slide.read_region((0, 0), 0, (511, 511)).convert("RGB")).astype(int)
    assert np.abs(shown - pixels).mean() < 3  # JPEG
    assert (folder / SCRIPT).read_bytes() == library[SCRIPT]
    assert 'href="tumor_1/viewer/index.html"' in (folder / "index.html").read_text()
    before = (viewer / "tiles" / "tiles.json").stat().st_mtime_ns
    (folder / "normal_1" / "viewer" / "tiles" / "tiles.json").unlink()  # as if cut off
    write_viewers(read, SlideFiles([composed / "normal_1.tif"]), ViewSpec(), say=said.append)
    assert (viewer / "tiles" / "tiles.json").stat().st_mtime_ns == before
    assert (folder / "normal_1" / "viewer" / "tiles" / "tiles.json").exists()
    outcome = write_viewers(read, SlideFiles([]), ViewSpec(quality=50), say=said.append)
    assert not (viewer / "index.html").exists()  # it would speak of other tiles
    assert not list(folder.rglob("*.partial"))


def test_slides_that_cannot_be_shown_end_with_3_and_the_others_are_written(
    folder, composed, library, run_command, tmp_path
):
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(composed / "tumor_1.tif", slides)
    outcome = run_command("view", folder, "--slides", slides, "--files", "--json")
    assert outcome.code == 3, outcome.err
    found = json.loads(outcome.out)
    assert found["slides"] == ["tumor_1"]
    assert "normal_1.tif: the slide's file was not found" in found["failures"]["normal_1"]
    assert "--slides" in found["failures"]["normal_1"]
    assert (folder / "tumor_1" / "viewer" / "index.html").exists()
    assert not (folder / "normal_1" / "viewer" / "index.html").exists()


def test_another_slide_of_the_same_name_is_refused(screening, composed, tmp_path):
    facts = ScreenedFolder.read(screening).slides["normal_1"]
    picture = np.full((512, 512, 3), 200, np.uint8)
    other = tmp_path / "a" / "normal_1.tif"
    other.parent.mkdir()
    write_pyramid(other, picture, mpp=0.5, levels=1, description="another")
    with pytest.raises(SlideError, match=r"normal_1.tif: is another slide .*fingerprint"):
        SlideFiles([tmp_path]).find(facts)
    assert SlideFiles([tmp_path, composed]).find(facts) == composed / "normal_1.tif"
    with pytest.raises(ConfigError, match="no such file or folder"):
        SlideFiles([tmp_path / "none"])


def test_a_full_disk_is_noticed_before_it_is_full(folder, composed, library):
    read, files = ScreenedFolder.read(folder), SlideFiles([composed])
    with pytest.raises(ConfigError, match="GiB are free, expected"):
        write_viewers(read, files, ViewSpec(free_gib=1e9), say=lambda _: None)
    assert not (folder / "tumor_1" / "viewer" / "index.html").exists()
    assert not list(folder.rglob("*.jpg.*")) + list(folder.rglob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"geometry": None}, "geometry"),
        ({"slide_score": float("nan")}, "slide_score"),
        ({"case_id": "other"}, "of another slide"),
        ({"heatmap_limits": [1]}, "heatmap_limits"),
    ],
)
def test_a_damaged_slide_is_set_aside_and_the_others_are_shown(folder, changes, wanted):
    change(folder / "tumor_1" / "slide.json", **changes)
    read = ScreenedFolder.read(folder)
    assert list(read.slides) == ["normal_1"]
    ((case, reason), _) = read.set_aside
    assert case == "tumor_1"
    assert wanted in reason
    assert "run `screen` again" in reason


def test_files_that_lead_out_of_the_folder_are_not_read(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "tumor_1" / "slide.json").unlink()
    (folder / "tumor_1" / "slide.json").symlink_to(tmp_path / "secret.json")
    read = ScreenedFolder.read(folder)
    assert "leads out of the folder" in read.set_aside[0][1]
    for case in ("..", "../screened/normal_1", "."):
        with pytest.raises(CaseError, match="leads out"):
            read.file(case, "report.html")


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "x_level0,y_level0,score,percentile,reconstruction,norm\n1,2,x,4,5,6\n",
     "x_level0,y_level0,score,percentile,reconstruction,norm\n1,2,inf,4,5,6\n"],
)  # fmt: skip
def test_scores_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(CaseError, match=r"scores\.csv"):
        read_top_tiles(tmp_path / "scores.csv", 5, Limits())


def test_a_damaged_heat_map_is_an_error_of_its_slide(folder, composed, library):
    (folder / "tumor_1" / "heatmap.tif").write_bytes(b"II*\0damaged")
    read = ScreenedFolder.read(folder)
    outcome = write_viewers(read, SlideFiles([composed]), ViewSpec(), say=lambda _: None)
    assert outcome.slides == ["normal_1"]
    assert "heatmap.tif: cannot be read" in outcome.failures["tumor_1"]


def test_what_is_no_screened_folder_ends_with_4(tmp_path, run_command, folder):
    for place in (tmp_path / "none", tmp_path):
        outcome = run_command("view", place, "--no-browser")
        assert outcome.code == 4
        assert "no slides.csv" in outcome.err
    (folder / "failures.csv").write_text("a,b\n")
    outcome = run_command("view", folder, "--files")
    assert outcome.code == 4
    assert "failures.csv" in outcome.err
