"""Every reader of the package as a function of a path, the way its pipeline calls it.

What is imported only when a reader runs is imported inside its function, so that a process that
tries slides does not wait for torch.
"""

import os
import signal
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

SLIDE_SIZE = (1000, 800)  # what annotations are read for


def slide(path: Path) -> None:
    """Open, overview, and some pixels of every level, damaged ones included."""
    from data_prep.slides import open_slide
    from data_prep.tiles import TileSpec, plan_tiles
    from data_prep.tissue import TissueSpec, find_tissue

    with open_slide(path) as opened:
        tissue = find_tissue(opened, TissueSpec())
        for level, (width, height) in enumerate(opened.level_sizes):
            opened.read_region((0, 0), level, (min(width, 256), min(height, 256)))
        plan_tiles(opened, tissue, TileSpec(mpp=1.0, size_px=64, stride_px=64))


def annotation(path: Path) -> None:
    from data_prep.annotations import read_annotation, tumor_fraction

    found = read_annotation(path, slide_size=SLIDE_SIZE)
    share = tumor_fraction(found, np.array([[0, 0], [200, 100]]), 64.0)
    assert np.isfinite(share).all()


def xray(path: Path) -> None:
    from data_prep.xray import read_xray

    pixels = read_xray(path).pixels
    assert pixels.ndim == 2
    assert np.isfinite(pixels).all()


def xray_header(path: Path) -> None:
    from data_prep.xray import read_xray_header

    read_xray_header(path)


def identity(path: Path) -> None:
    from pipelines.dicom_header import is_whole, read_identity, split_file

    syntax, data = split_file(path.read_bytes())
    is_whole(data, syntax)
    read_identity(data, syntax)


def manifest(path: Path) -> None:
    from esad_med.base.cases import read_manifest

    read_manifest(path)


def triage_manifest(path: Path) -> None:
    from pipelines.triage_files import find_candidates

    find_candidates([path], leave_out=path.parent / "out")


def table(path: Path) -> None:
    from esad_med.base.cases import read_table

    read_table(path)


def nih_table(path: Path) -> None:
    from data_prep.nih import read_nih_table

    read_nih_table(path)


def image_list(path: Path) -> None:
    from data_prep.nih import read_image_list

    read_image_list(f"test={path}")


def cell_list(path: Path) -> None:
    from data_prep.public import read_dpa_list

    read_dpa_list(path)


def config(path: Path) -> None:
    from esad_med.base.config import load_config
    from pipelines.pathology import PathologyConfig

    load_config(PathologyConfig, path)


def target(path: Path) -> None:
    from data_prep.stain_target import read_target

    read_target(path)


def crop(path: Path) -> None:
    from esad_med.base.limits import Limits
    from pipelines.importing import read_crop

    read_crop(path, 32, limits=Limits())


def store(path: Path) -> None:
    from esad_med.base.store import SampleStore

    opened = SampleStore(path)
    opened.verify()
    assert opened.value_range[0] < opened.value_range[1]


def detector(path: Path) -> None:
    from esad_med.method.detector import Detector

    loaded = Detector.load(path, device="cpu")
    samples = np.zeros((2, *loaded.input.sample_shape), loaded.input.dtype)
    assert np.isfinite(loaded.percentile(loaded.score(samples).score)).all()


def checkpoint(path: Path) -> None:
    from esad_med.method.checkpoints import load_checkpoint

    load_checkpoint(path, 0)


def journal(path: Path) -> None:
    from esad_med.base.runs import Journal

    Journal(path).is_done("case", "key")


# What is guarded against, to see that it is noticed.


def unlimited(path: Path) -> None:
    zlib.decompress(path.read_bytes())


def stuck(path: Path) -> None:
    while path:
        pass


def crashing(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def failing(path: Path) -> None:
    path.stat()[100]


READERS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (
        *(slide, annotation, xray, xray_header, identity, manifest, triage_manifest, table),
        *(nih_table, image_list, cell_list, config, target, crop, store, detector, checkpoint),
        *(journal, unlimited, stuck, crashing, failing),
    )
}
