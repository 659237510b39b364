"""What a detector may be fed, and the checks that refuse everything else."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from esad_med.base.config import Spec, build_spec
from esad_med.base.errors import ConfigError, ModelError, StoreError
from esad_med.base.store import SampleStore
from esad_med.method.encoder_identity import EncoderIdentity, check_encoder
from esad_med.method.fusion import Fusion
from esad_med.method.networks import ImageNetworkSpec, VectorNetworkSpec
from esad_med.method.scaling import Scaling
from esad_med.method.terms import TermSpec

FORMAT = "esad-med detector 1"
MPP_TOLERANCE = 0.05
_STAIN_TOLERANCE = 1e-6
_MOST_VALUES = 3 * 4096**2  # of a sample: the largest tile that `tile` cuts


class InputContract(Spec):
    """The samples a detector was trained on.

    Attributes:
        modality: what is shown, such as "histology".
        sample_shape: (h, w, c) or (d,).
        dtype: of the stored samples, "uint8" or "float32".
        value_range: the smallest and largest value a sample may hold.
        mpp: nominal µm per pixel, None where the modality has none.
        stain: stain normalization by name, None where there is none.
        stain_target: its target as a plain mapping, None with no normalization.
        view_positions: of radiographs, such as ("PA",); None where the modality has none.
        crop_share: central part of each side of a radiograph that is seen; None likewise.
        encoder: what made embeddings of the pictures, None where there was none.
    """

    modality: str
    sample_shape: tuple[int, ...] = Field(min_length=1, max_length=3)
    dtype: Literal["uint8", "float32"]
    value_range: tuple[float, float]
    mpp: float | None = None
    stain: str | None = None
    stain_target: dict[str, Any] | None = None
    view_positions: tuple[str, ...] | None = None
    crop_share: float | None = None
    encoder: EncoderIdentity | None = None

    @field_validator("sample_shape")
    @classmethod
    def _is_possible(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) == 2 or min(shape) < 1 or math.prod(shape) > _MOST_VALUES:
            raise ValueError("expected (h, w, c) or (d,), and no more values than a picture has")
        return shape

    @field_validator("value_range")
    @classmethod
    def _is_rising(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not ends[0] < ends[1]:
            raise ValueError("expected a smaller and a larger value")
        return ends

    @property
    def is_image(self) -> bool:
        """Whether the samples are pictures rather than vectors."""
        return len(self.sample_shape) == 3

    @classmethod
    def of_store(cls, store: SampleStore) -> "InputContract":
        """What a store says about its samples.

        Raises:
            StoreError: it says what no store can, so its contract was edited.
        """
        contract, preparation = store.contract, store.contract.get("preparation") or {}
        try:
            values = {
                "modality": str(contract.get("modality") or contract.get("kind") or "unknown"),
                "sample_shape": store.samples.shape[1:],
                "dtype": str(store.samples.dtype),
                "value_range": store.value_range,
                "mpp": contract.get("mpp"),
                "stain": (preparation.get("stain") or {}).get("method"),
                "stain_target": preparation.get("stain_target"),
                "view_positions": contract.get("view_positions"),
                "crop_share": (preparation.get("xray") or {}).get("crop_share"),
                "encoder": contract.get("encoder"),
            }
            return build_spec(cls, values, source=f"{store.path}/store.json")
        except (AttributeError, ConfigError) as error:
            raise StoreError(
                f"{store.path}/store.json: was edited or damaged ({error}); make the store again"
            ) from error


class Calibration(Spec):
    """Where scores of held-out normals lie.

    Attributes:
        quantiles: ascending scores at equally spaced shares 0 ... 1 of the held-out normals, each
            scored only by members that were not trained on it.
        normals: how many held-out normals there were.
        held_out_by: what was kept whole when drawing them: patient, case, or sample.
        auc: of held-out labeled outliers against held-out normals by single members, mean over
            them, a cautious estimate of the ensemble's; None without outliers.
        outliers: how many held-out labeled outliers there were.
        residual_limits: median and 99th percentile of the residual maps' pixels on held-out
            normals, mean over members, so that maps of all pictures share a scale; None for
            vectors.
    """

    quantiles: tuple[float, ...] = Field(min_length=2)
    normals: int = Field(ge=1)
    held_out_by: str
    auc: float | None = None
    outliers: int = 0
    residual_limits: tuple[float, float] | None = None

    @field_validator("quantiles")
    @classmethod
    def _is_ascending(cls, quantiles: tuple[float, ...]) -> tuple[float, ...]:
        if any(b < a for a, b in pairwise(quantiles)):
            raise ValueError("expected ascending scores")
        return quantiles

    def percentile(self, score: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Share of held-out normals below each score, in 0 ... 100, interpolated."""
        shares = np.linspace(0, 100, len(self.quantiles))
        share = np.interp(score, np.asarray(self.quantiles), shares)
        return np.asarray(share, dtype=np.float32)

    def score_at(self, percentile: float) -> float:
        """The score that this percentage of held-out normals does not exceed."""
        shares = np.linspace(0, 100, len(self.quantiles))
        return float(np.interp(percentile, shares, self.quantiles))


