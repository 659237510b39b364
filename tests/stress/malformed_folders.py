"""Stores, detectors and checkpoints whose parts are damaged, exchanged, edited or hostile.

Whoever edits a part can also write the checksum that fits it, so most cases here have fitting ones.
"""

import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from malformed import READS

from esad_med.base.runs import digest_file
from esad_med.method.checkpoints import save_checkpoint

Change = Callable[[Path], None]


class MalformedFolder(NamedTuple):
    """A good folder, changed."""

    name: str
    reader: str
    change: Change
    expected: str

    def write(self, folder: Path, good: Path) -> Path:
        """A changed copy of a good folder."""
        shutil.copytree(good, folder)
        self.change(folder)
        return folder


def folders() -> Iterator[MalformedFolder]:
    """All of them."""
    groups = (("store", "StoreError", bad_stores()), ("store", READS, odd_stores()))
    groups += (("detector", "ModelError", bad_detectors()), ("detector", READS, odd_detectors()))
    groups += (("checkpoint", "ModelError", bad_checkpoints()),)
    for reader, expected, changes in groups:
        for name, change in changes.items():
            yield MalformedFolder(f"{reader}: {name}", reader, change, expected)


def bytes_of(file: str, make: Callable[[bytes], bytes], *, seal: bool = True) -> Change:
    """The bytes of a file changed."""

    def change(folder: Path) -> None:
        path = folder / file
        path.write_bytes(make(path.read_bytes()))
        if seal:
            fit_checksums(folder)

    return change


def values_of(file: str, *, seal: bool = True, **values: Any) -> Change:
    """Values of a JSON file changed, by ``a__b``; ... takes one out."""

    def edit(data: bytes) -> bytes:
        content = json.loads(data)
        for path, value in values.items():
            group = content
            *parents, last = path.split("__")
            for parent in parents:
                group = group[parent]
            group[last] = value
            if value is ...:
                del group[last]
        return json.dumps(content).encode()

    return bytes_of(file, edit, seal=seal)


def fit_checksums(folder: Path) -> None:
    """Checksums that fit."""
    if (folder / "checksums.json").exists():
        names = ("weights.safetensors", "contract.json")
        sums = {name: digest_file(folder / name) for name in names}
        (folder / "checksums.json").write_text(json.dumps(sums))
    elif (folder / "samples.csv").exists() and (folder / "store.json").exists():
        try:
            content = json.loads((folder / "store.json").read_bytes())
            content["digests"]["samples.csv"] = digest_file(folder / "samples.csv")
            (folder / "store.json").write_text(json.dumps(content))
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # no contract to seal any more


def gone(file: str) -> Change:
    """A file missing."""
    return lambda folder: (folder / file).unlink()


