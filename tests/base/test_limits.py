"""What may be decoded: refused before memory is spent, told with the setting that decides."""

import gzip
import io
import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits

SMALL = Limits(file_mib=1, unpacked_mib=1, megapixels=1)
MIB = 1 << 20


def deflate(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5), (-5, -5)])
def test_pictures_without_pixels_are_refused(size):
    with pytest.raises(ImageError, match="at least 1x1"):
        SMALL.check_pixels(*size)


def test_as_many_pixels_as_the_limit_says_are_taken_and_no_more():
    SMALL.check_pixels(1000, 1000)
    SMALL.check_pixels(1, 1_000_000)
    with pytest.raises(ImageError, match=r"1001x1000.*limits\.megapixels"):
        SMALL.check_pixels(1001, 1000)


def test_as_many_bytes_as_the_limit_says_are_taken_and_no_more():
    SMALL.check_unpacked(MIB)
    with pytest.raises(ImageError, match=r"limits\.unpacked_mib"):
        SMALL.check_unpacked(MIB + 1)


def test_a_file_of_the_limit_is_read_and_one_byte_more_is_not(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    assert SMALL.read_bytes(path) == b"x" * MIB
    path.write_bytes(b"x" * (MIB + 1))
    with pytest.raises(ImageError, match=r"larger than 1 MiB \(limits\.file_mib\)"):
        SMALL.read_bytes(path)


def test_what_is_no_file_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "empty").touch()
    for path, said in (
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "nothing", "cannot be read"),
        (tmp_path / "a\0b", "cannot be read"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "empty" / "below", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=said) as caught:
            SMALL.read_bytes(path)
        assert str(tmp_path) not in str(caught.value)


@given(st.binary(max_size=5000), st.integers(0, 6000))
def test_packed_data_comes_back_where_it_is_not_larger_than_asked(data, most):
    for unpack in (
        lambda most: SMALL.gunzip(io.BytesIO(gzip.compress(data)), most=most),
        lambda most: SMALL.inflate(deflate(data), most=most),
    ):
        assert unpack(None) == data
        if len(data) <= most:
            assert unpack(most) == data
        else:
            with pytest.raises(ImageError, match="when unpacked"):
                unpack(most)


def test_the_own_limit_holds_whatever_is_asked():
    large = bytes(MIB + 1)
    for most in (None, 10 * MIB):
        with pytest.raises(ImageError, match=r"1\.0 MiB.*limits\.unpacked_mib is 1"):
            SMALL.gunzip(io.BytesIO(gzip.compress(large)), most=most)
        with pytest.raises(ImageError, match=r"1\.0 MiB.*limits\.unpacked_mib is 1"):
            SMALL.inflate(deflate(large), most=most)
    assert SMALL.inflate(deflate(large[1:])) == large[1:]


def test_damaged_and_cut_data_is_refused():
    data = bytes(range(256)) * 20
    for bad in (b"no gzip", gzip.compress(data)[:-20], gzip.compress(data)[:-8] + bytes(8)):
        with pytest.raises(ImageError, match="damaged gzip"):
            SMALL.gunzip(io.BytesIO(bad))
    for bad in (b"\xff\xff\xff", deflate(data)[:-20]):
        with pytest.raises(ImageError, match="damaged deflated"):
            SMALL.inflate(bad)
