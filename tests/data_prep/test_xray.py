"""PNG and JPEG radiographs as float images; which reader a file goes to is told by its content."""

import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image
from xray_files import (
    draw,
    make_dicom,
    make_jpeg,
    make_nifti,
    make_png,
    make_png_by_hand,
    png_chunk,
    read,
    show_header,
)

from data_prep.xray import looks_like_image, read_xray, read_xray_header
from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits

PIXELS = draw(96, height=80)
EXPECTED = PIXELS / np.float32(255)


def refusal(data, **limits):
    with pytest.raises(ImageError) as caught:
        read(data, **limits)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_every_mode_of_a_gray_png_reads_alike(mode):
    shown = read(make_png(PIXELS, mode))
    assert shown.dtype == np.float32
    np.testing.assert_allclose(shown, EXPECTED, atol=1e-6)


def test_sixteen_bits_are_kept():
    pixels = draw(bits=16)
    shown = read(make_png(pixels))
    np.testing.assert_array_equal(shown, (pixels / 65535).astype(np.float32))
    assert len(np.unique(shown)) > 1000
    np.testing.assert_allclose(read(make_png(PIXELS.astype(np.uint16) * 257)), EXPECTED, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_are_stretched_to_the_same_range(bits):
    levels = PIXELS >> (8 - bits)
    rows = [
        b"\0" + bytes(np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()))
        for row in levels
    ]
    data = make_png_by_hand(96, 80, zlib.compress(b"".join(rows)), bits=bits)
    np.testing.assert_allclose(read(data), levels / (2**bits - 1), atol=1e-6)


def test_what_is_transparent_is_black():
    rgba = np.dstack([PIXELS] * 3 + [np.full_like(PIXELS, 255)])
    rgba[:, :10, 3] = 0
    shown = read(make_png(rgba))
    assert (shown[:, :10] == 0).all()
    np.testing.assert_allclose(shown[:, 10:], EXPECTED[:, 10:], atol=1e-6)
    data = make_png(PIXELS)
    keyed = data[:33] + png_chunk(b"tRNS", b"\0\xff") + data[33:]  # 255 is transparent
    assert read(keyed).max() < 1
    deep = make_png(PIXELS.astype(np.uint16) * 257)
    keyed = deep[:33] + png_chunk(b"tRNS", b"\xff\xff") + deep[33:]
    np.testing.assert_allclose(read(keyed), np.where(PIXELS == 255, 0, EXPECTED), atol=1e-6)


def test_a_jpeg_reads_alike_within_its_loss_and_is_turned_by_its_exif():
    assert np.abs(read(make_jpeg(PIXELS)) - EXPECTED).mean() < 0.01
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned = read(make_jpeg(np.rot90(PIXELS), exif=exif))
    assert np.abs(turned - EXPECTED).mean() < 0.01


def test_colored_and_black_and_white_pictures_are_refused():
    rng = np.random.default_rng(0)
    color = rng.integers(0, 255, (80, 80, 3), dtype=np.uint8)
    assert "color picture" in refusal(make_png(color))
    assert "color picture" in refusal(make_jpeg(color))
    assert "black and white" in refusal(make_png(PIXELS, "1"))
    cmyk = io.BytesIO()
    Image.fromarray(color).convert("CMYK").save(cmyk, "JPEG")
    assert "pixel mode CMYK" in refusal(cmyk.getvalue())


def test_a_picture_of_one_value_is_refused_in_every_format():
    flat = np.full((80, 80), 7, np.uint8)
    for data in (
        make_png(flat),
        make_jpeg(flat),
        make_dicom(flat),
        make_nifti(flat[:, :, None], np.eye(4)),
    ):
        assert "same value everywhere" in refusal(data)


