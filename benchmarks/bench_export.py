r"""Exported detectors on a CPU: ONNX Runtime and torch.export against `Detector.score`.

    python -m benchmarks.bench_export [--width 0.125 1] [--members 1] [--batch 32] [--threads 1]

Untrained detectors as the preset `recommended` has them for tiles of 64 x 64; medians of five
turns, taken in turns in one run. The largest difference of a score stands beside the ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch

from esad_med.method.contract import Calibration, Contract, InputContract, Training
from esad_med.method.detector import Detector
from esad_med.method.fusion import Fusion
from esad_med.method.networks import ImageNetworkSpec, build_network
from esad_med.method.terms import TermSpec
from esad_med.outputs.export import export_detector
from esad_med.outputs.export_torch import open_program

TURNS = 5
Score = Callable[[], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=float, nargs="+", default=[0.125, 1.0])
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| width | batch | how | tiles/s | ratio | largest difference |")
    print("|---|---|---|---|---|---|", flush=True)
    for width in options.width:
        detector = make_detector(width, options.members)
        for size in options.batch:
            for how, rate, ratio, difference in measure(detector, size, options.threads):
                cells = (
                    f"{width:g}",
                    size,
                    how,
                    f"{rate:,.1f}",
                    f"{ratio:.2f}",
                    f"{difference:.1g}",
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def make_detector(width: float, members: int) -> Detector:
    """Untrained, its batch norms used to noise."""
    network = ImageNetworkSpec(
        width=width, skip=True, whiten=True, pooling="mean", latent_activation="linear"
    )
    torch.manual_seed(0)
    weights = {}
    for k in range(members):
        made = build_network(network)
        with torch.no_grad():
            for _ in range(3):
                made(torch.rand(8, 3, 64, 64) * 2 - 1)
        weights.update({f"member{k}.{name}": v for name, v in made.state_dict().items()})
    training = Training(
        preset="recommended",
        seed=0,
        config={},
        normals=1,
        outliers=0,
        data_digest="",
        rows_digest="",
        versions={},
    )
    own = InputContract(
        modality="histology",
        sample_shape=(64, 64, 3),
        dtype="uint8",
        value_range=(0, 255),
        mpp=1.0,
    )
    contract = Contract(
        input=own,
        network=network,
        members=members,
        terms=TermSpec(),
        fusion=Fusion(mode="sum", reconstruction_weight=1, norm_weight=1),
        calibration=Calibration(quantiles=(0.0, 1.0), normals=1, held_out_by="case"),
        preparation={},
        training=training,
    )
    return Detector(contract, weights, device="cpu")


def measure(detector: Detector, size: int, threads: int) -> list[tuple[str, float, float, float]]:
    """Way, tiles per second, ratio to the detector's, largest difference from its scores."""
    shape = (size, *detector.input.sample_shape)
    samples = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with TemporaryDirectory() as folder:
        out = Path(folder)
        for format in ("onnx", "torch-export"):
            export_detector(detector, out / format, format=format)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(out / "onnx" / "model.onnx"), settings, providers=["CPUExecutionProvider"]
        )
        program = open_program(out / "torch-export" / "model.pt2")
        ways: dict[str, Score] = {
            "Detector.score": lambda: detector.score(samples).score,
            "ONNX Runtime": lambda: session.run(["score"], {"samples": samples})[0],
            "torch.export": lambda: program(samples)[0],
        }
        seconds: dict[str, list[float]] = {how: [] for how in ways}
        scores = {how: way() for how, way in ways.items()}  # warm
        for _ in range(TURNS):
            for how, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[how].append(time.perf_counter() - start)
    rates = {how: size / statistics.median(taken) for how, taken in seconds.items()}
    own, ours = rates["Detector.score"], scores["Detector.score"]
    return [(h, r, r / own, float(np.abs(scores[h] - ours).max())) for h, r in rates.items()]


if __name__ == "__main__":
    main()