def as_folder(file: str) -> Change:
    """A folder in a file's place."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return change


def npy(shape: str, descr: str = "'|u1'", order: str = "False") -> Callable[[bytes], bytes]:
    """Another header of an array, before the same bytes."""
    head = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    start = b"\x93NUMPY\1\0" + struct.pack("<H", len(head) + 1) + head + b"\n"
    return lambda data: start + data[128:]


def bad_stores() -> Mapping[str, Change]:
    """`SampleStore` refuses them."""
    pickled = pickle.dumps({"a": 1})
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    samples: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "cut": lambda data: data[:-100],
        "head alone": lambda data: data[:128],
        "half a head": lambda data: data[:60],
        "another mark": lambda data: b"NUMPY" + data[5:],
        "a pickle": lambda _: pickled,
        "an archive of arrays": lambda _: archive.getvalue(),
        "version 2": lambda data: data[:6] + b"\2" + data[7:],
        "version 9": lambda data: data[:6] + b"\x09" + data[7:],
        "objects": npy("(6,)", "'|O'"),
        "fields": npy("(6,)", "[('a', '|O'), ('b', '<i4')]"),
        "an unknown type": npy("(6, 32, 32, 3)", "'<x9'"),
        "a type of code": npy("(6,)", "__import__('os').system('true')"),
        "no shape": npy("()"),
        "a negative shape": npy("(-6, 32, 32, 3)"),
        "a shape of words": npy("('a',)"),
        "a huge shape": npy("(10**18,)"),
        "a huge shape by digits": npy(f"({10**18},)"),
        "more samples than bytes": npy("(7, 32, 32, 3)"),
        "fewer samples": npy("(5, 32, 32, 3)"),
        "another order": npy("(3, 32, 32, 6)", order="True"),
        "a head of brackets": npy("(" * 5000),
        "a pixel changed": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    }
    rows: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "header alone": lambda data: data.splitlines(keepends=True)[0],
        "a row missing": lambda data: b"".join(data.splitlines(keepends=True)[:-1]),
        "a row twice": lambda data: data + data.splitlines(keepends=True)[-1],
        "an id twice": lambda data: data.replace(b"s1,", b"s0,"),
        "a column missing": lambda data: data.replace(b"truth", b"ruth"),
        "truth 7": lambda data: data.replace(b",1,0", b",1,7"),
        "truth of words": lambda data: data.replace(b",1,0", b",1,no"),
        "semi_label 0": lambda data: data.replace(b",1,0", b",0,0"),
        "semi_label 300": lambda data: data.replace(b",1,0", b",300,0"),
        "half a number": lambda data: data.replace(b",1,0", b",1,0.5"),
        "Latin-1": lambda data: data.replace(b"s0", b"\xe4"),
        "UTF-16": lambda data: data.decode().encode("utf-16"),
        "semicolons": lambda data: data.replace(b",", b";"),
        "20,000 columns": lambda data: data.replace(b"truth", b"truth" + b",x" * 20_000),
    }
    contract: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "cut": lambda data: data[:-40],
        "a list": lambda _: b"[1]",
        "deep": lambda _: b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "Latin-1": lambda data: data.replace(b"tiles", b"\xe4"),
        "a number of 5,000 digits": lambda _: b'{"a": ' + b"9" * 5000 + b"}",
    }
    values: dict[str, dict[str, Any]] = {
        "another format": {"format": "esad-med store 1"},
        "no format": {"format": ...},
        "no shape": {"shape": ...},
        "shape of words": {"shape": "6"},
        "no digests": {"digests": ...},
        "digests of a list": {"digests": [1]},
        "no value range": {"value_range": ...},
        "a value range of one": {"value_range": [1]},
        "a value range of words": {"value_range": ["a", "b"]},
        "a value range turned round": {"value_range": [255, 0]},
        "a value range of no numbers": {"value_range": [None, 1]},
        "an endless value range": {"value_range": [0, float("inf")]},
        "another type": {"dtype": "float32"},
    }
    return {
        **{f"samples, {n}": bytes_of("samples.npy", make) for n, make in samples.items()},
        **{f"rows, {n}": bytes_of("samples.csv", make) for n, make in rows.items()},
        **{f"contract, {n}": bytes_of("store.json", make) for n, make in contract.items()},
        **{f"contract, {n}": values_of("store.json", **v) for n, v in values.items()},
        "rows edited without a sum": bytes_of(
            "samples.csv", lambda data: data.replace(b"p", b"q"), seal=False
        ),
        "no samples": gone("samples.npy"),
        "no rows": gone("samples.csv"),
        "no contract": gone("store.json"),
        "samples a folder": as_folder("samples.npy"),
        "rows a folder": as_folder("samples.csv"),
        "contract a folder": as_folder("store.json"),
    }


def odd_stores() -> Mapping[str, Change]:
    """Unusual, and stores all the same."""
    return {
        "good": lambda folder: None,
        "a column more": bytes_of("samples.csv", lambda d: d.replace(b"\n", b",x\n")),
        "a file more": lambda folder: (folder / "notes.txt").write_text("x"),
        "a contract in one line": values_of("store.json"),
        "an unknown key": values_of("store.json", scanner="A"),
        "a null character": bytes_of("samples.csv", lambda d: d.replace(b"s0", b"s\0")),
        "a patient called NA": bytes_of("samples.csv", lambda d: d.replace(b",p,", b",NA,")),
    }


def tensors(head: object, body: bytes = bytes(64)) -> Callable[[bytes], bytes]:
    """A safetensors file of any head."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return lambda _: struct.pack("<Q", len(text)) + text + body


