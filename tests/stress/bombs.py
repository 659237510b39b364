"""Files of few bytes that ask for gigabytes, minutes or endless depth: (reader, name, content)."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tiff_files import (
    COUNTS,
    DESCRIPTION,
    OFFSETS,
    SUBFILE,
    TILE_HEIGHT,
    TILE_WIDTH,
    good_slide,
    jpeg_tile,
    slide_tags,
    tiff,
)
from xray_bombs import (
    SMALL,
    codestream_bombs,
    deflated,
    dicom_bombs,
    picture_bombs,
    zeros,
)
from xray_files import make_dicom, make_png_by_hand

Bomb = tuple[str, str, bytes]


def slide_bombs() -> Iterator[Bomb]:
    """TIFFs; the first has 308 bytes and claims 100,000 x 100,000 pixels."""
    claim = tiff([(slide_tags(100_000, 100_000), [b""])])
    yield "slide", "claim.tif", claim.ljust(308, b"\0")
    many = 391 * 391
    sparse = {OFFSETS: [0] * many, COUNTS: [0] * many}
    yield "slide", "sparse.tif", tiff([(slide_tags(100_000, 100_000) | sparse, [])])
    huge = slide_tags(60_000, 60_000, 60_000 // 16 * 16) | {TILE_WIDTH: 59_984, TILE_HEIGHT: 59_984}
    yield "slide", "tiles.tif", tiff([(huge, [jpeg_tile(4096)] * 4)])
    again = good_slide()
    yield "slide", "loop.tif", tiff([(slide_tags(), [jpeg_tile()] * 4)], last=_first(again))
    small = slide_tags(256, 256, **{f"t{SUBFILE}": 1})
    yield "slide", "levels.tif", tiff([(small, [jpeg_tile()])] * 2000)
    far = struct.pack("<HHI4s", DESCRIPTION, 2, 0xFFFFFFF0, bytes(4))
    at = _first(again) + 2
    yield "slide", "tag.tif", again[:at] + far + again[at + 12 :]


def _first(data: bytes) -> int:
    return struct.unpack("<I", data[4:8])[0]


def annotation_bombs() -> Iterator[Bomb]:
    """XML and GeoJSON."""
    names = [f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "lol"}">' for n in range(12)]
    yield "annotation", "laughs.xml", f"<!DOCTYPE x [{''.join(names)}]><x>&a11;</x>".encode()
    block = f'<!DOCTYPE x [<!ENTITY a "{"x" * 100_000}">]><x>{"&a;" * 30_000}</x>'
    yield "annotation", "quadratic.xml", block.encode()
    yield "annotation", "depth.xml", b"<a>" * 100_000 + b"</a>" * 100_000
    yield "annotation", "external.xml", b'<!DOCTYPE x [<!ENTITY a SYSTEM "/dev/zero">]><x>&a;</x>'
    yield "annotation", "depth.geojson", b"[" * 100_000 + b"]" * 100_000
    yield "annotation", "objects.geojson", b'{"features":' * 100_000 + b"1" + b"}" * 100_000
    yield "annotation", "points.geojson", b'{"features": [' + b"[]," * 10_500_000 + b"[]]}"
    yield "annotation", "claim.png", make_png_by_hand(30_000, 30_000, zlib.compress(bytes(1000)))
    many = 118 * 118
    mask = slide_tags(30_000, 30_000) | {OFFSETS: [0] * many, COUNTS: [0] * many}
    yield "annotation", "claim.tif", tiff([(mask, [])])
    noise = np.indices((4800, 6000)).sum(0) % 2
    rows = b"".join(b"\0" + np.packbits(row.astype(np.uint8)).tobytes() for row in noise)
    checkered = make_png_by_hand(6000, 4800, zlib.compress(rows), bits=1)
    yield "annotation", "corners.png", checkered


def text_bombs() -> Iterator[Bomb]:
    """YAML, CSV and lists."""
    laughs = "\n".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'lol'] * 10)}]" for n in range(10)
    )
    yield "config", "laughs.yaml", laughs.encode()
    yield "config", "depth.yaml", b"a: " + b"[" * 100_000 + b"]" * 100_000
    yield "config", "blocks.yaml", b"".join(b" " * n + b"a:\n" for n in range(700))
    yield "config", "large.yaml", b"a: 1\n" * 1_000_000
    yield "config", "itself.yaml", b"tiles: &a {b: *a}"
    yield "manifest", "line.csv", b"path\n" + b"x" * 200_000_000
    yield "manifest", "columns.csv", b"a," * 3_000_000 + b"\n"
    yield "manifest", "short_rows.csv", b"path" + b"," * 9000 + b"\n" + b"x\n" * 400_000
    yield "table", "table.csv.gz", zeros(2048, 31, b"path,label\n")
    yield "table", "lines.csv.gz", gzip.compress(b"path\n" + b"x\n" * 200_000_000, 1)
    yield "nih_table", "nih.csv.gz", zeros(2048, 31, b"Image Index,Finding Labels\n")
    yield "image_list", "test_list.txt.gz", zeros(2048, 31, b"a.png\n")
    yield "cell_list", "cells.txt.gz", zeros(2048, 31, b"normal_001.jpg\n")


def picture_files() -> Iterator[Bomb]:
    """Radiographs and tile pictures."""
    for make in (dicom_bombs, codestream_bombs, picture_bombs):
        for name, data in make():
            yield "xray", name, data
    yield "xray", "frames", make_dicom(SMALL, NumberOfFrames=1_000_000)
    for name, data in deflated(zeros(1024, -15)).items():
        yield "identity", f"identity {name}", data
    claim = make_png_by_hand(30_000, 30_000, zlib.compress(bytes(1000)), color=2)
    yield "crop", "crop.png", claim
    yield "target", "target.png", claim


def write_folders(folder: Path, store: Path, detector: Path) -> Iterator[tuple[str, Path]]:
    """Stores and detectors whose files claim more than they hold: (reader, folder)."""
    for name, change in FOLDERS.items():
        reader = "store" if name.startswith("store") else "detector"
        source = store if reader == "store" else detector
        copy = folder / name
        copy.mkdir()
        for file in source.iterdir():
            if file.is_file():
                (copy / file.name).write_bytes(file.read_bytes())
        change(copy)
        yield reader, copy


def _npy(shape: str, descr: str = "|u1") -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n"


def _samples(head: bytes):
    return lambda folder: (folder / "samples.npy").write_bytes(head + bytes(1000))


def _large_table(folder: Path) -> None:
    (folder / "samples.csv").write_bytes(b"sample_id" + b"," * 9000 + b"\n" + b"x\n" * 400_000)


def _resum(folder: Path) -> None:
    """Checksums that fit what was changed: an attacker writes them too."""
    from esad_med.base.runs import digest_file

    sums = {name: digest_file(folder / name) for name in ("weights.safetensors", "contract.json")}
    (folder / "checksums.json").write_text(json.dumps(sums))


def _weights(head: bytes):
    def change(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(head)
        _resum(folder)

    return change


def _contract(**changes):
    def change(folder: Path) -> None:
        values = json.loads((folder / "contract.json").read_text())
        for name, value in changes.items():
            group = values
            *parents, last = name.split("__")
            for parent in parents:
                group = group[parent]
            group[last] = value
        (folder / "contract.json").write_text(json.dumps(values))
        _resum(folder)

    return change


def _deep_contract(folder: Path) -> None:
    (folder / "contract.json").write_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    _resum(folder)


def _claimed_tensor(folder: Path) -> None:
    head = json.dumps({"a": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 8]}})
    _weights(struct.pack("<Q", len(head)) + head.encode() + bytes(8))(folder)


FOLDERS = {
    "store of 10 TB": _samples(_npy("(10000000000, 1000)")),
    "store of a negative shape": _samples(_npy("(-1, 64)")),
    "store of objects": _samples(_npy("(10,)", "|O")),
    "store of large items": _samples(_npy("(10,)", "|V2000000000")),
    "store of a long header": _samples(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{'descr'"),
    "store of short rows": _large_table,
    "detector of a header of 8 EB": _weights(struct.pack("<Q", 1 << 62) + b"{}"),
    "detector of a header of 90 MB": _weights(struct.pack("<Q", 90_000_000) + b"{}"),
    "detector of a tensor of 4 TB": _claimed_tensor,
    "detector of deep JSON": _deep_contract,
    "detector of a billion members": _contract(members=10**9),
    "detector of large pictures": _contract(input__sample_shape=[1 << 20, 1 << 20, 3]),
    "detector of many channels": _contract(network__channels=1 << 40),
}