class Training(Spec):
    """How a detector came about: enough to tell two of them apart and to train it again."""

    preset: str
    seed: int
    config: dict[str, Any]
    normals: int
    outliers: int
    data_digest: str
    rows_digest: str
    versions: dict[str, str]


class Contract(Spec):
    """``contract.json``: everything about a detector but its weights."""

    format: str = FORMAT
    input: InputContract
    network: Annotated[ImageNetworkSpec | VectorNetworkSpec, Field(discriminator="kind")]
    members: int = Field(ge=1)
    terms: TermSpec
    views: int = Field(1, ge=1, le=8)
    scaling: Scaling | None = None
    fusion: Fusion
    calibration: Calibration
    preparation: dict[str, Any]
    training: Training

    @model_validator(mode="after")
    def _fits(self) -> "Contract":
        """The parts speak of the same samples and members."""
        network, last = self.network, self.input.sample_shape[-1]
        if isinstance(network, VectorNetworkSpec):  # it may see each column twice, as two scalings
            fits = not self.input.is_image and network.features % last == 0
        else:
            fits = self.input.is_image and network.channels == last
        if not fits:
            raise ValueError("the network takes other samples than the input's")
        if self.fusion.mode == "standardized" and len(self.fusion.members) != self.members:
            raise ValueError("the fusion is of another number of members")
        return self


def check_input(
    own: InputContract,
    *,
    source: str,
    modality: str | None,
    channels: int | None,
    size: Sequence[int] | None,
    value_range: Sequence[float] | None,
    mpp: float | None,
    stain: str | None,
    stain_target: Mapping[str, Any] | None,
    view_positions: Sequence[str] | None = None,
    crop_share: float | None = None,
    encoder: EncoderIdentity | None = None,
) -> None:
    """Refuse input that differs from what a detector was trained on.

    Args:
        own: what the detector was trained on.
        source: what the input is, for the message.
        modality: such as "histology".
        channels: of a picture; for vectors the number of features.
        size: (width, height) of a picture in pixels, None for vectors.
        value_range: smallest and largest value.
        mpp: µm per pixel; within 5 % of the trained one.
        stain: name of the normalization; "none" and None are the same.
        stain_target: its target; compared number by number, the name aside.
        view_positions: of radiographs; any of the trained ones.
        crop_share: central part of each side of a radiograph.
        encoder: what makes embeddings of the pictures.

    Raises:
        ModelError: saying what was found, what the detector expects, and what to change.
    """
    check_encoder(encoder, own.encoder, source)
    _same(source, "modality", modality, own.modality, "use a detector of this modality")
    wanted = own.sample_shape
    _same(source, "channels", channels, wanted[-1], "prepare the samples as in training")
    expected = (wanted[1], wanted[0]) if own.is_image else None
    found = tuple(size) if size is not None else None
    _same(source, "size (width, height)", found, expected, "cut samples of the trained size")
    ranges = tuple(float(v) for v in value_range) if value_range is not None else None
    _same(source, "value range", ranges, own.value_range, "store samples in the trained range")
    _check_mpp(source, mpp, own.mpp)
    _check_stain(source, stain, stain_target, own)
    _check_views(source, view_positions, own.view_positions)
    _same(source, "crop share", crop_share, own.crop_share, "prepare the images as in training")


def _same(source: str, name: str, found: object, expected: object, remedy: str) -> None:
    if found != expected:
        raise ModelError(f"{source}: {name} {found}, this detector expects {expected}; {remedy}")


def _check_mpp(source: str, found: float | None, expected: float | None) -> None:
    if found is None and expected is None:
        return
    if found is None or expected is None or abs(found / expected - 1) > MPP_TOLERANCE + 1e-9:
        raise ModelError(
            f"{source}: {found} µm per pixel, this detector expects {expected} ± 5 %; tile at that"
            " resolution, or train a detector at this one"
        )


def _check_views(source: str, found: Sequence[str] | None, expected: Sequence[str] | None) -> None:
    if set(found or ()) <= set(expected or ()) and (found is None) == (expected is None):
        return
    shown = [", ".join(views) if views else "none" for views in (found, expected)]
    raise ModelError(
        f"{source}: views {shown[0]}, this detector was trained on {shown[1]}; use a detector of"
        " these views"
    )


def _check_stain(
    source: str, method: str | None, target: Mapping[str, Any] | None, own: InputContract
) -> None:
    found, expected = method or "none", own.stain or "none"
    remedy = "normalize with the detector's own method and target"
    _same(source, "stain normalization", found, expected, remedy)
    if expected == "none" or (own.stain_target is None and target is None):
        return
    if target is None or own.stain_target is None or not _equal_targets(target, own.stain_target):
        names = [(t or {}).get("name", "none") for t in (target, own.stain_target)]
        raise ModelError(
            f"{source}: stain target '{names[0]}' is not the one this detector was trained with,"
            f" '{names[1]}'; {remedy}"
        )


def _equal_targets(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    keys = (set(a) | set(b)) - {"name"}
    for key in keys:
        left, right = np.asarray(a.get(key)), np.asarray(b.get(key))
        numeric = left.dtype.kind in "fiu" and right.dtype.kind in "fiu"
        if left.shape != right.shape or not numeric:
            return False
        if not np.allclose(left, right, rtol=0, atol=_STAIN_TOLERANCE):
            return False
    return True
