"""`esad-med export`: a detector for other runtimes, refused where it scores otherwise there.

OUT/model.onnx or model.pt2   the whole detector; a MONAI bundle has folders of its own instead
OUT/contract.json             what it may be fed
OUT/README.md                 how to run it, and the model card
OUT/export.json               what it was compared with, and how it did
OUT/checksums.json            SHA-256 of all the others
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from esad_med.base.errors import ConfigError
from esad_med.base.locks import hold_output
from esad_med.base.runs import (
    atomic_folder,
    digest_file,
    output_error,
    versions,
    write_json,
    write_text,
)
from esad_med.outputs.export_bundle import (
    LICENSE,
    MODEL,
    PictureReader,
    check_bundle_possible,
    inference_config,
    is_of_radiographs,
    metadata,
    run_bundle,
    write_pictures,
)
from esad_med.outputs.export_check import (
    RULE,
    Columns,
    Samples,
    check_runtime,
    compare,
    compose_reference,
    expected_columns,
)
from esad_med.outputs.export_onnx import check_onnx_installed, onnx_bytes, open_onnx
from esad_med.outputs.export_readme import INTENDED_USE, bundle_readme, program_readme
from esad_med.outputs.export_torch import open_program, program_bytes, trace

if TYPE_CHECKING:
    from esad_med.method.detector import Detector

Format = Literal["onnx", "torch-export", "monai-bundle"]
RECORD = "export.json"
_CHECKSUMS = "checksums.json"


@dataclass(frozen=True)
class Export:
    """What an export was compared with.

    Attributes:
        format: of the export.
        detector: its digest.
        reference: where the reference samples come from.
        samples: how many there were.
        largest_difference: of an exported score from the detector's.
        rule: what was allowed.
        versions: of what it was made with.
    """

    format: Format
    detector: str
    reference: str
    samples: int
    largest_difference: float
    rule: str
    versions: Mapping[str, str]


def export_detector(
    detector: "Detector",
    out: Path,
    *,
    format: Format,
    reference: Samples | None = None,
    reference_name: str = "composed",
    read: PictureReader | None = None,
    overwrite: bool = False,
) -> Export:
    """Export a detector, run the export in its own runtime, and keep it if the scores agree.

    Args:
        detector: on the CPU.
        out: a new folder, or an export that may be overwritten.
        format: for ONNX Runtime, PyTorch, or MONAI.
        reference: samples to compare on; composed ones where there are none.
        reference_name: what they are, for the record.
        read: how a picture's file becomes a sample; for a MONAI bundle.
        overwrite: replace an export that is there.

    Raises:
        ModelError: the export scores otherwise than the detector, or the target lacks an operator.
        ConfigError: the format does not fit the detector, a package is missing, or ``out`` holds
            something else.
    """
    if format == "monai-bundle":
        check_bundle_possible(detector.contract)
    if format == "onnx":
        check_onnx_installed()
    samples = compose_reference(detector) if reference is None else reference
    if format == "monai-bundle" and is_of_radiographs(detector.contract):
        # a plain picture is no radiograph, our reader finds
        samples = samples[np.ptp(samples.reshape(len(samples), -1), axis=1) > 0]
    with hold_output(out):
        _refuse_other_folder(out, overwrite=overwrite)
        with atomic_folder(out) as folder:
            if format == "monai-bundle":
                assert read is not None
                worst = _export_bundle(detector, folder, samples, read)
            else:
                worst = _export_program(detector, folder, samples, format)
            record = Export(
                format=format,
                detector=detector.digest,
                reference=reference_name,
                samples=len(samples),
                largest_difference=worst,
                rule=RULE,
                versions=versions(),
            )
            _finish(detector, folder, record)
    return record


def _export_program(detector: "Detector", folder: Path, samples: Samples, format: Format) -> float:
    expected = expected_columns(detector, samples)
    module = _module(detector, samples, expected)
    program = trace(module, samples.shape[1:], detector.input.dtype)
    if format == "onnx":
        name, written = "model.onnx", onnx_bytes(program, _facts(detector))
    else:
        name, written = "model.pt2", program_bytes(program)
    (folder / name).write_bytes(written)
    run = open_onnx(folder / name) if format == "onnx" else open_program(folder / name)
    worst = check_runtime(detector, samples, expected, run, name=name)
    write_text(folder / "README.md", program_readme(detector, name))
    return worst


def _export_bundle(
    detector: "Detector", folder: Path, samples: Samples, read: PictureReader
) -> float:
    from esad_med.method.export_module import PictureModule

    contract = detector.contract
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    radiographs = is_of_radiographs(contract)
    with TemporaryDirectory() as pictures:
        paths = write_pictures(samples, Path(pictures), enlarged=radiographs)
        samples = np.stack([read(path) for path in paths])
        expected = expected_columns(detector, samples)
        module = PictureModule(_module(detector, samples, expected))
        height, width, channels = contract.input.sample_shape
        program = trace(module, (channels, height, width), "float32", name="image")
        (folder / MODEL).write_bytes(program_bytes(program))
        facts = metadata(contract, digest=detector.digest, intended_use=INTENDED_USE)
        write_json(folder / "configs" / "metadata.json", facts)
        write_json(folder / "configs" / "inference.json", inference_config(contract))
        write_text(folder / "LICENSE", LICENSE)
        write_text(folder / "docs" / "README.md", bundle_readme(detector))
        found = run_bundle(folder, Path(pictures), (1, 5, len(samples)))
    name = "the MONAI bundle"
    return max(compare(detector, f, expected, name=name, batch=b) for b, f in found.items())


def _module(detector: "Detector", samples: Samples, expected: Columns) -> Any:
    """The detector as a module, seen to give the detector's scores before it is translated."""
    import torch

    from esad_med.method.export_module import DetectorModule

    module = DetectorModule(detector.contract, detector.weights)

    def run(part: Samples) -> Columns:
        with torch.no_grad():
            return np.stack([c.numpy() for c in module(torch.from_numpy(part))]).astype(np.float64)

    check_runtime(detector, samples, expected, run, name="the module")
    return module


def _facts(detector: "Detector") -> dict[str, str]:
    return {
        "detector": detector.digest,
        "contract": detector.contract.model_dump_json(),
        "intended_use": INTENDED_USE,
        "esad-med": versions()["esad-med"],
    }


def _finish(detector: "Detector", folder: Path, record: Export) -> None:
    """The files that every export has; the checksums last."""
    write_text(folder / "contract.json", detector.contract.model_dump_json(indent=2) + "\n")
    if detector.decisions is not None:  # thresholds travel with the scores they are of
        detector.decisions.save(folder / "decisions.json")
    write_json(folder / RECORD, asdict(record))
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sums = {file.relative_to(folder).as_posix(): digest_file(file) for file in files}
    write_json(folder / _CHECKSUMS, sums)


def _refuse_other_folder(out: Path, *, overwrite: bool) -> None:
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
    except OSError as error:
        raise output_error(out, error) from error
    if not (out / RECORD).exists():
        raise ConfigError(f"{out}: exists and is not an export; choose another --out")
    if not overwrite:
        raise ConfigError(f"{out}: an export exists; choose another --out, or pass --overwrite")
