"""`esad-med export`: a detector, reference samples, and how its pictures are read."""

from pathlib import Path

import numpy as np

from data_prep.xray import read_xray
from data_prep.xray_chain import XraySpec
from esad_med.base.config import build_spec
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.limits import Limits
from esad_med.base.store import SampleStore
from esad_med.method.detector import Detector
from esad_med.outputs.export import Export, Format, export_detector
from esad_med.outputs.export_bundle import PictureReader, is_of_radiographs, read_picture
from pipelines.chest_xray import chain_of

_MOST = 64  # reference samples


def export(
    path: Path, out: Path, *, format: Format, reference: Path | None, overwrite: bool
) -> Export:
    """Export the detector at ``path``; see `export_detector`.

    Args:
        path: a detector's folder.
        out: the new folder.
        format: what is made.
        reference: a store whose samples are compared on, up to 64 of all its parts.
        overwrite: replace an export that is there.

    Raises:
        ModelError: no usable detector, a store that does not fit it, or an export that scores
            otherwise.
        StoreError: a damaged store.
        CaseError: a store with fewer than two samples.
        ConfigError: the format does not fit, a package is missing, or ``out`` is something else.
    """
    detector = Detector.load(path, device="cpu")
    if out.resolve().is_relative_to(path.resolve()):
        raise ConfigError(f"{out}: lies inside the detector's folder; choose another --out")
    samples, name = None, "composed"
    if reference is not None:
        store = SampleStore(reference)
        detector.check_store(store)
        if len(store) < 2:
            raise CaseError(f"{reference}: holds fewer than two samples; name a larger store")
        chosen = np.unique(np.linspace(0, len(store) - 1, _MOST).round().astype(int))
        samples, name = np.ascontiguousarray(store.samples[chosen]), f"store {store.digest}"
    return export_detector(
        detector,
        out,
        format=format,
        reference=samples,
        reference_name=name,
        read=picture_reader(detector),
        overwrite=overwrite,
    )


def picture_reader(detector: Detector) -> PictureReader:
    """How a file becomes a sample of this detector: a radiograph by our chain, a tile as it is."""
    if is_of_radiographs(detector.contract):
        spec = build_spec(XraySpec, detector.contract.preparation["xray"], source="contract")
        chain = chain_of(spec)
        return lambda path: chain(read_xray(path, limits=Limits()).pixels)
    return lambda path: read_picture(path, channels=detector.input.sample_shape[-1])
