"""Residual maps lie over the part of the radiograph that they belong to."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.xray import decode_xray
from esad_med.base.limits import Limits
from esad_med.outputs.residuals import write_residual


def written(folder, residual, **options):
    path = folder / "map.nii.gz"
    write_residual(path, residual, **({"spacing_mm": None, "crop_share": 0.75} | options))
    return path


@given(
    rows=st.integers(64, 3000),
    columns=st.integers(64, 3000),
    share=st.floats(0.1, 1),
    down=st.floats(0.05, 1),
    across=st.floats(0.05, 1),
)
def test_the_maps_corners_are_the_crops_corners_in_mm(
    tmp_path_factory, rows, columns, share, down, across
):
    path = written(
        tmp_path_factory.mktemp("map"),
        np.zeros((8, 8), np.float32),
        shape=(rows, columns),
        crop_share=share,
        spacing_mm=(down, across),
    )
    affine = nib.load(path).affine
    corners = affine @ np.array([[-0.5, -0.5, 0, 1], [7.5, 7.5, 0, 1]]).T  # of pixels' outsides
    left, top = columns * (1 - share) / 2, rows * (1 - share) / 2
    expected = [
        [-(left - 0.5) * across, -(columns - left - 0.5) * across],
        [0, 0],
        [-(top - 0.5) * down, -(rows - top - 0.5) * down],
    ]
    np.testing.assert_allclose(corners[:3], expected, rtol=1e-4, atol=1e-3)


def test_a_map_reads_back_upright_and_in_its_values(tmp_path):
    residual = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    residual[3, 50] = 5  # near the top, on the picture's right: the patient's left
    path = written(tmp_path, residual, shape=(1024, 900), spacing_mm=(0.2, 0.1))
    xray = decode_xray(path.read_bytes(), limits=Limits())
    assert np.unravel_index(xray.pixels.argmax(), (64, 64)) == (3, 50)
    stretched = (residual - residual.min()) / (residual.max() - residual.min())
    np.testing.assert_allclose(xray.pixels, stretched, atol=1e-6)
    image = nib.load(path)
    np.testing.assert_array_equal(image.get_fdata()[:, :, 0].T, residual)
    assert nib.aff2axcodes(image.affine)[:2] == ("L", "I")
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header.get_zooms()[:2] == pytest.approx((900 * 0.75 / 64 * 0.1, 12 * 0.2))


def test_without_a_spacing_a_unit_is_a_pixel(tmp_path):
    path = written(tmp_path, np.eye(64, dtype=np.float32), shape=(1024, 1024))
    image = nib.load(path)
    assert image.header.get_zooms()[:2] == (12, 12)
    assert image.header.get_xyzt_units()[0] == "unknown"
    center = image.affine @ [31.5, 31.5, 0, 1]
    np.testing.assert_allclose(center[[0, 2]], -511.5)  # the middle of the radiograph


def test_equal_maps_are_equal_files_and_name_no_one(tmp_path):
    one = written(tmp_path, np.eye(64, dtype=np.float32), shape=(100, 100)).read_bytes()
    path = tmp_path / "other"
    path.mkdir()
    two = written(path, np.eye(64, dtype=np.float32), shape=(100, 100)).read_bytes()
    assert one == two
