"""From a float radiograph to a sample, as one MONAI chain; the reader as a MONAI `ImageReader`."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_prep.xray import Floats, Xray, read_xray
from data_prep.xray_checks import chest_likeness
from esad_med.base.config import Spec
from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits

VALUE_RANGE = (0.0, 255.0)


class XraySpec(Spec):
    """How a radiograph becomes a sample; the detector keeps it."""

    crop_share: float = Field(
        0.75, gt=0, le=1, description="Central part of each side that is kept; 768 of NIH's 1024."
    )
    size_px: int = Field(64, ge=16, le=1024, description="Edge of a sample in pixels.")
    min_side_px: int = Field(64, ge=16, description="Smaller images are refused.")
    max_aspect: float = Field(2.0, ge=1, description="Longer side by shorter; above is refused.")
    negative_below: float = Field(
        -0.25,
        ge=-1,
        le=1,
        description="Pictures less like a chest are refused as negatives; -1: none.",
    )

    def check_shape(self, rows: int, columns: int) -> None:
        """Refuse images that are too small or too long to be a chest.

        Raises:
            ImageError: with the size.
        """
        short, long = sorted((rows, columns))
        if short < self.min_side_px:
            raise ImageError(
                f"{columns}x{rows} pixels, expected at least {self.min_side_px} a side"
                " (xray.min_side_px)"
            )
        if long > self.max_aspect * short:
            raise ImageError(
                f"{columns}x{rows} pixels, expected sides of at most {self.max_aspect:g}:1"
                " (xray.max_aspect); not one chest image"
            )

    def check_polarity(self, pixels: Floats) -> None:
        """Refuse a picture that is lit like a negative (`chest_likeness`).

        Raises:
            ImageError: with the likeness.
        """
        likeness = chest_likeness(pixels)
        if likeness < self.negative_below:
            raise ImageError(
                f"probably inverted: chest likeness {likeness:.2f}, expected at least"
                f" {self.negative_below:g} (xray.negative_below); its photometric interpretation"
                " may be wrong"
            )


Preparation = Callable[[Floats], npt.NDArray[np.uint8]]


def xray_chain(spec: XraySpec) -> Preparation:
    """The MONAI chain from (h, w) float32 in 0 ... 1 to (size, size, 1) uint8, for every use.

    The central `crop_share` of each side by itself, as NIH's square pictures were made of any
    shape; then the mean over areas, which is free of aliasing; then 0 to 255.
    """
    from monai.transforms import (
        CastToType,
        CenterScaleCrop,
        Compose,
        EnsureChannelFirst,
        Lambda,
        Resize,
        ScaleIntensityRange,
        ToNumpy,
    )

    low, high = VALUE_RANGE
    return _as_preparation(
        Compose(
            [
                EnsureChannelFirst(channel_dim="no_channel"),  # (1, h, w)
                CenterScaleCrop(roi_scale=spec.crop_share),
                Resize(spatial_size=(spec.size_px, spec.size_px), mode="area"),
                ScaleIntensityRange(a_min=0, a_max=1, b_min=low, b_max=high, clip=True),
                ToNumpy(),
                Lambda(_round_last),  # (size, size, 1)
                CastToType(dtype=np.uint8),
            ]
        )
    )


def _as_preparation(chain: Any) -> Preparation:
    def prepare(pixels: Floats) -> npt.NDArray[np.uint8]:
        return np.asarray(chain(pixels), dtype=np.uint8)

    return prepare


def _round_last(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """To whole numbers, channel last."""
    return np.rint(np.moveaxis(picture, 0, -1))


@cache
def xray_reader() -> type[Any]:
    """The class `XrayReader`: `read_xray` as MONAI knows readers.

    ``LoadImaged(keys="image", reader=xray_reader())`` gives the array of `read_xray`, (h, w), not
    MONAI's usual (w, h). Where it cannot read a file MONAI tries its other readers and reports all
    of their errors.
    """
    from monai.data import ImageReader
    from monai.data.utils import is_supported_format
    from monai.utils.enums import MetaKeys, SpaceKeys

    class XrayReader(ImageReader):  # type: ignore[misc] # MONAI has no type information
        """Radiographs of any format as float32 (h, w), upright, bones bright, 0 to 1."""

        def __init__(self, limits: Limits | None = None, **_: Any) -> None:
            super().__init__()
            self.limits = limits or Limits()

        def verify_suffix(self, filename: Sequence[Path | str] | Path | str) -> bool:
            names = [filename] if isinstance(filename, str | Path) else list(filename)
            bare = all(not Path(name).suffix for name in names)
            known = ["png", "jpg", "jpeg", "dcm", "dicom", "nii", "nii.gz"]
            return bare or bool(is_supported_format(filename, known))

        def read(self, data: Sequence[Path | str] | Path | str, **_: Any) -> Any:
            if isinstance(data, str | Path):
                return read_xray(Path(data), limits=self.limits)
            return [read_xray(Path(name), limits=self.limits) for name in data]

        def get_data(self, img: Xray | Sequence[Xray]) -> tuple[Floats, dict[str, Any]]:
            images = [img] if isinstance(img, Xray) else list(img)
            arrays = [image.pixels for image in images]
            one = len(arrays) == 1  # MONAI hands over a tuple of one name
            array = arrays[0] if one else np.stack(arrays)
            channel = float("nan") if one else 0
            header = images[0].header
            meta = {
                MetaKeys.SPATIAL_SHAPE: np.asarray(images[0].pixels.shape),
                MetaKeys.ORIGINAL_CHANNEL_DIM: channel,
                MetaKeys.AFFINE: np.diag([*(header.spacing_mm or (1.0, 1.0)), 1.0, 1.0]),
                MetaKeys.SPACE: SpaceKeys.LPS,
                "view": header.view,
            }
            return array, meta

    return XrayReader
