"""Embeddings in place of pictures: what a store of them is, and how tiles become them."""

from collections.abc import Mapping, Sequence
from typing import Any

from esad_med.base.errors import ModelError
from esad_med.method.encoder import Encoder
from esad_med.method.encoder_identity import VALUE_RANGE, EncoderIdentity


def sample_form(shape: Sequence[int], encoder: Encoder | None) -> dict[str, Any]:
    """Shape and type of a store's samples: pictures of a shape, or their embeddings."""
    if encoder is None:
        return {"sample_shape": tuple(shape), "dtype": "uint8"}
    return {"sample_shape": (encoder.dim,), "dtype": "float32"}


def embedding_facts(identity: EncoderIdentity | None) -> Mapping[str, Any]:
    """What ``store.json`` says of embeddings over what it says of their pictures."""
    if identity is None:
        return {}
    return {
        "kind": "embeddings",
        "value_range": list(VALUE_RANGE),
        "encoder": identity.model_dump(mode="json"),
    }


def input_form(
    size_px: int, encoder: Encoder | None, *, trained_px: int, channels: int
) -> dict[str, Any]:
    """What `Detector.check_input` is told of pictures, or of their embeddings.

    Args:
        size_px: edge of the pictures that a detector is to be fed.
        encoder: what makes embeddings of them, or None.
        trained_px: edge of those it was trained on.
        channels: of a picture.

    Raises:
        ModelError: embeddings of pictures of another size.
    """
    if encoder is None:
        return {"channels": channels, "size": (size_px, size_px), "value_range": (0.0, 255.0)}
    if size_px != trained_px:
        raise ModelError(
            f"pictures of {size_px} pixels, this detector expects embeddings of pictures of"
            f" {trained_px}; cut samples of the trained size"
        )
    own = {"channels": encoder.dim, "size": None, "value_range": VALUE_RANGE}
    return {**own, "encoder": encoder.identity}
