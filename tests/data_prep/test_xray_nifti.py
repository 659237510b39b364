"""NIfTI radiographs come out upright, whichever way their affine places them."""

import gzip
import itertools
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xray_files import draw, make_nifti, read, show_header

from data_prep.xray_nifti import is_nifti
from esad_med.base.errors import ImageError

PIXELS = draw(90, height=80)  # (rows down, columns to the patient's left)
UPRIGHT = PIXELS / np.float32(255)


def refusal(data, **limits):
    with pytest.raises(ImageError) as caught:
        read(data, **limits)
    return str(caught.value)


def place(pixels, order, flips):
    """A frontal picture as (i, j, k) values with the affine that says where they lie.

    The picture's axes are left (rows run to it), down, and front; they are stored in an order, each
    forwards or backwards.
    """
    volume = pixels.T[:, :, None]  # left, down, front
    directions = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # in RAS
    steps = np.array([0.2, 0.4, 1.0])
    affine = np.eye(4)
    for stored, axis in enumerate(order):
        way = -1 if flips[stored] else 1
        affine[:3, stored] = directions[axis] * steps[axis] * way
    volume = volume.transpose(order)
    for stored, flip in enumerate(flips):
        volume = np.flip(volume, stored) if flip else volume
    return np.ascontiguousarray(volume), affine


ALL_WAYS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product([False, True], repeat=3))
)


@pytest.mark.parametrize(("order", "flips"), ALL_WAYS)
def test_all_48_ways_to_store_a_frontal_picture_come_out_equal(order, flips):
    data = make_nifti(*place(PIXELS, order, flips))
    np.testing.assert_array_equal(read(data), UPRIGHT)
    header = show_header(data)
    assert (header.rows, header.columns, header.view) == (80, 90, "")
    assert header.spacing_mm == pytest.approx((0.4, 0.2))


@given(st.sampled_from(ALL_WAYS), st.floats(-20, 20), st.integers(0, 2))
def test_a_picture_a_little_askew_comes_out_as_it_lies_nearest(way, degrees, axis):
    values, affine = place(PIXELS, *way)
    turn = np.eye(4)
    a, b = [k for k in range(3) if k != axis]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[[a, a, b, b], [a, b, a, b]] = cos, -sin, sin, cos
    np.testing.assert_array_equal(read(make_nifti(values, turn @ affine)), UPRIGHT)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("code", ["sform", "qform"])
def test_every_kind_of_nifti_reads_alike(version, packed, code):
    values, affine = place(PIXELS, (2, 0, 1), (True, False, True))
    data = make_nifti(values, affine, version=version)
    if code == "qform":
        kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
        image = kind(values, None)
        image.set_qform(affine, 1)
        data = image.to_bytes()
    if packed:
        data = gzip.compress(data)
    assert is_nifti(data)
    np.testing.assert_array_equal(read(data), UPRIGHT)


