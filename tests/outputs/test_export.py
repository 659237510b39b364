"""An export scores as its detector does, in its own runtime, or is not written."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_detectors import RECOMMENDED, make_detector, picture_network, table, tiles
from hypothesis import given
from hypothesis import strategies as st

from esad_med.base.errors import ConfigError, ModelError
from esad_med.method.contract import Calibration
from esad_med.method.detector import Detector
from esad_med.method.export_module import DetectorModule
from esad_med.method.networks import VectorNetworkSpec
from esad_med.method.scaling import ScaleConfig
from esad_med.outputs import export, export_onnx
from esad_med.outputs.export import export_detector
from esad_med.outputs.export_check import (
    COLUMNS,
    allowed,
    compare,
    compose_reference,
    expected_columns,
)

LOG_MEDIAN = {"transform": "log", "across": "median"}


def normal_scores(**changes: Any) -> Detector:
    """Vectors as the preset `recommended` has them."""
    network = VectorNetworkSpec(features=8, hidden=(6, 3), distance="z_hat")
    given = {"members": 3, "scale": ScaleConfig(method="normal_scores"), "fusion": {}}
    return make_detector(table(4), network, **(given | changes))


MAKERS = {
    "paper, tiles": lambda: make_detector(tiles(), picture_network(), members=1),
    "recommended, tiles": lambda: make_detector(
        tiles(), picture_network(**RECOMMENDED), members=3, views=8, fusion={"transform": "log"}
    ),
    "recommended, upright": lambda: make_detector(
        tiles(), picture_network(distance="z", latent_activation="linear"), fusion={}
    ),
    "oblong and padded, float32, gray": lambda: make_detector(
        tiles((30, 17), dtype="float32", channels=1),
        picture_network(channels=1, second_encoder=False),
        views=8,
        fusion=LOG_MEDIAN,
    ),
    "recommended, vectors": normal_scores,
    "four members' median, vectors": lambda: normal_scores(members=4, fusion=LOG_MEDIAN),
    "paper, vectors": lambda: make_detector(
        table(), VectorNetworkSpec(features=4), scale=ScaleConfig(clip=None)
    ),
    "unscaled vectors": lambda: make_detector(table(), VectorNetworkSpec(features=4)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_module_gives_the_detectors_scores(name: str) -> None:
    detector = MAKERS[name]()
    samples = compose_reference(detector)
    expected = expected_columns(detector, samples)
    module = DetectorModule(detector.contract, detector.weights)
    with torch.no_grad():
        found = np.stack([column.numpy() for column in module(torch.from_numpy(samples))])
    assert (np.abs(found[:3] - expected[:3]) / np.maximum(1, np.abs(expected[:3]))).max() < 1e-4
    compare(detector, found, expected, name="module", batch=len(samples))
    assert np.ptp(expected, axis=1).min() > 0.01


@given(st.lists(st.integers(0, 6), min_size=2, max_size=9), st.integers(-4, 28))
def test_percentiles_are_numpys_also_between_equal_quantiles(steps: list[int], at: int) -> None:
    quantiles = tuple(np.sort(np.array(steps, float)))
    module = DetectorModule.__new__(DetectorModule)
    torch.nn.Module.__init__(module)
    module.register_buffer("quantiles", torch.tensor(quantiles))
    calibration = Calibration(quantiles=quantiles, normals=9, held_out_by="case")
    score = np.float32([at / 4])
    found = module._percentile(torch.from_numpy(score))
    np.testing.assert_allclose(found.numpy(), calibration.percentile(score), atol=1e-4)


def small() -> Detector:
    """What is exported in a second."""
    network = VectorNetworkSpec(features=4, hidden=(3,))
    return make_detector(table(), network, members=1, fusion={})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Detector, Path]]:
    """One of each kind, exported once."""
    stain = {"name": "a", "matrix": [[1, 0, 0], [0, 1, 0]]}
    pictures = make_detector(
        tiles(stain="vahadane", stain_target=stain),
        picture_network(**RECOMMENDED, distance="z"),
        views=4,
        fusion=LOG_MEDIAN,
    )
    floats = make_detector(
        tiles((30, 17), dtype="float32", channels=1),
        picture_network(channels=1, second_encoder=False),
        members=1,
        fusion={},
    )
    found = {}
    for name, detector, format in (
        ("tiles, onnx", pictures, "onnx"),
        ("float pictures, torch-export", floats, "torch-export"),
        ("vectors, onnx", normal_scores(), "onnx"),
        ("vectors, torch-export", small(), "torch-export"),
    ):
        out = tmp_path_factory.mktemp("exports") / "out"
        export_detector(detector, out, format=format)
        found[name] = (detector, out)
    return found


def unseen(detector: Detector, count: int = 13) -> Any:
    """Samples that no export was compared on."""
    low, high = detector.input.value_range
    random = np.random.default_rng(7)
    shape = (count, *detector.input.sample_shape)
    return random.uniform(low, high, shape).astype(detector.input.dtype)


EXPORTS = (
    *("tiles, onnx", "vectors, onnx"),
    *("float pictures, torch-export", "vectors, torch-export"),
)


@pytest.mark.parametrize("name", EXPORTS)
def test_onnx_runtime_and_pytorch_give_the_detectors_scores(
    exported: dict[str, tuple[Detector, Path]], name: str
) -> None:
    detector, folder = exported[name]
    samples = unseen(detector)
    scores = detector.score(samples)
    expected = np.stack([*scores, detector.percentile(scores.score)])
    if name.endswith("onnx"):
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    else:
        program = torch.export.load(folder / "model.pt2").module()
    for size in (1, 4, 13):
        for start in range(0, len(samples), size):
            part, wanted = samples[start : start + size], expected[:, start : start + size]
            if name.endswith("onnx"):
                found = session.run(None, {"samples": part})
            else:
                found = [column.numpy() for column in program(torch.from_numpy(part))]
            np.testing.assert_allclose(found[:3], wanted[:3], rtol=2e-5, atol=1e-4)
            np.testing.assert_allclose(found[3], wanted[3], atol=0.05)


def test_an_onnx_model_says_what_it_is(exported: dict[str, tuple[Detector, Path]]) -> None:
    detector, folder = exported["tiles, onnx"]
    model = onnx.load(folder / "model.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["detector"] == detector.digest
    assert json.loads(facts["contract"]) == json.loads(detector.contract.model_dump_json())
    assert "not for diagnosis" in facts["intended_use"]
    (given,) = model.graph.input
    shape = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert (given.name, shape) == ("samples", ["n", 16, 16, 3])
    assert [column.name for column in model.graph.output] == list(COLUMNS)
    assert {kind.domain for kind in model.opset_import} == {""}
    assert not any(node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize("name", ["tiles, onnx", "float pictures, torch-export"])
def test_an_export_tells_how_to_run_it_and_names_no_place_on_this_machine(
    exported: dict[str, tuple[Detector, Path]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, folder = exported[name]
    text = (folder / "README.md").read_text(encoding="utf-8")
    block = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), names := {})
    zeros = np.zeros((1, *detector.input.sample_shape), detector.input.dtype)
    np.testing.assert_allclose(names["score"], detector.score(zeros).score, rtol=2e-5, atol=1e-4)
    for words in (
        ("16 pixels wide", "red, green, blue", "uint8 from 0 to 255", "vahadane")
        if "onnx" in name
        else ("30 pixels wide, 17 high", "gray", "float32 from -1 to 2")
    ):
        assert words in text
    assert "1 µm per pixel" in text
    sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
    files = {file.name for file in folder.iterdir()}
    assert set(sums) == files - {"checksums.json"}
    for name, value in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value
    source = str(Path(export.__file__).parents[2]).encode()
    assert not any(source in file.read_bytes() for file in folder.iterdir())
    record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    assert record["detector"] == detector.digest
    assert record["largest_difference"] <= 1e-4


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def test_a_wrong_translation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DetectorModule._fuse

    def wrong(self: DetectorModule, first: Any, second: Any) -> Any:
        return honest(self, first, second + 0.01)

    monkeypatch.setattr(DetectorModule, "_fuse", wrong)
    with pytest.raises(ModelError, match="not exported: score of the module differs"):
        export_detector(small(), tmp_path / "out", format="torch-export")
    assert is_empty(tmp_path)


def test_a_program_that_was_written_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(program: Any) -> bytes:
        program.state_dict["statistics"].add_(0.01)
        return honest(program)

    honest = export.program_bytes
    monkeypatch.setattr(export, "program_bytes", wrong)
    with pytest.raises(ModelError, match=r"score of model.pt2 differs .* in another --format"):
        export_detector(small(), tmp_path / "out", format="torch-export")
    assert is_empty(tmp_path)


def test_an_operator_that_onnx_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = DetectorModule._percentile

    def odd(self: DetectorModule, score: Any) -> Any:
        return honest(self, score) + 0 * torch.special.bessel_j0(score)

    monkeypatch.setattr(DetectorModule, "_percentile", odd)
    with pytest.raises(
        ModelError, match=r"ONNX has no operator for \w+\.(special_)?bessel_j0.* torch-export"
    ):
        export_detector(small(), tmp_path / "out", format="onnx")
    assert is_empty(tmp_path)


def test_a_model_that_onnx_runtime_does_not_run_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("NoSuchOperator", ["samples"], ["score"])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"])
        for name in ("samples", "score")
    ]
    graph = onnx.helper.make_graph([node], "odd", values[:1], values[1:])
    (tmp_path / "odd.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelError, match=r"does not run the model .*NoSuchOperator"):
        export_onnx.open_onnx(tmp_path / "odd.onnx")


def test_a_missing_package_and_too_large_a_model_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = small()
    with monkeypatch.context() as patch:
        patch.setattr(export_onnx, "find_spec", lambda name: None if name == "onnxscript" else 1)
        with pytest.raises(ConfigError, match=r"package onnxscript; run: pip install '.*\[onnx\]'"):
            export_detector(detector, tmp_path / "out", format="onnx")
    monkeypatch.setattr(export_onnx, "_MOST_BYTES", 10)
    with pytest.raises(ModelError, match="ONNX holds 2 GB"):
        export_detector(detector, tmp_path / "out", format="onnx")
    assert is_empty(tmp_path)


@pytest.mark.parametrize(
    ("column", "change"), [(0, 0.01), (1, 0.01), (2, -0.01), (3, 0.5), (0, np.nan), (3, np.nan)]
)
def test_what_differs_is_named(column: int, change: float) -> None:
    detector = normal_scores()
    samples = compose_reference(detector)
    expected = expected_columns(detector, samples)
    assert compare(detector, expected, expected, name="it", batch=1) == 0
    found = expected.copy()
    found[column, 5] += change
    message = rf"{COLUMNS[column]} of it differs .* reference sample 5 \(in batches of 1\)"
    with pytest.raises(ModelError, match=message):
        compare(detector, found, expected, name="it", batch=1)


def test_what_may_differ_is_a_ten_thousandth_of_the_spread() -> None:
    detector = make_detector(tiles(), picture_network())
    low, median, high = (detector.threshold_at(p) for p in (5, 50, 95))
    at_median = np.array([[median], [0.0], [0.0], [50]])
    assert high - low > abs(median) / 100
    np.testing.assert_allclose(allowed(detector, at_median)[:, 0], 1e-4 * (high - low))


@pytest.mark.parametrize("name", ["paper, tiles", "oblong and padded, float32, gray"])
def test_composed_samples_reach_over_the_value_range(name: str) -> None:
    detector = MAKERS[name]()
    samples = compose_reference(detector)
    detector.check_samples(samples)
    assert (samples.min(), samples.max()) == detector.input.value_range
    np.testing.assert_array_equal(samples, compose_reference(detector))


def test_samples_that_show_nothing_are_refused(tmp_path: Path) -> None:
    same = np.zeros((5, 4), np.float32)
    with pytest.raises(ModelError, match=r"same score.*--reference STORE"):
        export_detector(normal_scores(), tmp_path / "out", format="torch-export", reference=same)
    assert is_empty(tmp_path)


def test_an_export_replaces_only_an_export_that_may_be_overwritten(
    exported: dict[str, tuple[Detector, Path]], tmp_path: Path
) -> None:
    detector, folder = small(), exported["vectors, torch-export"][1]
    with pytest.raises(ConfigError, match=r"an export exists; .*--overwrite"):
        export_detector(detector, folder, format="torch-export")
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="exists and is not an export"):
            export_detector(detector, tmp_path, format="torch-export", overwrite=overwrite)
    before = (folder / "model.pt2").stat().st_mtime_ns
    export_detector(detector, folder, format="torch-export", overwrite=True)
    assert (folder / "model.pt2").stat().st_mtime_ns > before
