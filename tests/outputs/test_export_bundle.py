"""A MONAI bundle scores a folder of pictures as the detector does; the command line of exports."""

import csv
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composed_xrays import draw_pixels
from export_detectors import RECOMMENDED, make_detector, picture_network, table, tiles
from PIL import Image

from data_prep.xray import read_xray
from data_prep.xray_chain import XraySpec, xray_chain
from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.store_writing import write_store
from esad_med.method.contract import InputContract
from esad_med.method.detector import Detector
from esad_med.method.networks import VectorNetworkSpec
from esad_med.outputs import export
from esad_med.outputs.export import export_detector
from pipelines.exporting import picture_reader


def run_in_process(root: Path, pictures: Path, out: Path) -> dict[str, list[float]]:
    """`python -m monai.bundle run` without a new process: file name -> its four numbers."""
    from monai.bundle import run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(
            config_file=str(root / "configs" / "inference.json"),
            meta_file=str(root / "configs" / "metadata.json"),
            bundle_root=str(root),
            dataset_dir=str(pictures),
            output_dir=str(out),
        )
    return read_scores(out / "scores.csv")


def read_scores(path: Path) -> dict[str, list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "score", "reconstruction", "norm", "percentile"]
    return {Path(name).name: [float(value) for value in values] for name, *values in rows}