def bad_detectors() -> Mapping[str, Change]:
    """`Detector.load` refuses them."""
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    weights: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "cut": lambda data: data[:-100],
        "a pickle": lambda _: pickle.dumps({"a": 1}),
        "of another network": tensors({"a": one}, bytes(16)),
        "of no tensors": tensors({}, b""),
        "a head of no JSON": tensors(b"{]"),
        "a head of a list": tensors([1]),
        "a head of zeros": lambda data: bytes(8) + data[8:],
        "a head beyond the end": lambda data: struct.pack("<Q", 1 << 40) + data[8:],
        "overlapping tensors": tensors({"a": one, "b": one}, bytes(16)),
        "a tensor beyond the end": tensors({"a": one | {"data_offsets": [0, 1 << 40]}}),
        "a tensor turned round": tensors({"a": one | {"data_offsets": [16, 0]}}),
        "a huge shape": tensors({"a": one | {"shape": [1 << 40, 1 << 40]}}),
        "an unknown type": tensors({"a": one | {"dtype": "F3"}}),
        "a type that torch lacks": tensors(
            {"a": {**one, "dtype": "F8_E8M0", "shape": [16]}}, bytes(16)
        ),
        "a type of half bytes": tensors({"a": {**one, "dtype": "F4", "shape": [32]}}, bytes(16)),
        "garbage behind the end": lambda data: data + b"garbage",
    }
    contract: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "cut": lambda data: data[:-40],
        "a list": lambda _: b"[1]",
        "deep": lambda _: b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "Latin-1": lambda data: data.replace(b"histology", b"\xe4"),
    }
    values: dict[str, dict[str, Any]] = {
        "another format": {"format": "2"},
        "an unknown key": {"extra": 1},
        "a billion members": {"members": 10**9},
        "no members": {"members": 0},
        "3 members": {"members": 3},
        "a wider network": {"network__width": 1.0},
        "an endless network": {"network__width": float("inf")},
        "a network of another kind": {"network__kind": "transformer"},
        "a network for vectors": {"network": {"kind": "vector", "features": 3}},
        "a network of many layers": {
            "network": {"kind": "vector", "features": 3, "hidden": [1 << 40]}
        },
        "no channels": {"network__channels": 0},
        "many channels": {"network__channels": 1 << 62},
        "samples of no shape": {"input__sample_shape": []},
        "samples of two sides": {"input__sample_shape": [32, 32]},
        "samples of five sides": {"input__sample_shape": [1, 1, 32, 32, 3]},
        "samples of nothing": {"input__sample_shape": [0, 0, 3]},
        "huge samples": {"input__sample_shape": [1 << 30, 1 << 30, 3]},
        "samples of other channels": {"input__sample_shape": [32, 32, 1]},
        "vectors for pictures": {"input__sample_shape": [32]},
        "objects as samples": {"input__dtype": "object"},
        "a value range of nothing": {"input__value_range": [1, 1]},
        "a value range turned round": {"input__value_range": [255, 0]},
        "no calibration": {"calibration": ...},
        "no quantiles": {"calibration__quantiles": []},
        "quantiles of words": {"calibration__quantiles": ["a", "b"]},
        "quantiles that fall": {"calibration__quantiles": [3.0, 2.0, 1.0]},
        "views 100": {"views": 100},
        "negative weights": {"fusion__norm_weight": -1},
        "a fusion of other members": {"fusion": _fusion(5)},
        "a scaling of other columns": {"scaling": {"mean": [1.0], "std": [1.0]}},
        "code as a modality": {"input__modality": {"__import__": "os"}},
    }
    return {
        **{f"weights, {n}": bytes_of("weights.safetensors", m) for n, m in weights.items()},
        **{f"contract, {n}": bytes_of("contract.json", m) for n, m in contract.items()},
        **{f"contract, {n}": values_of("contract.json", **v) for n, v in values.items()},
        "weights changed without a sum": bytes_of(
            "weights.safetensors", lambda d: d[:-1] + bytes([d[-1] ^ 1]), seal=False
        ),
        "contract changed without a sum": values_of("contract.json", seal=False, members=1),
        "no weights": gone("weights.safetensors"),
        "no contract": gone("contract.json"),
        "no sums": gone("checksums.json"),
        "sums of a list": lambda folder: (folder / "checksums.json").write_text("[]"),
        "weights of no numbers": _nan_weights,
    }


def _fusion(members: int) -> dict[str, Any]:
    center = {"reconstruction_center": 0.0, "reconstruction_scale": 1.0}
    center |= {"norm_center": 0.0, "norm_scale": 1.0}
    weights = {"reconstruction_weight": 1.0, "norm_weight": 1.0}
    return {"mode": "standardized", "members": [center] * members, **weights}


def _nan_weights(folder: Path) -> None:
    from safetensors.torch import load, save

    path = folder / "weights.safetensors"
    weights = {n: w.fill_(torch.nan) if w.is_floating_point() else w
               for n, w in load(path.read_bytes()).items()}  # fmt: skip
    path.write_bytes(save(weights))
    fit_checksums(folder)


def odd_detectors() -> Mapping[str, Change]:
    """Unusual, and detectors all the same."""
    return {
        "good": lambda folder: None,
        "no card": gone("README.md"),
        "a file more": lambda folder: (folder / "notes.txt").write_text("x"),
        "samples of an odd side": values_of("contract.json", input__sample_shape=[33, 33, 3]),
        "one member of two": values_of("contract.json", members=1),
        "a contract in one line": values_of("contract.json"),
    }


def bad_checkpoints() -> Mapping[str, Change]:
    """`load_checkpoint` refuses them."""

    def pickled(value: object) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream)
        return stream.getvalue()

    contents = {
        "no file of torch's": b"x" * 100,
        "empty": b"",
        "a pickle": pickle.dumps({"a": 1}),
        "a call": pickled(print),
        "a list": pickled([1, 2]),
        "cut": pickled({"epoch": 1, "a": torch.zeros(100)})[:-300],
        "an archive of nothing": b"PK\5\6" + bytes(18),
    }

    def write(data: bytes, **pointer: Any) -> Change:
        def change(folder: Path) -> None:
            save_checkpoint(folder, 0, {"epoch": 1})
            file = next(folder.glob("*.pt"))
            file.write_bytes(data)
            values = {"file": file.name, "epoch": 1, "sha256": digest_file(file)} | pointer
            (folder / "member0.json").write_text(json.dumps(values))

        return change

    return {name: write(data) for name, data in contents.items()} | {
        "a file outside": write(b"x", file="../good/README.md"),
        "an absolute file": write(b"x", file="/etc/passwd"),
        "no file": write(b"x", file=""),
        "another sum": write(b"x", sha256="0"),
    }
