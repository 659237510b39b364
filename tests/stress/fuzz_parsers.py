"""Coverage-guided fuzzing of one parser of ours: ``python fuzz_parsers.py PARSER SECONDS``.

Needs atheris. What a parser may raise is an error of ours; anything else ends the run, with the
input left in a file ``crash-...`` of the current folder.
"""

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Parser = Callable[[bytes], object]


def _by_path(name: str, read: Callable[[Path], object]) -> Parser:
    """A reader of paths as a parser of bytes; the file lies in memory where that can be."""
    shared = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None)
    path = Path(folder) / name

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return parse


def codestreams() -> Parser:
    """Sizes of compressed pictures, sums of PNG, runs of RLE."""
    from data_prep.codestreams import is_whole_png, picture_size, rle_sizes

    def parse(data: bytes) -> None:
        picture_size(data)
        is_whole_png(data)
        try:
            rle_sizes(data, most=4096)
        except ValueError:
            return  # its caller makes it an error of ours

    return parse


def dicom() -> Parser:
    """Header, values and display of a DICOM radiograph."""
    from data_prep.xray_dicom import parse_dicom
    from esad_med.base.limits import Limits

    limits = Limits(megapixels=1)
    return lambda data: parse_dicom(data, limits=limits).decode()


def identity() -> Parser:
    """What the node looks at before it keeps an image."""
    from pipelines.dicom_header import is_whole, read_identity, split_file

    def parse(data: bytes) -> None:
        syntax, rest = split_file(data)
        is_whole(rest, syntax)
        read_identity(rest, syntax)

    return parse


def nifti() -> Parser:
    """Header and values of a NIfTI plane."""
    from data_prep.xray_nifti import is_nifti, parse_nifti
    from esad_med.base.limits import Limits

    limits = Limits(megapixels=1)
    return lambda data: parse_nifti(data, limits=limits).decode() if is_nifti(data) else None


def slide_tags() -> Parser:
    """A TIFF's tags, and its index of JPEG tiles for direct reading."""
    from data_prep.direct import open_direct
    from data_prep.slide_header import check_tags
    from esad_med.base.limits import Limits

    def read(path: Path) -> None:
        check_tags(path, Limits())
        sizes = [(512, 512), (256, 256)]
        reader = open_direct(path, level_sizes=sizes, read_region=lambda *_: None)
        if reader is not None:
            for level in range(2):
                reader.read((0, 0), level, np.empty((64, 64, 3), np.uint8))
            reader.close()

    return _by_path("a.tif", read)


def resolution() -> Parser:
    """Micrometers per pixel out of a slide's properties."""
    from data_prep.slide_header import find_mpp

    names = ("openslide.mpp-x", "openslide.mpp-y", "tiff.XResolution", "tiff.YResolution")

    def parse(data: bytes) -> None:
        values = data.decode("latin-1").split("\n")
        found = dict(zip((*names, "tiff.ResolutionUnit"), values, strict=False))
        find_mpp("a.tif", found, given=None, otherwise=None)

    return parse


def _annotation(name: str) -> Parser:
    from data_prep.annotations import read_annotation

    return _by_path(name, lambda path: read_annotation(path, slide_size=(1000, 800)))


def asap() -> Parser:
    """ASAP XML."""
    return _annotation("a.xml")


def geojson() -> Parser:
    """GeoJSON and NCRF's JSON."""
    return _annotation("a.geojson")


def manifest() -> Parser:
    """CSV manifests."""
    from esad_med.base.cases import read_manifest

    return _by_path("m.csv", read_manifest)


def nih() -> Parser:
    """NIH's table."""
    from data_prep.nih import read_nih_table

    return _by_path("nih.csv", read_nih_table)


def cells() -> Parser:
    """The published lists of Camelyon16's cells."""
    from data_prep.public import read_dpa_list

    return _by_path("cells.txt", read_dpa_list)


def settings() -> Parser:
    """YAML settings."""
    from esad_med.base.config import load_config
    from pipelines.pathology import PathologyConfig

    return _by_path("c.yaml", lambda path: load_config(PathologyConfig, path))


