"""Tile coordinates in the HDF5 layout that CLAM and TRIDENT read."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from esad_med.base.runs import atomic_file

# Nominal objective power below each level-0 resolution (µm per pixel), by TRIDENT's bounds.
_MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
_LOWEST_MAGNIFICATION = 2.5


def write_coordinates_h5(
    path: Path,
    xy_level0: npt.ArrayLike,
    *,
    patch_size: int,
    patch_level: int,
    patch_size_level0: float,
    slide_size: tuple[int, int],
    level_size: tuple[int, int],
    slide_mpp: float,
    name: str,
    overlap: int = 0,
    tile_px: int | None = None,
) -> None:
    """Write the top-left corners of tiles as dataset ``coords`` with both tools' attributes.

    CLAM reads ``patch_size`` pixels at ``patch_level``; TRIDENT reads ``patch_size`` pixels at
    ``target_magnification``. Both find the same field here, because the target magnification is
    that of the level. Where our tiles are resampled, ``tile_px`` says to what size.

    Args:
        path: the HDF5 file to write, atomically.
        xy_level0: (n, 2) corners in level-0 pixels; stored as int64.
        patch_size: edge of the field in pixels of ``patch_level`` (before resampling).
        patch_level: the pyramid level that is read.
        patch_size_level0: the same edge in level-0 pixels.
        slide_size: (width, height) at level 0.
        level_size: (width, height) of ``patch_level``.
        slide_mpp: µm per level-0 pixel; gives the nominal ``level0_magnification``.
        name: the case; CLAM and TRIDENT expect the slide's stem.
        overlap: pixels of ``patch_level`` that neighbors share, 0 or more.
        tile_px: edge of the tile after resampling, ``patch_size`` by default.

    Raises:
        ConfigError: the file cannot be written.
    """
    corners = np.asarray(xy_level0, dtype=np.int64).reshape(-1, 2)
    attributes = coordinate_attributes(
        patch_size=patch_size,
        patch_level=patch_level,
        patch_size_level0=patch_size_level0,
        slide_size=slide_size,
        level_size=level_size,
        slide_mpp=slide_mpp,
        name=name,
        overlap=overlap,
        tile_px=tile_px,
    )
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        dataset = file.create_dataset(
            "coords", data=corners, maxshape=(None, 2), chunks=(max(1, min(len(corners), 4096)), 2)
        )
        dataset.attrs.update(attributes)


def coordinate_attributes(
    *,
    patch_size: int,
    patch_level: int,
    patch_size_level0: float,
    slide_size: tuple[int, int],
    level_size: tuple[int, int],
    slide_mpp: float,
    name: str,
    overlap: int = 0,
    tile_px: int | None = None,
) -> dict[str, Any]:
    """The attributes of dataset ``coords``, see `write_coordinates_h5`."""
    magnification = nominal_magnification(slide_mpp)
    downsample = patch_size_level0 / patch_size
    return {
        "patch_size": int(patch_size),
        "patch_level": int(patch_level),
        "patch_size_level0": round(patch_size_level0),
        "downsample": np.array([downsample, downsample]),
        "downsampled_level_dim": np.array(level_size, dtype=np.int64),
        "level_dim": np.array(level_size, dtype=np.int64),
        "level0_magnification": _whole_if_close(magnification),
        "target_magnification": _whole_if_close(magnification / downsample),
        "overlap": int(overlap),
        "level0_width": int(slide_size[0]),
        "level0_height": int(slide_size[1]),
        "name": name,
        "save_path": ".",
        "savetodir": ".",
        "level0_mpp": float(slide_mpp),
        "tile_px": int(tile_px or patch_size),
    }


def nominal_magnification(mpp: float) -> float:
    """The objective power that a level-0 resolution in µm per pixel stands for, as TRIDENT does."""
    for bound, magnification in _MAGNIFICATIONS:
        if mpp < bound:
            return float(magnification)
    return _LOWEST_MAGNIFICATION


def _whole_if_close(value: float) -> int | float:
    """40.0 as 40, which readers of either tool compare with; other values as they are."""
    return round(value) if abs(value - round(value)) < 1e-6 else value
