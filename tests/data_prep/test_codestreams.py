"""The size of a compressed picture is told from its first bytes, as its decoder will see it."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless
from xray_files import make_dataset, make_jpeg

from data_prep.codestreams import picture_size, rle_sizes

PIXELS = np.random.default_rng(0).integers(0, 255, (70, 83), dtype=np.uint8)


def saved(kind, **options):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        saved("PNG"),
        saved("JPEG"),
        saved("JPEG", progressive=True, comment=b"\xff\xc0 no frame header"),
        saved("JPEG2000"),
        saved("JPEG2000", no_jp2=True),
        imagecodecs.jpegls_encode(PIXELS),
        imagecodecs.ljpeg_encode(PIXELS),
    ],
    ids=["PNG", "JPEG", "progressive", "JP2", "J2K", "JPEG-LS", "lossless JPEG"],
)
def test_the_size_is_told_from_the_first_bytes(data):
    assert picture_size(data) == (83, 70)
    assert all(picture_size(data[:cut]) in {None, (83, 70)} for cut in range(0, len(data), 7))


def test_fill_bytes_before_a_marker_are_passed_over():
    data = saved("JPEG")
    at = data.index(b"\xff\xc0")
    assert picture_size(data[:at] + b"\xff\xff" + data[at:]) == (83, 70)


def test_the_extent_of_jpeg_2000_is_less_its_offset():
    data = saved("JPEG2000", no_jp2=True)
    moved = data[:8] + struct.pack(">IIII", 183, 170, 100, 100) + data[24:]
    assert picture_size(moved) == (83, 70)


def test_a_picture_drawn_in_another_box_is_not_the_codestream():
    data, bare = saved("JPEG2000"), saved("JPEG2000", no_jp2=True)
    lie = bare[:8] + struct.pack(">II", 5, 5) + bare[16:60]
    box = struct.pack(">I4s", 8 + len(lie), b"xml ") + lie
    at = data.index(b"jp2c") - 4
    assert picture_size(data[:at] + box + data[at:]) == (83, 70)
    long = struct.pack(">I4sQ", 1, b"xml ", 16 + len(lie)) + lie
    assert picture_size(data[:at] + long + data[at:]) == (83, 70)


def test_pictures_of_thousands_of_components_say_no_size():
    data = saved("JPEG2000", no_jp2=True)
    assert picture_size(data[:40] + struct.pack(">H", 16384) + data[42:]) is None


@given(st.binary(max_size=80))
def test_no_bytes_make_it_fail(data):
    for start in (b"", b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ", b"\x89PNG\r\n\x1a\n"):
        size = picture_size(start + data)
        assert size is None or len(size) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rle_segments_are_counted_as_they_unpack(dtype):
    picture = (PIXELS // 64).astype(dtype)  # runs of both kinds
    ds = make_dataset(picture)
    ds.compress(RLELossless)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    sizes = rle_sizes(frame, most=picture.size + 1)
    assert len(sizes) == picture.itemsize
    assert all(size in {picture.size, picture.size + 1} for size in sizes)


def test_rle_is_counted_by_hand():
    head = struct.pack("<16I", 1, 64, *[0] * 14)
    # 3 literal bytes, a byte 5 times, nothing, a byte 128 times
    segment = b"\x02abc" + b"\xfcx" + b"\x80" + b"\x81y"
    assert rle_sizes(head + segment, most=1000) == [3 + 5 + 128]


def test_rle_is_counted_no_further_than_asked():
    head = struct.pack("<16I", 1, 64, *[0] * 14)
    assert rle_sizes(head + b"\x81y" * 1000, most=1000) == [1024]
    with pytest.raises(ValueError, match="more bytes than it could need"):
        rle_sizes(head + b"\x00y" * 2000, most=1000)
    with pytest.raises(ValueError, match="without meaning"):
        rle_sizes(head + b"\x80" * 20_000, most=30_000)


@pytest.mark.parametrize(
    "head",
    [
        (0, 64),
        (16, 64),
        (1, 0),
        (1, 10_000),
        (2, 70, 64),
        (2, 64, 10_000),
    ],
)
def test_rle_headers_that_point_outside_are_refused(head):
    with pytest.raises(ValueError, match="RLE frame"):
        rle_sizes(struct.pack("<16I", *head, *[0] * (16 - len(head))) + b"\0x" * 20, most=100)
    with pytest.raises(ValueError, match="without its header"):
        rle_sizes(b"\1" * 63, most=100)


def test_a_jpeg_without_a_frame_header_says_no_size():
    data = make_jpeg(PIXELS)
    assert picture_size(data[: data.index(b"\xff\xc0")] + b"\xff\xd9") is None
