"""Coordinates as CLAM and TRIDENT read them."""

import h5py
import numpy as np
import pytest

from esad_med.outputs.exchange import nominal_magnification, write_coordinates_h5

XY = np.array([[0, 256], [512, 256], [768, 1024]])


def write(path, **changes):
    settings = {
        "patch_size": 64,
        "patch_level": 2,
        "patch_size_level0": 256.0,
        "slide_size": (4096, 2048),
        "level_size": (1024, 512),
        "slide_mpp": 0.243,
        "name": "s07",
    }
    write_coordinates_h5(path, XY, **(settings | changes))
    with h5py.File(path) as file:
        return file["coords"][:], dict(file["coords"].attrs)


def test_clam_reads_the_field_at_its_level(tmp_path):
    coords, attributes = write(tmp_path / "s07.h5")
    assert coords.dtype == np.int64
    assert (coords == XY).all()
    assert (attributes["patch_size"], attributes["patch_level"]) == (64, 2)
    assert attributes["downsample"].tolist() == [4.0, 4.0]
    assert attributes["level_dim"].tolist() == [1024, 512]
    assert attributes["name"] == "s07"


def test_trident_reads_the_same_field_by_magnification(tmp_path):
    _, attributes = write(tmp_path / "s07.h5")
    assert (attributes["level0_magnification"], attributes["target_magnification"]) == (40, 10)
    assert attributes["level0_magnification"].dtype.kind == "i"
    assert (attributes["level0_width"], attributes["level0_height"]) == (4096, 2048)
    assert attributes["patch_size_level0"] == 256


@pytest.mark.parametrize(("patch_size", "edge"), [(129, 129.0), (67, 268.04), (64, 256.0)])
def test_magnifications_and_sizes_agree(tmp_path, patch_size, edge):
    _, found = write(tmp_path / "s.h5", patch_size=patch_size, patch_size_level0=edge, tile_px=64)
    field = found["patch_size"] * found["level0_magnification"] / found["target_magnification"]
    assert field == pytest.approx(edge, abs=0.01)
    assert found["tile_px"] == 64


def test_no_tiles_is_an_empty_table(tmp_path):
    write_coordinates_h5(
        tmp_path / "e.h5",
        np.empty((0, 2), dtype=np.int64),
        patch_size=64,
        patch_level=0,
        patch_size_level0=64,
        slide_size=(9, 9),
        level_size=(9, 9),
        slide_mpp=1.0,
        name="e",
    )
    with h5py.File(tmp_path / "e.h5") as file:
        assert file["coords"].shape == (0, 2)


@pytest.mark.parametrize(
    ("mpp", "magnification"), [(0.12, 80), (0.243, 40), (0.5, 20), (1.0, 10), (2.0, 5), (8.0, 2.5)]
)
def test_nominal_magnification(mpp, magnification):
    assert nominal_magnification(mpp) == magnification
