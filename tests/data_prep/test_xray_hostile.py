"""Files made to do harm: small ones that unpack to gigabytes, and mutants of good ones.

They are read in a process that may take 1.5 GiB more than its imports; a bomb that went off would
end in a MemoryError or take its time.
"""

import gzip
import io
import logging
import os
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from xray_bombs import SMALL, codestream_bombs, dicom_bombs, picture_bombs, zeros
from xray_files import (
    SECRETS,
    make_png_by_hand,
    measure,
)
from xray_mutants import misstate, mutate, seeds

from data_prep.xray import decode_xray, read_xray_header
from esad_med.base.errors import EsadError, ImageError
from esad_med.base.limits import Limits


def test_bombs_are_refused_in_little_time_and_memory(tmp_path):
    tasks = []
    for make in (dicom_bombs, codestream_bombs, picture_bombs):
        for name, data in make():
            (tmp_path / name).write_bytes(data)
            tasks += [("picture", tmp_path / name), ("header", tmp_path / name)]
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        tasks += [("picture", path), ("header", path)]
    found = measure(tasks)
    assert len(found) == len(tasks)
    for (what, path), (seconds, said) in zip(tasks, found, strict=True):
        assert seconds < 4, (path.name, what, said)  # under 1 where nothing else runs
        assert said != "MemoryError", path.name
        assert what == "header" or said != "read", path.name  # pixels may not, a header may
        assert str(tmp_path) not in said


def test_tables_and_lists_that_unpack_to_gigabytes_are_refused_and_no_picture_goes_on(tmp_path):
    for name in ("table.csv.gz", "list.txt.gz"):
        (tmp_path / name).write_bytes(zeros(2048, 31, b"Image Index,Finding Labels\n"))
    (tmp_path / "wide.csv").write_bytes(b"a," * 3_000_000 + b"\n")
    rows = b"".join(b"\0" + bytes(row) for row in SMALL)
    (tmp_path / "x.png").write_bytes(make_png_by_hand(64, 64, zeros(2048, 15, rows)))
    tasks = ("table", "table.csv.gz"), ("table", "wide.csv"), ("list", "list.txt.gz")
    found = measure([(what, tmp_path / name) for what, name in (*tasks, ("picture", "x.png"))])
    assert max(seconds for seconds, _ in found) < 4
    assert "when unpacked" in found[0][1]
    assert "first line is longer" in found[1][1]
    assert "when unpacked" in found[2][1]
    assert found[3][1] == "read"  # as far as its pixels go


# --- mutants


def check(data):
    """Read a picture or a reason; anything else is an error of ours. Gives whether it was read."""
    try:
        xray = decode_xray(data, limits=Limits())
    except EsadError as error:
        said = str(error)
    else:
        said = ""
    assert not any(secret in said for secret in SECRETS), said
    if said:
        return False
    assert xray.pixels.dtype == np.float32
    assert xray.pixels.ndim == 2
    assert np.isfinite(xray.pixels).all()
    assert xray.pixels.min() >= 0
    assert xray.pixels.max() <= 1
    return True


@pytest.fixture
def quiet():
    logging.disable(logging.CRITICAL)  # nibabel and pydicom say what they see
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("number", range(20))
def test_mutants_are_read_or_refused_and_nothing_else(number, quiet, tmp_path):
    others = list(seeds())
    chance = random.Random(number)
    read = [check(mutate(others[number], others, chance)) for _ in range(150)]
    assert check(others[number])
    assert sum(read) < len(read)  # of a packed NIfTI none is read: its checksum is wrong
    path = tmp_path / "mutant"
    for _ in range(30):
        path.write_bytes(mutate(others[number], others, chance))
        with suppress(ImageError):
            read_xray_header(path)


def test_headers_that_contradict_themselves_are_read_or_refused_and_nothing_else(quiet):
    chance = random.Random(0)
    read = [check(misstate(chance)) for _ in range(600)]
    assert 0 < sum(read) < len(read)


@pytest.mark.parametrize(
    "start", [b"", b"DICM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x1f\x8b\x08"]
)
def test_noise_is_refused(start, quiet):
    chance = random.Random(1)
    for size in (0, 1, 3, 7, 8, 20, 140, 600):
        for lead in (b"", bytes(128)):
            with pytest.raises(EsadError):
                decode_xray(lead + start + chance.randbytes(size), limits=Limits())
    with pytest.raises(EsadError):
        decode_xray(gzip.compress(io.BytesIO(b"n+1\0" * 200).read()), limits=Limits())