def test_a_cut_or_damaged_picture_is_refused():
    for data in (make_png(PIXELS), make_jpeg(PIXELS)):
        for cut in range(1, len(data) - 20, len(data) // 25):
            assert "\n" not in refusal(data[:cut])
    assert "not a PNG" in refusal(b"BM" + bytes(100))
    assert "not a PNG" in refusal(b"GIF89a" + bytes(100))


def test_pictures_beyond_the_limits_are_refused_by_their_headers():
    assert "limits.megapixels" in refusal(make_png(PIXELS), megapixels=0.005)
    assert "limits.megapixels" in refusal(make_jpeg(PIXELS), megapixels=0.005)


def test_two_headers_that_disagree_are_refused():
    data, other = make_png(PIXELS), make_png(draw(64))
    assert "two sizes" in refusal(data[:33] + other[8:33] + data[33:])


def test_content_counts_and_not_the_name(tmp_path):
    path = tmp_path / "Secret^Sam.dcm"
    for data, kind in (
        (make_png(PIXELS), "PNG"),
        (make_jpeg(PIXELS), "JPEG"),
        (make_dicom(PIXELS), "DICOM"),
        (make_nifti(PIXELS.T[:, :, None]), "NIfTI"),
        (make_nifti(PIXELS.T[:, :, None], packed=True), "NIfTI"),
    ):
        path.write_bytes(data)
        xray = read_xray(path)
        assert xray.header.kind == kind
        assert xray.pixels.shape == (xray.header.rows, xray.header.columns) == (80, 96)
        assert read_xray_header(path) == xray.header
        assert np.abs(xray.pixels - EXPECTED).mean() < 0.01
    path.write_bytes(b"nothing of that kind")
    with pytest.raises(ImageError) as caught:
        read_xray(path)
    assert "Secret" not in str(caught.value)


def test_a_dicom_file_with_the_preamble_of_a_picture_is_dicom():
    data = b"\x89PNG\r\n\x1a\n" + make_dicom(PIXELS)[8:]
    assert show_header(data).kind == "DICOM"


def test_a_file_is_read_within_the_limits_that_are_given(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(make_png(PIXELS))
    with pytest.raises(ImageError, match="file_mib"):
        read_xray(path, limits=Limits(file_mib=0.001))
    with pytest.raises(ImageError, match="megapixels"):
        read_xray_header(path, limits=Limits(megapixels=0.001))


def test_images_are_found_by_suffix_or_content(tmp_path):
    def there(name, data=b""):
        (tmp_path / name).write_bytes(data)
        return looks_like_image(tmp_path / name)

    assert all(there(name) for name in ("a.png", "a.JPG", "a.dcm", "a.nii", "a.nii.gz", "a.DICOM"))
    assert there("bare", make_dicom(PIXELS))
    assert there("bare", make_png(PIXELS))
    assert there("bare.txt", make_jpeg(PIXELS))
    assert there("bare", make_nifti(PIXELS[:, :, None], packed=True))
    assert not there("bare", b"text")
    assert not there("a.csv", b"path\n")
    assert not there("DICOMDIR", make_dicom(PIXELS))
    os.mkfifo(tmp_path / "pipe")
    assert not looks_like_image(tmp_path / "pipe")
    assert not looks_like_image(tmp_path)


@pytest.mark.data
def test_nihs_own_pngs_are_read_gray_and_rgba_alike(data_root):
    modes = set()
    for path in sorted((data_root / "nih_cxr" / "png1024").glob("*.png")):
        with Image.open(path) as image:
            modes.add(image.mode)
            plain = np.asarray(image.convert("L"))
        shown = read_xray(path).pixels
        np.testing.assert_array_equal(shown, plain / np.float32(255))
        twin = data_root / "nih_cxr" / "jpeg1024" / f"{path.stem}.jpg"
        if twin.exists():
            assert np.abs(read_xray(twin).pixels - shown).mean() < 0.02
    assert modes == {"L", "RGBA"}


@pytest.mark.data
def test_a_png_wrapped_as_dicom_reads_exactly_as_the_png(data_root):
    for path in sorted((data_root / "nih_cxr" / "png1024").glob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        inverted = make_dicom(255 - pixels, PhotometricInterpretation="MONOCHROME1")
        shown = read_xray(path).pixels
        np.testing.assert_array_equal(read(make_dicom(pixels)), shown)
        np.testing.assert_allclose(read(inverted), shown, atol=1e-6)
