"""Damage to a detector is caught, bit by bit; no pickle in any file that is read ever runs."""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from data_prep.annotations import read_annotation
from data_prep.natural import read_cifar10
from data_prep.odds import read_odds
from data_prep.stain import StainSpec
from data_prep.stain_target import read_target
from esad_med.base.cases import read_manifest, read_table
from esad_med.base.config import load_config
from esad_med.base.errors import EsadError, ModelError, StoreError
from esad_med.base.runs import digest_file, write_json
from esad_med.base.store import SampleStore
from esad_med.method.checkpoints import load_checkpoint, save_checkpoint
from esad_med.method.config import TrainConfig
from esad_med.method.detector import CHECKSUMS, CONTRACT, WEIGHTS, Detector
from pipelines.scoring import read_scores

PARTS = ("jpeg", "offsets", "labels")
FILES = (WEIGHTS, CONTRACT, CHECKSUMS, "README.md")


@pytest.fixture
def saved(trained: Path, tmp_path: Path) -> Path:
    """A detector as `save` writes it."""
    Detector.load(trained, device="cpu").save(tmp_path / "detector")
    return tmp_path / "detector"


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def test_every_single_bit_flip_is_caught(saved: Path, rounds: Callable[[int, int], int]) -> None:
    """Anywhere in any file, evenly over the files; the detector loads before and after."""
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    Detector.load(saved, device="cpu")
    rng = np.random.default_rng(0)
    missed = []
    for number in range(rounds(60, 2000)):
        path = saved / FILES[number % len(FILES)]
        bit = int(rng.integers(8 * path.stat().st_size))
        flip(path, bit)
        try:
            Detector.load(saved, device="cpu")
            missed.append((path.name, bit))
        except ModelError:
            pass
        flip(path, bit)
    assert missed == []
    Detector.load(saved, device="cpu")


