"""The MONAI chain from a radiograph to a sample, and the reader as MONAI knows readers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import LoadImage, LoadImaged
from xray_files import draw, in_syntax, make_dicom, make_nifti, make_png

from data_prep.xray import read_xray
from data_prep.xray_chain import XraySpec, xray_chain, xray_reader
from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits

# MONAI makes all of its readers first; this one misses a codec that nobody asked for
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")

CHAIN = xray_chain(XraySpec())


def test_nihs_crop_and_resize_are_means_of_12_by_12():
    picture = np.random.default_rng(0).random((1024, 1024)).astype(np.float32)
    sample = CHAIN(picture)
    crop = picture[128:896, 128:896].astype(np.float64)
    means = crop.reshape(64, 12, 64, 12).mean(axis=(1, 3)) * 255
    assert sample.shape == (64, 64, 1)
    assert sample.dtype == np.uint8
    assert np.abs(sample[:, :, 0] - means).max() <= 0.5 + 1e-3


@given(st.integers(64, 300), st.integers(64, 300), st.integers(0, 255))
def test_a_picture_of_one_value_stays_one_whatever_its_size(rows, columns, value):
    sample = CHAIN(np.full((rows, columns), value / 255, np.float32))
    assert (sample == value).all()


@given(st.integers(64, 400), st.integers(64, 400), st.sampled_from([0.5, 0.75, 1.0]))
def test_the_crop_is_the_middle_of_each_side(rows, columns, share):
    outside = np.ones((rows, columns), dtype=np.float32)
    top, left = (int(np.floor(edge * (1 - share) / 2)) for edge in (rows, columns))
    outside[top : rows - top, left : columns - left] = 0
    sample = xray_chain(XraySpec(crop_share=share))(outside)
    assert sample[1:-1, 1:-1].max() == 0  # at most a pixel's rounding at the edges
    assert sample.mean() < 10


@pytest.mark.parametrize("edge", [512, 1024, 2048])
def test_a_fine_checkerboard_becomes_gray_and_not_a_pattern(edge):
    board = (np.indices((edge, edge)).sum(0) % 2).astype(np.float32)
    sample = CHAIN(board)
    assert sample.min() >= 127
    assert sample.max() <= 128


def test_stripes_too_fine_to_be_seen_leave_no_trace():
    x = np.arange(1000)
    for period in (2.1, 3.3, 5.7):
        stripes = (0.5 + 0.5 * np.sin(2 * np.pi * x / period))[None].repeat(1000, 0)
        assert CHAIN(stripes.astype(np.float32)).std() < 255 * 0.5 / np.sqrt(2) * 0.3


def test_values_run_from_0_to_255_and_do_not_wrap():
    picture = np.tile(np.linspace(-0.5, 1.5, 400, dtype=np.float32), (300, 1))
    row = CHAIN(picture)[0, :, 0].astype(int)
    assert (row.min(), row.max()) == (0, 255)
    assert (np.diff(row) >= 0).all()


def test_the_size_is_the_specs_and_a_picture_of_few_pixels_is_enlarged():
    sample = xray_chain(XraySpec(size_px=128))(draw(64) / np.float32(255))
    assert sample.shape == (128, 128, 1)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_small_and_long_images_are_refused_with_their_size(rows, columns):
    spec = XraySpec()
    short, long = sorted((rows, columns))
    if short >= 64 and long <= 2 * short:
        spec.check_shape(rows, columns)
    else:
        with pytest.raises(ImageError, match=rf"{columns}x{rows} pixels, .*\(xray\.m"):
            spec.check_shape(rows, columns)


def test_the_limits_of_shape_are_the_specs():
    XraySpec(min_side_px=16, max_aspect=4).check_shape(16, 64)
    with pytest.raises(ImageError, match="at least 128 a side"):
        XraySpec(min_side_px=128).check_shape(100, 200)


FILES = {
    "a.png": make_png(draw(96, height=80)),
    "deep.png": make_png(draw(96, bits=16, height=80)),
    "a.dcm": make_dicom(draw(96, bits=12, height=80), bits=12, PatientOrientation=["R", "F"]),
    "bare": in_syntax(draw(96, height=80), "implicit, no preamble"),
    "rle.dcm": in_syntax(draw(96, height=80), "RLE", PhotometricInterpretation="MONOCHROME1"),
    "a.nii.gz": make_nifti(draw(96, height=80).T[:, :, None], np.eye(4), packed=True),
    "a.nii": make_nifti(draw(96, height=80).T[:, :, None], np.diag([-1.0, -1, 1, 1])),
}


@pytest.mark.parametrize("name", FILES)
def test_monai_reads_the_same_array(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    expected = read_xray(path)
    assert expected.pixels.shape == (80, 96)
    array = LoadImage(reader=xray_reader(), image_only=True)(path)
    np.testing.assert_array_equal(np.asarray(array), expected.pixels)
    item = LoadImaged(keys="image", reader=xray_reader())({"image": str(path)})
    np.testing.assert_array_equal(np.asarray(item["image"]), expected.pixels)
    assert item["image"].meta["view"] == expected.header.view
    assert tuple(item["image"].meta["spatial_shape"]) == (80, 96)


def test_monai_reads_several_files_as_channels(tmp_path):
    for name in ("a.png", "rle.dcm"):
        (tmp_path / name).write_bytes(FILES[name])
    paths = [tmp_path / "a.png", tmp_path / "rle.dcm"]
    both = LoadImage(reader=xray_reader(), image_only=True)(paths)
    for channel, path in zip(both, paths, strict=True):
        np.testing.assert_array_equal(np.asarray(channel), read_xray(path).pixels)


def test_the_reader_keeps_the_limits_it_is_given(tmp_path):
    (tmp_path / "a.png").write_bytes(FILES["a.png"])
    reader = xray_reader()(limits=Limits(megapixels=0.001))
    with pytest.raises(ImageError, match="megapixels"):
        reader.read(tmp_path / "a.png")
    assert xray_reader() is xray_reader()


@pytest.mark.parametrize(
    ("name", "taken"),
    [("a.png", True), ("b.dcm", True), ("c.nii.gz", True), ("bare", True), ("d.svs", False)],
)
def test_the_reader_offers_itself_for_radiographs(name, taken):
    assert xray_reader()().verify_suffix(name) is taken
