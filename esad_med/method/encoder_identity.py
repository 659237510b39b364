"""Which encoder made embeddings, how its input was prepared, and who refuses which."""

from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from esad_med.base.config import Spec
from esad_med.base.errors import ModelError

#: Embeddings have no range of their own: whatever a finite float32 can be.
VALUE_RANGE = (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))
MOST_DIMENSIONS = 65_536


class EncoderSpec(Spec):
    """How pictures are prepared for an encoder, and which of its outputs is the embedding."""

    name: str = Field("", max_length=200, description="Of the encoder; by default the file's stem.")
    size_px: int | None = Field(
        None, ge=8, le=4096, description="Edge of its input; null as the model says, else no change"
    )
    resize: Literal["bilinear", "bicubic"] = Field("bilinear", description="To that edge.")
    value_scale: float = Field(255.0, gt=0, description="Values 0 to 255 are divided by this.")
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406), min_length=1, max_length=4, description="Then taken away, by channel"
    )
    std: tuple[float, ...] = Field(
        (0.229, 0.224, 0.225), min_length=1, max_length=4, description="Then divided by."
    )
    layout: Literal["NCHW", "NHWC"] = Field("NCHW", description="Of the input's axes.")
    output: str = Field("", description="Name of the output; by default the first.")
    tokens: Literal["cls", "mean", "cls_mean"] = Field(
        "cls", description="Of an output (n, tokens, d): the first, the mean of the others, or both"
    )
    first_token: int = Field(1, ge=0, description="From which on tokens are of the picture.")
    batch_size: int = Field(32, ge=1, le=4096, description="Pictures at a time.")

    @field_validator("std")
    @classmethod
    def _is_positive(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if min(values) <= 0:
            raise ValueError("expected numbers above 0")
        return values

    def preparation(self) -> dict[str, Any]:
        """What decides an embedding, as plain values."""
        return self.model_dump(mode="json", exclude={"name", "batch_size"})


class EncoderIdentity(Spec):
    """Which encoder made embeddings; part of the contract of stores and detectors.

    Attributes:
        name: as people call it.
        dim: length of an embedding.
        digest: SHA-256 of the model's files and the preparation; None where only the name is known,
            as of feature files that somebody else's program wrote.
        model: SHA-256 of the model's files alone, None likewise.
        preparation: of `EncoderSpec.preparation`, None likewise.
    """

    name: str = Field(min_length=1, max_length=200)
    dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    model: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    preparation: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"'{self.name}' ({self.digest or 'known by its name only'}, {self.dim} values)"


def check_encoder(found: EncoderIdentity | None, own: EncoderIdentity | None, source: str) -> None:
    """Refuse embeddings of another encoder than a detector's, or pictures where it wants them.

    Digests decide; where one of the two has none, names must be equal.

    Raises:
        ModelError: naming both.
    """
    if own is None and found is None:
        return
    if own is None:
        raise ModelError(
            f"{source}: embeddings of encoder {found}, this detector was trained without an"
            " encoder; take pictures, or train a detector on a store made with the encoder"
        )
    if found is None:
        raise ModelError(
            f"{source}: no encoder, this detector was trained on embeddings of encoder {own}; make"
            " the store, or screen and triage, with --encoder and that model's file"
        )
    by_name = found.digest is None or own.digest is None
    same = found.name == own.name if by_name else found.digest == own.digest
    if same and found.dim == own.dim:
        return
    raise ModelError(
        f"{source}: encoder {found}, this detector was trained on embeddings of encoder"
        f" {own}{_why_other(found, own)}; give the detector's own encoder, or train on this one"
    )


def _why_other(found: EncoderIdentity, own: EncoderIdentity) -> str:
    """Where the model is the same, what of the preparation is not."""
    if found.model is None or found.model != own.model:
        return ""
    here, there = found.preparation or {}, own.preparation or {}
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    told = ", ".join(f"{name} {here.get(name)}, expected {there.get(name)}" for name in names)
    return f": the same model with another preparation ({told})"
