"""Residual maps as NIfTI, placed in the frame of the radiograph they belong to."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from esad_med.base.runs import atomic_file


def write_residual(
    path: Path,
    residual: npt.NDArray[np.float32],
    *,
    shape: tuple[int, int],
    crop_share: float,
    spacing_mm: tuple[float, float] | None,
) -> None:
    """Write a map as one plane: first axis to the patient's left, second to the feet.

    The center of the radiograph's upper left pixel is the origin, so that the map lies over the
    part that the network saw. Where the pixel spacing is unknown a unit is one pixel.

    Args:
        path: ends with ``.nii.gz``.
        residual: (s, s) squared residual, rows downwards.
        shape: (rows, columns) of the radiograph.
        crop_share: central part of each side that the map covers.
        spacing_mm: of the radiograph, between rows and between columns.

    Raises:
        ConfigError: the file cannot be written.
    """
    down, across = spacing_mm or (1.0, 1.0)
    steps = [edge * crop_share / size for edge, size in zip(shape, residual.shape, strict=True)]
    starts = [
        (edge * (1 - crop_share) + step - 1) / 2 for edge, step in zip(shape, steps, strict=True)
    ]
    affine = np.zeros((4, 4))  # to RAS: left is -x, feet are -z
    affine[0, 0], affine[0, 3] = -steps[1] * across, -starts[1] * across
    affine[2, 1], affine[2, 3] = -steps[0] * down, -starts[0] * down
    affine[1, 2] = affine[3, 3] = 1
    image = nib.Nifti1Image(np.asarray(residual.T[:, :, None], dtype=np.float32), affine)
    image.header.set_xyzt_units("mm" if spacing_mm else "unknown")
    image.header["descrip"] = b"ESAD squared residual; research use only"
    with atomic_file(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), mtime=0))