def check(found: dict[str, list[float]], detector: Detector, samples: dict[str, Any]) -> None:
    """The bundle's table against the detector's own scores of these samples."""
    assert set(found) == set(samples)
    scores = detector.score(np.stack(list(samples.values())))
    expected = np.stack([*scores, detector.percentile(scores.score)], axis=1)
    rows = np.array([found[name] for name in samples])
    np.testing.assert_allclose(rows[:, :3], expected[:, :3], rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(rows[:, 3], expected[:, 3], atol=0.05)


@pytest.fixture(scope="module")
def tile_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    detector = make_detector(tiles((32, 16)), picture_network(**RECOMMENDED), members=1, fusion={})
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export_detector(detector, out, format="monai-bundle", read=picture_reader(detector))
    return detector, out


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Tiles of several file types in folders, and what they show; a text between them."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    random, shown = np.random.default_rng(3), {}
    for number in range(4):
        shown[f"{number}.png"] = random.integers(0, 256, (16, 32, 3), dtype=np.uint8)
        Image.fromarray(shown[f"{number}.png"]).save(folder / "below" / f"{number}.png")
    Image.fromarray(shown["0.png"]).save(folder / "a.jpg")
    Image.fromarray(shown["1.png"]).convert("RGBA").save(folder / "b.PNG")
    Image.fromarray(shown["2.png"]).convert("L").save(folder / "gray.tif")
    for name in ("a.jpg", "b.PNG", "gray.tif"):
        with Image.open(folder / name) as picture:
            shown[name] = np.asarray(picture.convert("RGB"))
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    return folder, shown


def test_a_bundle_scores_a_folder_of_tiles(
    tile_bundle: tuple[Detector, Path], pictures: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    detector, bundle = tile_bundle
    folder, shown = pictures
    check(run_in_process(bundle, folder, tmp_path / "results"), detector, shown)


@pytest.mark.slow
def test_the_line_in_its_readme_runs(
    tile_bundle: tuple[Detector, Path], pictures: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("fire", reason="MONAI's command line needs fire")
    detector, bundle = tile_bundle
    folder, shown = pictures
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = [line for line in text.splitlines() if "monai.bundle run" in line]
    places = {"DIR": bundle, "PICTURES": folder, "RESULTS": tmp_path / "results"}
    words = [sys.executable, *line.split()[1:]]
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    subprocess.run(words, check=True, capture_output=True, cwd=tmp_path, env=os.environ)
    check(read_scores(tmp_path / "results" / "scores.csv"), detector, shown)


def test_a_bundle_is_what_monai_expects(tile_bundle: tuple[Detector, Path]) -> None:
    from monai.bundle import verify_net_in_out

    detector, bundle = tile_bundle
    files = {"meta_file": bundle / "configs" / "metadata.json"}
    files["config_file"] = bundle / "configs" / "inference.json"
    named = {key: str(path) for key, path in files.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verify_net_in_out(net_id="network_def", device="cpu", bundle_root=str(bundle), **named)
    found = {file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()}
    assert found == {
        *("configs/metadata.json", "configs/inference.json", "models/model.pt2"),
        *("docs/README.md", "LICENSE", "contract.json", "export.json", "checksums.json"),
    }
    facts = json.loads(files["meta_file"].read_text(encoding="utf-8"))
    given = facts["network_data_format"]["inputs"]["image"]
    assert (given["num_channels"], given["spatial_shape"]) == (3, [16, 32])
    assert given["value_range"] == [0, 255]
    assert facts["changelog"] == {"1.0.0": f"exported from detector {detector.digest}"}
    assert len(files["config_file"].read_text(encoding="utf-8").splitlines()) < 80  # one screen


def test_a_tile_of_another_size_is_no_score(
    tile_bundle: tuple[Detector, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (48, 48)).save(tmp_path / "pictures" / "large.png")
    with pytest.raises(RuntimeError, match="evaluator"):  # MONAI puts the reason into its log
        run_in_process(tile_bundle[1], tmp_path / "pictures", tmp_path / "results")
    assert "shape[2] to be equal to 16, but got 48" in caplog.text
    assert not (tmp_path / "results" / "scores.csv").exists()


def xray_detector() -> Detector:
    """Of composed radiographs, with the preparation that a store of `esad-med xray` keeps."""
    own = InputContract(
        modality="chest radiograph",
        sample_shape=(32, 32, 1),
        dtype="uint8",
        value_range=(0, 255),
        view_positions=("PA",),
        crop_share=0.75,
    )
    spec = XraySpec(size_px=32).model_dump(mode="json")
    network = picture_network(channels=1)
    return make_detector(own, network, members=1, fusion={}, preparation={"xray": spec})


def test_a_bundle_reads_radiographs_as_triage_does(
    run_command: Callable[..., Any], write_dicom: Callable[..., Path], tmp_path: Path
) -> None:
    detector = xray_detector()
    detector.save(tmp_path / "detector")
    arguments = ("export", tmp_path / "detector", "--format", "monai-bundle", "--json")
    done = run_command(*arguments, "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["format"], found["reference"]) == ("monai-bundle", "composed")
    assert found["largest_difference"] <= 1e-4
    folder = tmp_path / "pictures"
    write_dicom(folder / "one.dcm", seed=1)
    write_dicom(folder / "bare", seed=2)
    write_dicom(
        folder / "inverted.dcm",
        pixels=255 - draw_pixels(3),
        PhotometricInterpretation="MONOCHROME1",
    )
    Image.fromarray(draw_pixels(4)).save(folder / "four.png")
    chain = xray_chain(XraySpec(size_px=32))
    shown = {file.name: chain(read_xray(file).pixels) for file in folder.iterdir()}
    check(run_in_process(tmp_path / "bundle", folder, tmp_path / "results"), detector, shown)


def test_what_a_folder_of_pictures_does_not_hold_is_refused(tmp_path: Path) -> None:
    vectors = make_detector(table(), VectorNetworkSpec(features=4), members=1)
    with pytest.raises(ConfigError, match=r"takes vectors; .*onnx"):
        export_detector(vectors, tmp_path / "out", format="monai-bundle")
    floats = make_detector(tiles(dtype="float32"), picture_network(), members=1)
    with pytest.raises(ConfigError, match=r"takes float32 \[16, 16, 3\] from -1 to 2"):
        export_detector(floats, tmp_path / "out", format="monai-bundle")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_bundle_that_scores_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = make_detector(tiles(), picture_network(), members=1, fusion={})
    honest = export.inference_config

    def mirrored(contract: Any) -> dict[str, Any]:
        config = honest(contract)
        reader = config["preprocessing"]["transforms"][0]
        reader["converter"] = "$lambda picture: picture.convert('RGB').transpose(0)"
        return config

    monkeypatch.setattr(export, "inference_config", mirrored)
    read = picture_reader(detector)
    with pytest.raises(ModelError, match="not exported: score of the MONAI bundle differs"):
        export_detector(detector, tmp_path / "out", format="monai-bundle", read=read)
    assert not any(tmp_path.iterdir())


def test_the_command_compares_on_a_store_and_says_what_is_wrong(
    run_command: Callable[..., Any], tmp_path: Path
) -> None:
    detector = make_detector(table(), VectorNetworkSpec(features=4), members=1, fusion={})
    detector.save(tmp_path / "detector")
    samples = np.random.default_rng(5).uniform(-3, 5, (70, 4)).astype(np.float32)
    rows = _rows(70)
    for name, values in (("fits", samples), ("differs", samples[:, :3])):
        contract = {"kind": "table", "value_range": [-3, 5]}
        write_store(tmp_path / name, np.ascontiguousarray(values), rows, contract)
    arguments = ("export", tmp_path / "detector", "--format", "torch-export", "--out")
    out, reference = tmp_path / "out", "--reference"
    done = run_command(*arguments, out, reference, tmp_path / "differs")
    assert done.code == 4
    assert "channels" in done.err
    done = run_command(*arguments, out, reference, tmp_path / "fits")
    assert done.code == 0, done.err
    assert "scores of 64 reference samples (store " in done.out
    done = run_command(*arguments, out)
    assert (done.code, "--overwrite" in done.err) == (4, True)
    assert run_command("export", tmp_path, "--format", "onnx", "--out", out).code == 4
    assert run_command("export", tmp_path, "--format", "coreml", "--out", out).code == 2


def _rows(count: int) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {
            "sample_id": [f"s{k}" for k in range(count)],
            "case_id": "",
            "patient_id": "",
            "split": "train",
            "semi_label": 1,
            "truth": 0,
        }
    )
