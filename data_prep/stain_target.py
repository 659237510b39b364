"""The target of stain normalization: a published default, an image, or a stored file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.color import Bytes, Floats, rgb_to_lab, tissue_pixels
from data_prep.stain import StainSpec, StainTarget, fit_stain
from data_prep.vahadane import REFERENCE_MATRIX
from esad_med.base.errors import ImageError, SlideError
from esad_med.base.runs import read_json, write_json

MAX_IMAGE_PIXELS = 100_000_000
#: Of pictures of tissue; Pillow knows others, for some of which it runs programs.
PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
_KEYS = {"name", "matrix", "max_concentration", "lab_mean", "lab_std"}


def _published_target() -> StainTarget:
    """H&E of Macenko et al. 2009: HERef and maxCRef of their published code.

    The LAB values, for Reinhard, are not published with it. They follow from it: the mean and
    deviation over tissue (L < 80) whose two concentrations are independent and exponentially
    distributed with the published maxima as 99th percentiles, taken at 64 x 64 quantiles.
    """
    matrix = REFERENCE_MATRIX / np.linalg.norm(REFERENCE_MATRIX, axis=1, keepdims=True)
    top = np.array([1.9705, 1.0308])
    quantile = -np.log1p(-(np.arange(64) + 0.5) / 64) / np.log(100)  # 1 at the 99th percentile
    pairs = np.stack(np.meshgrid(quantile, quantile), axis=-1).reshape(-1, 2)
    rgb = np.rint(255 * np.exp(-(pairs * top) @ matrix)).astype(np.uint8)
    lab = rgb_to_lab(rgb[tissue_pixels(rgb, 0.8)])
    return StainTarget("Macenko 2009 HERef", matrix, top, lab.mean(axis=0), lab.std(axis=0))


#: What slides are shown in unless a target is given.
DEFAULT_TARGET = _published_target()


def target_from_image(image: Path | Bytes, spec: StainSpec) -> StainTarget:
    """The stains of a picture as the target.

    Method ``none`` and ``reinhard`` find no matrix; the target then keeps the default's.

    Args:
        image: a picture file, or (h, w, 3) uint8.
        spec: how stains are found; a target belongs to the method that found it.

    Raises:
        ImageError: not a readable RGB picture, or no two stains in it.
    """
    name = image.name if isinstance(image, Path) else "image"
    rgb = _read_rgb(image) if isinstance(image, Path) else image
    method = "reinhard" if spec.method == "none" else spec.method
    try:
        stain = fit_stain([rgb], spec.model_copy(update={"method": method}), name=name)
    except SlideError as error:
        raise ImageError(f"{error} (as the target of stain normalization)") from error
    matrix, top = stain.matrix, stain.max_concentration
    if method == "reinhard":
        matrix, top = DEFAULT_TARGET.matrix, DEFAULT_TARGET.max_concentration
    return StainTarget(name, matrix, top, stain.lab_mean, _positive(stain.lab_std))


def read_target(path: Path, spec: StainSpec | None = None) -> StainTarget:
    """Read a target: a ``.json`` that is or holds a stored one, or else a picture.

    A store's ``store.json`` and a detector's ``contract.json`` hold the target they were made
    with, and so can be named here; a folder stands for the one of these two that is in it.

    Raises:
        ImageError: nothing that can serve as a target.
    """
    for inside in ("store.json", "contract.json"):
        if path.is_dir() and (path / inside).exists():
            path = path / inside
    if path.suffix.lower() != ".json":
        return target_from_image(path, spec or StainSpec())
    found = _find_target(read_json(path, ImageError))
    if found is None:
        raise ImageError(f"{path}: holds no stain target, expected keys {', '.join(sorted(_KEYS))}")
    try:
        return StainTarget.from_dict(found)
    except ValueError as error:
        raise ImageError(f"{path}: not a stain target ({error})") from error


def write_target(path: Path, target: StainTarget) -> None:
    """Store a target so that `read_target` gives it back exactly."""
    write_json(path, target.to_dict())


def _find_target(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first mapping, outside in, that has the keys of a target."""
    level = [values]
    for _ in range(8):  # deeper than any contract
        for mapping in level:
            if set(mapping) >= _KEYS:
                return mapping
        level = [v for mapping in level for v in mapping.values() if isinstance(v, Mapping)]
    return None


def _read_rgb(path: Path) -> Bytes:
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_IMAGE_PIXELS:
                raise ImageError(
                    f"{path}: {width} x {height} pixels, expected at most {MAX_IMAGE_PIXELS:,};"
                    " cut a smaller region of tissue as the target"
                )
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; the target stain is an image or .json") from error
    except (
        UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise ImageError(f"{path}: not a readable image ({error})") from error


def _positive(deviation: Floats) -> Floats:
    return np.maximum(deviation, 1e-3)