def store() -> Parser:
    """The array of a store: its header against the file."""
    from good_files import write_store

    from esad_med.base.store import SampleStore

    folder = write_store(Path(tempfile.mkdtemp()) / "store")

    def parse(data: bytes) -> None:
        (folder / "samples.npy").write_bytes(data)
        SampleStore(folder)

    return parse


def rows() -> Parser:
    """The table of a store."""
    from good_files import write_store

    from esad_med.base.store import SampleStore

    folder = write_store(Path(tempfile.mkdtemp()) / "store")

    def parse(data: bytes) -> None:
        (folder / "samples.csv").write_bytes(data)
        SampleStore(folder)

    return parse


def contract() -> Parser:
    """A detector's contract."""
    from esad_med.base.config import build_spec
    from esad_med.base.errors import ModelError
    from esad_med.base.runs import read_json
    from esad_med.method.contract import Contract

    def read(path: Path) -> None:
        build_spec(Contract, read_json(path, ModelError), source="contract")

    return _by_path("contract.json", read)


def journal() -> Parser:
    """The journal of a run, whose last line a crash may have cut."""
    from esad_med.base.runs import Journal

    return _by_path("journal.jsonl", Journal)


PARSERS: dict[str, Callable[[], Parser]] = {
    make.__name__: make
    for make in (
        *(codestreams, dicom, identity, nifti, slide_tags, resolution, asap, geojson, manifest),
        *(nih, cells, settings, store, rows, contract, journal),
    )
}


def corpus(parser: str) -> Iterator[bytes]:
    """Good inputs to begin with."""
    from good_files import (
        ASAP,
        CELLS,
        GEOJSON,
        MANIFEST,
        NCRF,
        NIH,
        YAML,
        write_detector,
        write_store,
    )
    from tiff_files import good_slide
    from xray_files import draw, make_dicom, make_jpeg, make_nifti, make_png
    from xray_mutants import seeds

    small = draw(32)
    texts = {"asap": [ASAP], "geojson": [GEOJSON, NCRF], "nih": [NIH], "cells": [CELLS]}
    texts |= {"manifest": [MANIFEST.format("m.csv")], "settings": [YAML]}
    texts |= {"resolution": ["0.25\n0.25\n", "\n\n20000\n20000\ncentimeter"]}
    texts |= {"journal": ['{"case_id": "a", "key": "b"}\n{"case_id"']}
    yield from (text.encode() for text in texts.get(parser, []))
    if parser == "slide_tags":
        yield good_slide()
    elif parser == "codestreams":
        yield from (make_png(small), make_jpeg(small), b"\1\0\0\0\x40" + bytes(59) + b"\x81\0" * 9)
    elif parser in {"dicom", "identity"}:
        yield make_dicom(small)
        yield from (data for data in seeds() if data[128:132] == b"DICM")
    elif parser == "nifti":
        yield make_nifti(small[:, :, None], np.eye(4))
        yield make_nifti(small[:, :, None], np.eye(4), packed=True)
    elif parser in {"store", "rows"}:
        folder = write_store(Path(tempfile.mkdtemp()) / "store")
        yield (folder / ("samples.npy" if parser == "store" else "samples.csv")).read_bytes()
    elif parser == "contract":
        yield (write_detector(Path(tempfile.mkdtemp()) / "d") / "contract.json").read_bytes()


def main(parser: str, seconds: int) -> None:
    """Fuzz; libFuzzer ends the process, with 0 where nothing was found."""
    import atheris

    with atheris.instrument_imports(include=["data_prep", "esad_med", "pipelines"]):
        parse = PARSERS[parser]()
    from esad_med.base.errors import EsadError

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    def run(data: bytes) -> None:
        try:
            parse(data)
        except EsadError:
            return

    folder = Path(tempfile.mkdtemp(prefix="corpus-"))
    for number, data in enumerate(corpus(parser)):
        run(data)
        (folder / str(number)).write_bytes(data)
    limits = (f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=4096", "-max_len=20000")
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", str(folder)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "data_prep"))  # the makers of radiographs
    main(sys.argv[1], int(sys.argv[2]))
