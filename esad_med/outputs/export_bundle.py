"""A detector of pictures as a MONAI bundle: ``python -m monai.bundle run`` scores a folder.

DIR/configs/metadata.json    what goes in and comes out, in MONAI's words
DIR/configs/inference.json   the workflow
DIR/models/model.pt2         the whole detector as a program of `torch.export`
DIR/docs/README.md           the model card
DIR/LICENSE
"""

import csv
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.runs import versions
from esad_med.outputs.export_check import COLUMNS, Columns, Samples

if TYPE_CHECKING:
    from esad_med.method.contract import Contract

PictureReader = Callable[[Path], npt.NDArray[np.uint8]]
"""A picture's file to its sample (h, w, c), as the detector's own pipeline has it."""

MODEL = "models/model.pt2"
_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_RADIOGRAPH_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".nii", ".gz", "")
_MODES = {1: "L", 3: "RGB"}
_SECONDS = 600
_ENLARGED = 3  # a side of a reference radiograph, in sides of a sample

LICENSE = """\
SPDX-License-Identifier: Apache-2.0

The configurations and texts of this bundle were written by esad-med and are licensed under the
Apache License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).

The weights in models/ come from data that esad-med knows nothing of. Whoever trained them says
under which terms they may be passed on, and writes it here.
"""


def check_bundle_possible(contract: "Contract") -> None:
    """Refuse detectors whose samples a folder of pictures does not hold.

    Raises:
        ConfigError: vectors, numbers other than 0 to 255, or other colors than gray or RGB.
    """
    own = contract.input
    if not own.is_image:
        raise ConfigError(
            "a MONAI bundle reads pictures, this detector takes vectors; export it with --format"
            " onnx or torch-export"
        )
    if own.dtype != "uint8" or own.value_range != (0, 255) or own.sample_shape[2] not in _MODES:
        raise ConfigError(
            "a MONAI bundle reads pictures of 8 bits in gray or RGB, this detector takes"
            f" {own.dtype} {list(own.sample_shape)} from {own.value_range[0]:g} to"
            f" {own.value_range[1]:g}; export it with --format onnx or torch-export"
        )


def inference_config(contract: "Contract") -> dict[str, Any]:
    """``inference.json``: read a folder, prepare, score, write a table."""
    radiographs = is_of_radiographs(contract)
    suffixes = _RADIOGRAPH_SUFFIXES if radiographs else _SUFFIXES
    reading = _read_radiographs(contract) if radiographs else _read_pictures(contract)
    ours = ["$import data_prep.xray_chain as xray_chain"] if radiographs else []
    return {
        "imports": ["$import pathlib", "$import torch", *ours],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "output_name": "scores.csv",
        "device": "cpu",
        "batch_size": 32,
        "files": "$sorted(str(f) for f in pathlib.Path(@dataset_dir).rglob('*')"
        f" if f.is_file() and f.suffix.lower() in {suffixes})",
        "network_def": f"$torch.export.unflatten(torch.export.load(@bundle_root + '/{MODEL}'))",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": reading},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': f, 'file': f} for f in @files]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": "@batch_size",
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [
            {
                "_target_": "ClassificationSaver",
                "output_dir": "@output_dir",
                "filename": "@output_name",
                "batch_transform": "$lambda batch: [{'filename_or_obj': f} for f in batch['file']]",
                "output_transform": "$lambda output: output['pred']",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device(@device)",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "decollate": False,
            "val_handlers": "@handlers",
        },
        "table": "$pathlib.Path(@output_dir) / @output_name",
        "run": [
            "$@evaluator.run()",
            f"$@table.write_text('file,{','.join(COLUMNS)}\\n' + @table.read_text())",
        ],
    }


def _read_pictures(contract: "Contract") -> list[dict[str, Any]]:
    channels = contract.input.sample_shape[2]
    return [
        {
            "_target_": "LoadImaged",
            "keys": "image",
            "image_only": True,
            "reader": "PILReader",
            "converter": f"$lambda picture: picture.convert('{_MODES[channels]}')",
            "reverse_indexing": False,
        },
        {
            "_target_": "EnsureChannelFirstd",
            "keys": "image",
            "channel_dim": "no_channel" if channels == 1 else -1,
        },
        _TYPE,
    ]


def _read_radiographs(contract: "Contract") -> list[dict[str, Any]]:
    spec = contract.preparation["xray"]
    arguments = ", ".join(f"{name}={value!r}" for name, value in spec.items())
    chain = f"xray_chain.xray_chain(xray_chain.XraySpec({arguments}))"
    return [
        {
            "_target_": "LoadImaged",
            "keys": "image",
            "image_only": True,
            "reader": "$xray_chain.xray_reader()",
        },
        {"_target_": "ToNumpyd", "keys": "image"},
        {"_target_": "Lambdad", "keys": "image", "func": f"${chain}"},
        {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": -1},
        _TYPE,
    ]


_TYPE = {
    "_target_": "EnsureTyped",
    "keys": "image",
    "dtype": "$torch.float32",
    "track_meta": False,
}


def metadata(contract: "Contract", *, digest: str, intended_use: str) -> dict[str, Any]:
    """``metadata.json`` as MONAI's bundle specification has it."""
    own, installed = contract.input, versions()
    height, width, channels = own.sample_shape
    needed = {"pytorch-ignite": version("pytorch-ignite"), "pillow": version("pillow")}
    if is_of_radiographs(contract):
        needed["esad-med"] = installed["esad-med"]
    names = {1: {"0": "gray"}, 3: {"0": "red", "1": "green", "2": "blue"}}
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from detector {digest}"},
        "monai_version": installed["monai"],
        "pytorch_version": installed["torch"].split("+")[0],
        "numpy_version": installed["numpy"],
        "required_packages_version": needed,
        "name": f"ESAD anomaly detection, {own.modality}",
        "task": "Anomaly detection",
        "description": "Semi-supervised anomaly detection after ESAD: a score per picture, higher"
        " is more anomalous. The whole ensemble, its views, fusion and percentiles are in the"
        " model.",
        "authors": "whoever trained the detector",
        "copyright": "see LICENSE",
        "references": ["Huang et al., ESAD, arXiv:2012.04905"],
        "intended_use": intended_use,
        "data_type": own.modality,
        "image_classes": f"{width} x {height} pixels, values 0 to 255",
        "pred_classes": ", ".join(COLUMNS),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": own.modality,
                    "modality": own.modality,
                    "num_channels": channels,
                    "spatial_shape": [height, width],
                    "dtype": "float32",
                    "value_range": list(own.value_range),
                    "is_patch_data": False,
                    "channel_def": names[channels],
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "scores",
                    "num_channels": len(COLUMNS),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(k): name for k, name in enumerate(COLUMNS)},
                }
            },
        },
    }


