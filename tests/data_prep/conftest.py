"""Tiny slides written without loss, so that their pixels can be compared one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

MakeSlide = Callable[..., Path]


def draw_tissue(width: int, height: int, *, seed: int = 0) -> np.ndarray:
    """A glass ground with a block of pink noise in its middle, (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 244, np.uint8)
    top, left = height // 4, width // 4
    block = rng.integers((180, 110, 150), (230, 180, 210), (height // 2, width // 2, 3))
    picture[top : top + height // 2, left : left + width // 2] = block
    return picture


@pytest.fixture
def make_slide(tmp_path: Path) -> MakeSlide:
    """Write a tiled, lossless, flat pyramid; `levels` are the downsamples after level 0."""

    def make(
        rgb: np.ndarray | None = None,
        *,
        name: str = "slide.tif",
        mpp: float | tuple[float, float] | None = 0.5,
        levels: tuple[int, ...] = (2, 4),
        damage: tuple[int, ...] = (),
        **options: Any,
    ) -> Path:
        path = tmp_path / name
        rgb = draw_tissue(1024, 768) if rgb is None else rgb
        if mpp is not None:
            x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
            options |= {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"} | options
        with tifffile.TiffWriter(path) as writer:
            for downsample in (1, *levels):
                writer.write(
                    rgb[::downsample, ::downsample], subfiletype=int(downsample > 1), **options
                )
        if damage:
            _damage_tiles(path, damage)
        return path

    return make


def _damage_tiles(path: Path, numbers: tuple[int, ...]) -> None:
    """Overwrite the compressed bytes of these tiles of level 0."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        places = [(page.dataoffsets[i], page.databytecounts[i]) for i in numbers]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\xff" * count)
