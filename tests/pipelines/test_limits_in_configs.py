"""`limits` in the configs: every path obeys them, and no identity depends on them."""

import json

import pandas as pd
import pytest
from PIL import Image

from esad_med.base.config import load_config
from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits
from pipelines.importing import ImportConfig, read_crop
from pipelines.pathology import PathologyConfig, config_of

OTHER = ("--set", "limits.slide_levels=63", "--set", "limits.annotation_points=1000000")
TOO_SMALL = {
    "limits.slide_gigapixels=0.001": "2048x2048 pixels, expected at most 1 million",
    "limits.slide_pixels_per_byte=0.1": "limits.slide_pixels_per_byte",
    "limits.slide_levels=3": "4 levels, more than limits.slide_levels",
    "limits.slide_tile_megapixels=0.01": "limits.slide_tile_megapixels",
    "limits.annotation_points=20": "more than 20 elements",
    "limits.annotation_mib=0.0001": "limits.annotation_mib",
    "limits.nesting=2": "nested more than 2 deep",
}


@pytest.mark.parametrize("setting", TOO_SMALL)
def test_a_slide_or_annotation_beyond_a_limit_is_set_aside(
    setting, composed, run_command, tmp_path
):
    (tmp_path / "m.csv").write_text(
        f"path,annotation\n{composed}/tumor_1.tif,{composed}/tumor_1.xml\n"
    )
    outcome = run_command("tile", tmp_path / "m.csv", "--dry-run", "--set", setting)
    assert outcome.code == 3
    assert TOO_SMALL[setting] in outcome.err


def test_a_manifest_beyond_a_limit_is_refused(composed, run_command):
    for setting in ("limits.table_columns=2", "limits.table_mib=0.0001"):
        outcome = run_command("tile", composed / "manifest.csv", "--dry-run", "--set", setting)
        assert outcome.code == 4
        assert setting.partition("=")[0] in outcome.err


def test_a_picture_beyond_a_limit_is_refused(tmp_path):
    Image.new("RGB", (2000, 1000)).save(tmp_path / "a.png")
    config = load_config(ImportConfig, None, ["mpp=1", "limits.megapixels=1"])
    with pytest.raises(ImageError, match=r"a\.png: says it has 2000x1000.*limits\.megapixels"):
        read_crop(tmp_path / "a.png", 64, limits=config.limits)
    assert read_crop(tmp_path / "a.png", 64, limits=Limits()).shape == (64, 64, 3)


def test_other_limits_do_no_work_again(composed, trained, run_command, tmp_path):
    slide, store, out = composed / "normal_1.tif", tmp_path / "store", tmp_path / "out"
    tile = ("tile", slide, "--out", store, "--stain", "none")
    assert run_command(*tile).code == 0
    assert "complete already" in run_command(*tile, *OTHER).out
    screen = ("screen", "--detector", trained, "--out", out)
    assert run_command(*screen, slide).code == 0
    first = (out / "normal_1" / "slide.json").stat().st_mtime_ns
    assert run_command(*screen, slide, composed / "normal_2.tif", *OTHER).code == 0
    assert (out / "normal_1" / "slide.json").stat().st_mtime_ns == first
    assert run_command(*screen, composed / "normal_2.tif").code == 0
    assert set(pd.read_csv(out / "slides.csv")["case_id"]) == {"normal_1", "normal_2"}


def test_neither_store_nor_detector_holds_limits(store, trained):
    contract = json.loads((store / "store.json").read_text())
    learned = json.loads((trained / "contract.json").read_text())
    for kept in (contract["preparation"], learned["preparation"]):
        assert "limits" not in kept
        assert config_of(kept)[0].limits == PathologyConfig().limits