def is_of_radiographs(contract: "Contract") -> bool:
    """Whether the bundle reads radiographs, by our reader and chain, rather than tiles."""
    return contract.input.view_positions is not None and "xray" in contract.preparation


def read_picture(path: Path, *, channels: int) -> npt.NDArray[np.uint8]:
    """A tile's file as a sample (h, w, c)."""
    with Image.open(path) as picture:
        values = np.asarray(picture.convert(_MODES[channels]), dtype=np.uint8)
    return values.reshape(*values.shape[:2], channels)


def write_pictures(samples: Samples, folder: Path, *, enlarged: bool) -> list[Path]:
    """Reference samples as PNG, in the order of their names.

    Args:
        samples: (n, h, w, c) uint8.
        folder: an existing one.
        enlarged: as radiographs, which are larger than the sample that is made of them.
    """
    paths = [folder / f"{number:05d}.png" for number in range(len(samples))]
    for path, sample in zip(paths, samples, strict=True):
        values = sample.repeat(_ENLARGED, 0).repeat(_ENLARGED, 1) if enlarged else sample
        Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(path)
    return paths


def run_bundle(root: Path, pictures: Path, sizes: Sequence[int]) -> dict[int, Columns]:
    """Run a bundle as its user will, in a process of its own, in batches of these sizes.

    Args:
        root: the bundle.
        pictures: a folder of them.
        sizes: of batches.

    Returns:
        The table's `COLUMNS` of all pictures, (4, n), by size.

    Raises:
        ModelError: MONAI does not run it.
    """
    code = (
        "import sys\n"
        "from monai.bundle import run\n"
        "root, images, out, *sizes = sys.argv[1:]\n"
        "for size in map(int, sizes):\n"
        "    run(config_file=root + '/configs/inference.json',"
        " meta_file=root + '/configs/metadata.json', bundle_root=root, dataset_dir=images,"
        " output_dir=out, output_name=f'{size}.csv', batch_size=size)\n"
    )
    with TemporaryDirectory() as out:
        command = [sys.executable, "-c", code, str(root), str(pictures), out, *map(str, sizes)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"not exported: MONAI did not finish the bundle within {_SECONDS} seconds; give the"
                " machine more room, or export with --format torch-export"
            ) from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelError(
                f"not exported: MONAI does not run the bundle ({last}); check the installation with"
                " `esad-med doctor`, or export with --format torch-export"
            )
        return {size: _read_table(Path(out) / f"{size}.csv") for size in sizes}


def _read_table(path: Path) -> Columns:
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Mapping[str, str]] = sorted(csv.DictReader(file), key=lambda row: row["file"])
    return np.array([[float(row[name]) for row in rows] for name in COLUMNS], np.float64)