def test_every_bit_of_the_checksums_themselves_is_caught(saved: Path) -> None:
    content = (saved / CHECKSUMS).read_bytes()
    for bit in range(8 * len(content)):
        flip(saved / CHECKSUMS, bit)
        with pytest.raises(ModelError):
            Detector.load(saved, device="cpu")
        (saved / CHECKSUMS).write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_grown_or_missing_is_caught(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    for damaged in (content[:-2], content + b"x", content[1:], b""):
        (saved / name).write_bytes(damaged)
        with pytest.raises(ModelError):
            Detector.load(saved, device="cpu")
    (saved / name).unlink()
    if name == "README.md":  # a detector may travel without its card
        Detector.load(saved, device="cpu")
    else:
        with pytest.raises(ModelError):
            Detector.load(saved, device="cpu")


def test_checksums_speak_of_no_other_file(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")
    sums = json.loads((saved / CHECKSUMS).read_text())
    for name in ("../other", str(tmp_path / "other"), "other", "a\0b", ""):
        write_json(saved / CHECKSUMS, {**sums, name: digest_file(tmp_path / "other")})
        with pytest.raises(ModelError, match="speaks of"):
            Detector.load(saved, device="cpu")


class Malicious:
    """What makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def payload(canary: Path) -> bytes:
    return pickle.dumps(Malicious(canary))


def test_the_payloads_would_run(canary: Path, payload: bytes) -> None:
    pickle.loads(payload)
    assert canary.is_dir()
    canary.rmdir()
    torch.load(io.BytesIO(torch_file(canary)), weights_only=False)
    assert canary.is_dir()
    canary.rmdir()
    np.load(io.BytesIO(npy_file(canary)), allow_pickle=True)
    assert canary.is_dir()


def torch_file(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "weights": Malicious(canary)}, buffer)
    return buffer.getvalue()


def npy_file(canary: Path, count: int = 1) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Malicious(canary)] * count, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_samples_of_a_store(store: Path, canary: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    count = len(SampleStore(store))
    for content in (npy_file(canary, count), pickle.dumps(Malicious(canary))):
        (copy / "samples.npy").write_bytes(content)
        contract = json.loads((copy / "store.json").read_text())
        contract.update(dtype="object", shape=[count])
        write_json(copy / "store.json", contract)
        with pytest.raises(StoreError):
            SampleStore(copy)
    assert not canary.exists()


@pytest.mark.parametrize("name", [WEIGHTS, CONTRACT])
def test_weights_and_contract_of_a_detector(
    saved: Path, name: str, canary: Path, payload: bytes
) -> None:
    for content in (payload, torch_file(canary), npy_file(canary)):
        (saved / name).write_bytes(content)
        write_json(saved / CHECKSUMS, {n: digest_file(saved / n) for n in (WEIGHTS, CONTRACT)})
        with pytest.raises(ModelError):
            Detector.load(saved, device="cpu")
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, before it refuses
def test_checkpoints(canary: Path, payload: bytes, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 0, {"epoch": 1, "weights": torch.ones(2)})
    assert load_checkpoint(tmp_path, 0)
    (file,) = tmp_path.glob("*.pt")
    for content in (torch_file(canary), payload, legacy_file(canary)):
        file.write_bytes(content)
        pointer = json.loads((tmp_path / "member0.json").read_text())
        write_json(tmp_path / "member0.json", {**pointer, "sha256": digest_file(file)})
        with pytest.raises(ModelError, match="not readable"):
            load_checkpoint(tmp_path, 0)
    assert not canary.exists()


def legacy_file(canary: Path) -> bytes:
    """PyTorch's form before 1.6."""
    buffer = io.BytesIO()
    torch.save({"weights": Malicious(canary)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


READERS: dict[str, Callable[[Path], object]] = {
    "manifest.csv": read_manifest,
    "rows.csv": read_table,
    "scores.csv": read_scores,
    "target.json": lambda path: read_target(path, StainSpec()),
    "outlines.json": lambda path: read_annotation(path, slide_size=(100, 100)),
    "outlines.xml": lambda path: read_annotation(path, slide_size=(100, 100)),
}


@pytest.mark.parametrize("name", READERS)
def test_tables_targets_and_outlines(
    name: str, canary: Path, payload: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(payload)
    with pytest.raises(EsadError):
        READERS[name](path)
    assert not canary.exists()


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir"])
def test_settings(tag: str, canary: Path, tmp_path: Path) -> None:
    text = f"seed: !!python/{tag} ['{canary}']\n"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(EsadError):
        load_config(TrainConfig, tmp_path / "a.yaml", [])
    with pytest.raises(EsadError):
        load_config(TrainConfig, None, [text.strip().replace(": ", "=", 1)])
    assert not canary.exists()
    if tag.startswith("object/apply"):
        yaml.unsafe_load(text)
        assert canary.is_dir()


def test_published_data_sets(canary: Path, payload: bytes, tmp_path: Path) -> None:
    """Arrays of objects, and pickles under the names of CIFAR-10's and ODDS' files."""
    parts = [f"{split}_{part}" for split in ("train", "test") for part in PARTS]
    with zipfile.ZipFile(tmp_path / "cifar10_jpeg.npz", "w") as archive:
        for name in ("classes", *parts):
            archive.writestr(f"{name}.npy", npy_file(canary))
    with pytest.raises(EsadError):
        read_cifar10(tmp_path)
    (tmp_path / "cifar10_jpeg.npz").write_bytes(payload)
    with pytest.raises(EsadError):
        read_cifar10(tmp_path)
    (tmp_path / "cifar10_jpeg.npz").unlink()
    (tmp_path / "data_batch_1").write_bytes(payload)
    with pytest.raises(EsadError, match="pickle is never read"):
        read_cifar10(tmp_path)
    with h5py.File(tmp_path / "http.mat", "w") as file:
        file["X"] = file["y"] = np.void(payload)
    for name in ("http", "thyroid"):
        with pytest.raises(EsadError):
            read_odds(tmp_path, name)
        (tmp_path / "thyroid.mat").write_bytes(payload)
    assert not canary.exists()
