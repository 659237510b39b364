"""The README of an export: how to run it, how samples are prepared, and the model card."""

from typing import TYPE_CHECKING

from esad_med.outputs.export_bundle import is_of_radiographs
from esad_med.outputs.export_check import RULE

if TYPE_CHECKING:
    from esad_med.method.contract import Contract
    from esad_med.method.detector import Detector

INTENDED_USE = "Research. Not a medical device, not for diagnosis."
_RUN = {
    "model.onnx": """\
```python
import numpy as np
import onnxruntime  # pip install onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
samples = np.zeros({shape}, np.{dtype})  # yours, prepared as below
score, reconstruction, norm, percentile = session.run(None, {{"samples": samples}})
```""",
    "model.pt2": """\
```python
import torch  # as new as the one in export.json

model = torch.export.load("model.pt2").module()  # runs what is in the file: trust its maker
samples = torch.zeros({shape}, dtype=torch.{dtype})  # yours, prepared as below
with torch.no_grad():
    score, reconstruction, norm, percentile = model(samples)
```""",
}
_BUNDLE = """\
    pip install 'monai[fire,ignite]' torch pillow{more}
    python -m monai.bundle run --config_file DIR/configs/inference.json \\
        --meta_file DIR/configs/metadata.json --bundle_root DIR --dataset_dir PICTURES \\
        --output_dir RESULTS

`RESULTS/scores.csv` has a row per picture: its file, score, reconstruction, norm, percentile. Other
settings: `--device cuda`, `--batch_size 8`. MONAI runs what stands in a bundle's configuration, and
PyTorch what is in `models/model.pt2`: trust its maker."""


def program_readme(detector: "Detector", model: str) -> str:
    """Of an export as one file, ``model.onnx`` or ``model.pt2``."""
    own = detector.input
    run = _RUN[model].format(shape=(1, *own.sample_shape), dtype=own.dtype)
    return _join(detector, f"# An ESAD detector as `{model}`", run)


def bundle_readme(detector: "Detector") -> str:
    """Of a MONAI bundle."""
    own = detector.contract
    more = " esad-med" if is_of_radiographs(own) else ""
    reading = (
        "Radiographs are read and prepared by esad-med. Whether a picture is a chest in one of the"
        " views, or a negative, is not checked here, as `esad-med triage` does."
        if is_of_radiographs(own)
        else "Pictures are taken as they are: tiles of the size below, already at the resolution"
        " and in the stain that are named there."
    )
    return _join(
        detector, "# An ESAD detector as a MONAI bundle", _BUNDLE.format(more=more), reading
    )


def _join(detector: "Detector", title: str, *run: str) -> str:
    from esad_med.method.card import model_card

    card = model_card(detector.contract, digest=detector.digest)
    parts = [
        title,
        f"Intended use: {INTENDED_USE}",
        "## Run it",
        *run,
        "Higher scores are more anomalous; percentile is the share of held-out normals that score"
        " lower. Batches may have any size. Everything is computed in float32.",
        "## Prepare samples",
        _preparation(detector.contract),
        "## Agreement",
        "The export was run before it was written, and gave the detector's own scores on reference"
        f" samples (`export.json`): {RULE[0].lower()}{RULE[1:]}",
        card.replace("\n## ", "\n### ").replace("# ESAD detector", "## Model card", 1),
    ]
    return "\n\n".join(parts).rstrip() + "\n"


def _preparation(contract: "Contract") -> str:
    own = contract.input
    low, high = own.value_range
    values = f"{own.dtype} from {low:g} to {high:g}"
    if not own.is_image:
        return (
            f"Rows of {own.sample_shape[0]} numbers, {values}, columns in the order of training and"
            " in their own units: scaling is inside the model."
        )
    height, width, channels = own.sample_shape
    colors = {1: "gray", 3: "red, green, blue in this order"}.get(channels, f"{channels} channels")
    lines = [
        f"- {width} pixels wide, {height} high, channels last: (n, {height}, {width}, {channels})",
        f"- {colors}; {values}; nothing subtracted or divided, that is inside the model",
    ]
    if is_of_radiographs(contract):
        spec = contract.preparation["xray"]
        lines += [
            f"- frontal chest radiographs, {' or '.join(own.view_positions or ())}, upright, bones"
            " bright",
            f"- the central {spec['crop_share']:g} of each side, made {spec['size_px']} pixels a"
            " side by the mean over areas, rounded",
        ]
    elif own.mpp:
        lines.append(f"- {own.mpp:g} µm per pixel, ± 5 %")
    if own.stain and own.stain != "none":
        lines.append(
            f"- stains normalized by the method {own.stain}, per slide, to the target in"
            " `contract.json` (`input.stain_target`): a stain's color in optical density a row, and"
            " its 99th percentile of concentration"
        )
    return "\n".join(lines)