def test_big_endian_files_read_alike():
    values, affine = place(PIXELS.astype(np.int16), (0, 1, 2), (False,) * 3)
    image = nib.Nifti1Image(values, affine, nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(np.int16)
    data = image.to_bytes()
    assert data[:4] == struct.pack(">i", 348)
    np.testing.assert_allclose(read(data), UPRIGHT, atol=1e-6)


def test_a_file_that_says_no_orientation_is_taken_as_it_is_stored():
    data = make_nifti(PIXELS.T[:, :, None], None)
    assert nib.Nifti1Image.from_bytes(data).header["sform_code"] == 0
    np.testing.assert_array_equal(read(data), UPRIGHT)


def test_a_picture_from_front_to_back_is_lateral():
    affine = np.diag([1.0, 1, 1, 1])
    values = PIXELS.T[None]  # (1, front, up)
    assert show_header(make_nifti(values, affine)).view == "lateral"
    lateral = read(make_nifti(values, affine))
    np.testing.assert_array_equal(lateral, UPRIGHT[::-1, ::-1])  # head up, front to the left


@pytest.mark.parametrize("front", [1, -1])
@pytest.mark.parametrize("left", [1, -1])
def test_a_plane_without_head_and_feet_has_its_front_at_the_top(front, left):
    upright = PIXELS.T[::left, ::-front, None]  # (left or right, front or back, 1)
    affine = np.diag([-0.2 * left, 0.4 * front, 1, 1])
    np.testing.assert_array_equal(read(make_nifti(np.ascontiguousarray(upright), affine)), UPRIGHT)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_deeper_values_are_stretched_whatever_their_scaling(dtype):
    values = PIXELS.T[:, :, None].astype(dtype)
    np.testing.assert_allclose(read(make_nifti(values)), UPRIGHT, atol=1e-6)
    scaled = make_nifti(values, slope=(3.5, -100))
    np.testing.assert_allclose(read(scaled), UPRIGHT, atol=1e-5)


def test_a_display_range_is_followed():
    values = PIXELS.T[:, :, None].astype(np.int16)
    shown = read(make_nifti(values, cal_min=50, cal_max=200))
    np.testing.assert_allclose(shown, ((PIXELS - 50.0) / 150).clip(0, 1), atol=1e-6)
    for low, high in ((200, 50), (np.nan, 1), (0, np.inf)):  # no range: stretched
        odd = make_nifti(values, cal_min=low, cal_max=high)
        np.testing.assert_allclose(read(odd), UPRIGHT, atol=1e-6)


def test_what_is_no_number_is_black_and_does_not_disturb_the_stretch():
    values = PIXELS.T[:, :, None].astype(np.float32)
    values[:5, 0], values[5:9, 0] = np.nan, np.inf
    shown = read(make_nifti(values))
    assert (shown[0, :9] == 0).all()
    np.testing.assert_allclose(shown[1:], UPRIGHT[1:], atol=1e-6)
    assert "same value everywhere" in refusal(make_nifti(np.full((70, 70, 1), np.nan)))


def test_the_largest_floats_do_not_overflow():
    values = np.where(PIXELS.T[:, :, None] > 100, 3e38, -3e38).astype(np.float32)
    np.testing.assert_array_equal(read(make_nifti(values)), PIXELS > 100)
    wide = make_nifti(values.astype(np.float64) * 1e200)  # beyond float32: left out
    assert "same value everywhere" in refusal(wide)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((70, 70, 2)), "70 x 70 x 2 values, expected one plane"),
        (np.zeros((70, 1, 1)), "expected one plane"),
        (np.zeros((70, 1, 1, 70)), "expected one plane"),
        (np.zeros((70, 70, 1), dtype=np.complex64), "values of type complex64"),
        (np.zeros((70, 70, 1), dtype=[(c, "u1") for c in "RGB"]), "values of type"),
    ],
)
def test_what_is_no_gray_plane_is_refused(values, said):
    assert said in refusal(make_nifti(values, np.eye(4)))


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        ((3, 30000, 30000, 1), "limits.megapixels"),
        ((3, 80, 90, 0), "expected one plane"),
        ((3, 80, -90, 1), "expected one plane"),
        ((0, 80, 90, 1), "expected one plane"),
        ((9, 80, 90, 1), "expected one plane"),
        ((3, 8000, 7900, 1), "NIfTI"),
    ],
)
def test_wrong_sizes_are_refused(dims, said):
    data = make_nifti(PIXELS[:, :, None], np.eye(4))
    changed = data[:40] + struct.pack(f"<{len(dims)}h", *dims) + data[40 + 2 * len(dims) :]
    assert said in refusal(changed)


def test_a_cut_file_and_one_without_directions_are_refused():
    for packed in (False, True):
        data = make_nifti(*place(PIXELS, (0, 1, 2), (False,) * 3), packed=packed)
        for cut in range(1, len(data) - 10, len(data) // 30):
            refusal(data[:cut])
    rows = {"srow_x": [0, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]}
    flat = make_nifti(PIXELS[:, :, None], None, sform_code=1, **rows)
    assert "damaged NIfTI file" in refusal(flat)


def test_a_file_that_unpacks_to_much_more_than_its_header_says_is_refused():
    data = make_nifti(PIXELS[:, :, None], np.eye(4))
    read(gzip.compress(data + bytes(1 << 20)))
    assert "4.0 MiB when unpacked" in refusal(gzip.compress(data + bytes(5 << 20)))


def test_an_extension_does_not_matter():
    values, affine = place(PIXELS, (0, 1, 2), (False,) * 3)
    image = nib.Nifti1Image(values, affine)
    for code, content in (("comment", b"Secret^Sam"), (2, b"\x08\0\x05\0CS\x02\0AB" * 3)):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, content))
    np.testing.assert_array_equal(read(image.to_bytes()), UPRIGHT)
