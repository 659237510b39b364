"""Stain normalization: one matrix per slide, every slide shown in the same target colors.

Fit per slide, never per tile: a tile may hold one stain only, or none at all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_prep.color import (
    Bytes,
    ColorHistogram,
    Floats,
    lab_to_rgb,
    rgb_to_lab,
    weighted_percentile,
)
from data_prep.vahadane import (
    macenko_matrix,
    remap_stains,
    sparse_concentrations,
    stain_angle,
    vahadane_matrix,
)
from esad_med.base.config import Spec
from esad_med.base.errors import SlideError

Method = Literal["vahadane", "staintools", "macenko", "reinhard", "none"]
T = TypeVar("T", bound="_Plain")


class StainSpec(Spec):
    """How stains are found and shown."""

    method: Method = Field(
        default="vahadane",
        description="vahadane (ours, all pixels of a histogram), staintools (the reference, with"
        " spams), macenko, reinhard (LAB mean and deviation), none.",
    )
    dictionary_lambda: float = Field(
        default=0.1, gt=0, le=1, description="Sparsity while the stain matrix is learned."
    )
    concentration_lambda: float = Field(
        default=0.01, ge=0, le=1, description="Sparsity of the concentrations of each pixel."
    )
    luminosity: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="A pixel is tissue where CIE L is below 100 times this.",
    )
    fit_tiles: int = Field(
        default=1000,
        ge=1,
        description="Tiles of a slide that are looked at, spread evenly over it.",
    )
    min_tissue_pixels: int = Field(
        default=10_000, ge=1, description="Fewer tissue pixels than this give no stain matrix."
    )
    min_angle: float = Field(
        default=3.0, gt=0, lt=90, description="Stains closer than this, in degrees, count as one."
    )


class _Plain:
    """A frozen dataclass of values and arrays that goes to plain values and back, exactly."""

    def __post_init__(self) -> None:
        for name, shape in _SHAPES.items():
            try:
                array = np.array(getattr(self, name), dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: expected numbers of shape {shape}") from error
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name}: found {array.shape}, expected finite numbers {shape}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; floats survive the round trip exactly."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """Build from what `to_dict` gave; ValueError where a value is missing or impossible."""
        names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        if set(values) != names:
            raise ValueError(f"found keys {sorted(values)}, expected {sorted(names)}")
        return cls(**values)


_SHAPES = {"matrix": (2, 3), "max_concentration": (2,), "lab_mean": (3,), "lab_std": (3,)}


@dataclass(frozen=True, eq=False)
class StainTarget(_Plain):
    """The colors every slide is shown in.

    Attributes:
        name: where it comes from.
        matrix: (2, 3), rows of unit length, hematoxylin first.
        max_concentration: (2,), 99th percentile of each stain's concentration in tissue.
        lab_mean: (3,) of tissue, CIE LAB.
        lab_std: (3,) of tissue, CIE LAB.
    """

    name: str
    matrix: Floats
    max_concentration: Floats
    lab_mean: Floats
    lab_std: Floats

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.name, str):
            raise ValueError("name: expected a text")
        lengths = np.linalg.norm(self.matrix, axis=1)
        if self.matrix.min() < 0 or not np.allclose(lengths, 1, atol=1e-3):
            raise ValueError("matrix: expected two non-negative rows of unit length")
        if self.max_concentration.min() <= 0 or self.lab_std.min() <= 0:
            raise ValueError("max_concentration, lab_std: expected positive numbers")


@dataclass(frozen=True, eq=False)
class Stain(_Plain):
    """What was found on one slide; see `StainTarget`. Zeros where the method needs no such value.

    Attributes:
        method: how it was found, which is also how it must be applied.
        matrix: (2, 3).
        max_concentration: (2,).
        lab_mean: (3,).
        lab_std: (3,).
        pixels: tissue pixels that were counted.
    """

    method: Method
    matrix: Floats
    max_concentration: Floats
    lab_mean: Floats
    lab_std: Floats
    pixels: int


def fit_indices(count: int, spec: StainSpec) -> npt.NDArray[np.int64]:
    """Which of ``count`` tiles to look at: at most ``fit_tiles``, spread evenly, ascending."""
    wanted = min(count, spec.fit_tiles)
    return np.floor((np.arange(wanted) + 0.5) * count / max(wanted, 1)).astype(np.int64)


def fit_stain(images: Iterable[Bytes], spec: StainSpec, *, name: str) -> Stain:
    """Find a slide's stains on its tissue pixels; the same pixels give the same stains.

    Args:
        images: arrays (..., h, w, 3) uint8; left as they are.
        spec: the method and its parameters.
        name: the slide, for messages.

    Raises:
        SlideError: too little tissue, or colors that do not hold two stains (constant, gray,
            one stain only).
        ConfigError: method ``staintools`` without the extra ``reference``.
    """
    if spec.method == "none":
        nothing = [np.zeros(shape) for shape in _SHAPES.values()]
        return Stain("none", nothing[0], nothing[1], nothing[2], nothing[3], pixels=0)
    if spec.method == "staintools":
        images = list(images)
    histogram = ColorHistogram.of(images, luminosity=spec.luminosity)
    return stain_of_histogram(histogram, spec, name=name, images=images)


def stain_of_histogram(
    histogram: ColorHistogram, spec: StainSpec, *, name: str, images: Iterable[Bytes] = ()
) -> Stain:
    """`fit_stain` where the pixels were counted before; histograms of workers add up with ``+``.

    ``images`` are needed by method ``staintools`` only.
    """
    if histogram.pixels < spec.min_tissue_pixels:
        raise SlideError(
            f"{name}: {histogram.pixels} tissue pixels (CIE L below {100 * spec.luminosity:g}),"
            f" expected at least {spec.min_tissue_pixels} for a stain; is the slide empty? Lower"
            " stain.min_tissue_pixels or use --stain none"
        )
    mean, deviation = _lab_moments(histogram)
    matrix, top = np.zeros((2, 3)), np.zeros(2)
    if spec.method == "reinhard":
        if deviation.min() < 1e-3:
            raise SlideError(f"{name}: tissue of one color only; use --stain none")
    else:
        matrix, top = _fit_matrix(histogram, spec, name, images)
    return Stain(spec.method, matrix, top, mean, deviation, histogram.pixels)


def normalize_stain(tiles: Bytes, stain: Stain, target: StainTarget, spec: StainSpec) -> Bytes:
    """Show tiles in the target's colors.

    Concentrations are scaled so that their 99th percentiles on tissue meet the target's; Reinhard
    maps mean and deviation of each LAB channel.

    Args:
        tiles: (..., 3) uint8, left as they are.
        stain: what `fit_stain` found on their slide.
        target: the colors to show.
        spec: the spec of `fit_stain`.

    Returns:
        uint8 of the same shape.
    """
    if stain.method != spec.method:
        raise ValueError(f"stain was fitted by {stain.method}, asked for {spec.method}")
    if spec.method == "none":
        return tiles.copy()
    if spec.method == "reinhard":
        lab = (rgb_to_lab(tiles) - stain.lab_mean) * (target.lab_std / stain.lab_std)
        return lab_to_rgb(lab + target.lab_mean)
    scale = target.max_concentration / stain.max_concentration
    return remap_by_spec(tiles, stain.matrix, scale, target.matrix, spec)


def remap_by_spec(
    tiles: Bytes, matrix: Floats, scale: Floats, target: Floats, spec: StainSpec
) -> Bytes:
    """Concentrations under ``matrix``, times ``scale`` (2,), shown with the stains ``target``."""
    if spec.method == "staintools":
        from data_prep.reference import remap_staintools

        return remap_staintools(tiles, matrix, scale, target, penalty=spec.concentration_lambda)
    return remap_stains(tiles, matrix, scale, target, penalty=spec.concentration_lambda)


def _fit_matrix(
    histogram: ColorHistogram, spec: StainSpec, name: str, images: Iterable[Bytes]
) -> tuple[Floats, Floats]:
    """The stain matrix and the 99th percentiles of its concentrations, checked."""
    if spec.method == "staintools":
        from data_prep.reference import staintools_matrix

        matrix: Floats | None = staintools_matrix(
            images, penalty=spec.dictionary_lambda, share=spec.luminosity
        )
    elif spec.method == "macenko":
        matrix = macenko_matrix(histogram)
    else:
        matrix = vahadane_matrix(histogram, penalty=spec.dictionary_lambda)
    found = "one stain" if matrix is None else f"stains {stain_angle(matrix):.1f} degrees apart"
    if matrix is not None and stain_angle(matrix) >= spec.min_angle:
        codes = sparse_concentrations(histogram.mean_od(), matrix, spec.concentration_lambda)
        top = np.array([weighted_percentile(c, histogram.counts, 99) for c in codes.T])
        if top.min() > 1e-3:
            return matrix, top
        found = "one stain that no pixel uses"
    raise SlideError(
        f"{name}: degenerate stain matrix, {found}, expected two at least {spec.min_angle:g}"
        " degrees apart (constant, gray or single-stain tissue?); use --stain reinhard or none"
    )


def _lab_moments(histogram: ColorHistogram) -> tuple[Floats, Floats]:
    lab = rgb_to_lab(histogram.mean_rgb())
    share = histogram.counts[:, None] / histogram.pixels
    mean = (share * lab).sum(axis=0)
    return mean, np.sqrt((share * (lab - mean) ** 2).sum(axis=0))
