"""MNIST's files, CIFAR-10's batches and its JPEG copy: composed small, damaged, and the real."""

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from data_prep import natural
from data_prep.natural import read_cifar10, read_fashion_mnist, read_mnist
from esad_med.base.errors import CaseError

MNIST_FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
PER_BATCH = 20  # CIFAR-10's batches hold 10,000
LABELS = np.arange(PER_BATCH, dtype=np.uint8) % 10
THINGS = ["airplane", "automobile", "bird", "cat", "deer"]
THINGS += ["dog", "frog", "horse", "ship", "truck"]
Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four unpacked files of a data set like MNIST: 30 and 20 images of 28x28."""
    rng = np.random.default_rng(0)
    files: dict[str, bytes] = {}
    known: dict[str, tuple[int, tuple[int, ...]]] = {}
    for split, count in (("train", 30), ("t10k", 20)):
        images = struct.pack(">IIII", 2051, count, 28, 28) + rng.bytes(count * 28 * 28)
        labels = struct.pack(">II", 2049, count) + bytes(number % 10 for number in range(count))
        files |= {f"{split}-images-idx3-ubyte": images, f"{split}-labels-idx1-ubyte": labels}
        known[f"{split}-images-idx3-ubyte"] = (16, (count, 28, 28, 1))
        known[f"{split}-labels-idx1-ubyte"] = (8, (count,))
    monkeypatch.setattr(natural, "_IDX", known)
    digests = tuple(hashlib.sha256(files[name]).hexdigest() for name in known)
    monkeypatch.setattr(natural, "_MNIST", digests)
    return files


def write_digits(folder: Path, files: dict[str, bytes], *, packed: bool = True) -> None:
    for name, data in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_packed_or_not(
    tmp_path: Path, digits: dict[str, bytes], packed: bool
) -> None:
    write_digits(tmp_path, digits, packed=packed)
    images = read_mnist(tmp_path)
    assert (images.train.shape, images.test.shape) == ((30, 28, 28, 1), (20, 28, 28, 1))
    assert images.train.tobytes() == digits[MNIST_FILES[0]][16:]
    assert images.test.tobytes() == digits[MNIST_FILES[2]][16:]
    assert images.train_labels.tolist() == list(range(10)) * 3
    assert images.test_labels.tolist() == list(range(10)) * 2
    assert images.train_labels.dtype == images.test_labels.dtype == np.int8
    assert (images.classes[7], images.source) == ("7", "MNIST")


@pytest.mark.parametrize("file", MNIST_FILES)
def test_a_changed_cut_or_swollen_file_is_refused_by_its_name(
    tmp_path: Path, digits: dict[str, bytes], file: str
) -> None:
    data = digits[file]
    size = len(data)
    for other, said in (
        (
            data[:-1] + b"\x0b",
            rf"{file}.gz: its content is not that of MNIST .* fetch the original",
        ),
        (data[:-1], rf"{file}.gz: only {size - 1:,} bytes, expected {size:,}"),
        (data + b"\x00", rf"{file}.gz: more than {size:,} bytes, expected {size:,}"),
    ):
        write_digits(tmp_path, digits | {file: other})
        with pytest.raises(CaseError, match=said):
            read_mnist(tmp_path)


def test_no_more_is_unpacked_than_was_expected(
    tmp_path: Path, digits: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path, digits | {MNIST_FILES[0]: bytes(20 << 20)})
    asked = []
    read = gzip.GzipFile.read

    def noted(file: gzip.GzipFile, size: int | None = -1) -> bytes:
        asked.append(size)
        return read(file, size)

    monkeypatch.setattr(gzip.GzipFile, "read", noted)
    with pytest.raises(CaseError, match=r"more than 23,536 bytes, expected 23,536"):
        read_mnist(tmp_path)
    assert asked == [23_536 + 1]


@pytest.mark.parametrize("damage", ["cut", "checksum", "no gzip", "missing", "a folder"])
def test_broken_archives_are_refused(tmp_path: Path, digits: dict[str, bytes], damage: str) -> None:
    write_digits(tmp_path, digits)
    path = tmp_path / f"{MNIST_FILES[2]}.gz"
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(whole[:1000])
    elif damage == "checksum":
        path.write_bytes(whole[:-8] + b"\x00" * 4 + whole[-4:])
    elif damage == "no gzip":
        path.write_bytes(digits[MNIST_FILES[2]])
    elif damage == "a folder":
        path.mkdir()
    said = "cannot be read" if path.is_file() else "no t10k-images-idx3-ubyte or"
    with pytest.raises(CaseError, match=said):
        read_mnist(tmp_path)


def cifar_pictures(seed: int) -> npt.NDArray[np.uint8]:
    """Pictures of one color each, which JPEG keeps, in (n, h, w, c)."""
    colors = np.random.default_rng(seed).integers(0, 256, (PER_BATCH, 1, 1, 3), np.uint8)
    return np.tile(colors, (1, 32, 32, 1))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 of 100 + 20 images."""
    monkeypatch.setattr(natural, "_PER_BATCH", PER_BATCH)


def write_batches(folder: Path) -> npt.NDArray[np.uint8]:
    """Binary batches with a red, a green and a blue plane; returns their pictures."""
    folder.mkdir(exist_ok=True)
    rng, pictures = np.random.default_rng(0), []
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pictures.append(rng.integers(0, 256, (PER_BATCH, 32, 32, 3), np.uint8))
        records = [
            bytes([label]) + b"".join(picture[..., channel].tobytes() for channel in range(3))
            for label, picture in zip(LABELS, pictures[-1], strict=True)
        ]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    return np.stack(pictures)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_binary_batches_are_read_plane_by_plane(tmp_path: Path, inside: str) -> None:
    pictures = write_batches(tmp_path / inside)
    images = read_cifar10(tmp_path)
    np.testing.assert_array_equal(images.train, pictures[:5].reshape(-1, 32, 32, 3))
    np.testing.assert_array_equal(images.test, pictures[5])
    assert images.train_labels.tolist() == LABELS.tolist() * 5
    assert images.test_labels.tolist() == LABELS.tolist()
    assert (list(images.classes), images.source) == (THINGS, "CIFAR-10 (binary batches)")


@pytest.mark.usefixtures("small")
def test_damaged_batches_are_refused(tmp_path: Path) -> None:
    write_batches(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CaseError, match=r"data_batch_3.bin: only 61,459 bytes, expected 61,460"):
        read_cifar10(tmp_path)
    path.write_bytes(b"\x0b" + whole[1:])
    with pytest.raises(CaseError, match=r"9 train images of class 0 \(airplane\), expected 10"):
        read_cifar10(tmp_path)
    path.unlink()
    with pytest.raises(CaseError, match=r"data_batch_3.bin: cannot be read"):
        read_cifar10(tmp_path)


def test_pickles_are_refused_without_being_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (tmp_path / "run",)

    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    for folder in (tmp_path, tmp_path / "cifar-10-batches-py"):
        with pytest.raises(CaseError, match=r"pickle is never read.* the binary version"):
            read_cifar10(folder)
    with pytest.raises(CaseError, match=r"no CIFAR-10; expected the folder cifar-10-batches-bin"):
        read_cifar10(tmp_path / "elsewhere")
    np.savez(tmp_path / "cifar10_jpeg.npz", classes=np.array([Trap()], object))
    with pytest.raises(CaseError, match="not CIFAR-10's JPEG copy, or damaged"):
        read_cifar10(tmp_path)
    assert not (tmp_path / "run").exists()


def encoded(picture: npt.NDArray[np.uint8], format: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format, quality=95)
    return stream.getvalue()


def jpeg_copy() -> Arrays:
    """The arrays of a copy, and what each image shows."""
    arrays: Arrays = {"classes": np.array(THINGS)}
    for split, times in (("train", 5), ("test", 1)):
        streams = [encoded(picture) for picture in np.tile(cifar_pictures(7), (times, 1, 1, 1))]
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(streams), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, streams)])
        arrays[f"{split}_labels"] = np.tile(LABELS, times)
    return arrays


@pytest.mark.usefixtures("small")
def test_a_jpeg_copy_is_decoded_and_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "cifar10_jpeg.npz", **jpeg_copy())  # type: ignore[arg-type]
    images = read_cifar10(tmp_path)
    shown = cifar_pictures(7).astype(int)
    assert images.train.shape == (100, 32, 32, 3)
    assert np.abs(images.train - np.tile(shown, (5, 1, 1, 1))).max() <= 3
    assert np.abs(images.test - shown).max() <= 3
    assert images.train_labels.tolist() == LABELS.tolist() * 5
    assert images.source == "CIFAR-10 (JPEG copy)"
    write_batches(tmp_path / "cifar-10-batches-bin")
    assert read_cifar10(tmp_path).source == "CIFAR-10 (binary batches)"  # better than a copy


def with_image(arrays: Arrays, stream: bytes) -> Arrays:
    """The copy with another first test image."""
    offsets = arrays["test_offsets"]
    rest = arrays["test_jpeg"][offsets[1] :].tobytes()
    moved = np.r_[0, offsets[1:] - offsets[1] + len(stream)]
    return {"test_jpeg": np.frombuffer(stream + rest, np.uint8), "test_offsets": moved}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: {"classes": np.array(THINGS[::-1])}, "'classes' differs, expected airplane"),
        (lambda a: {"classes": np.array(5)}, "'classes' differs"),
        (lambda a: {"test_labels": a["test_labels"][1:]}, r"expected whole numbers of shape"),
        (lambda a: {"test_labels": a["test_labels"] * 1.0}, r"expected whole numbers of shape"),
        (
            lambda a: {"train_labels": a["train_labels"] * 0},
            "100 train images of class 0 .airplane",
        ),
        (lambda a: {"test_offsets": a["test_offsets"][[0, 2, 1, *range(3, 21)]]}, "do not rise"),
        (lambda a: {"train_jpeg": a["train_jpeg"][:-1]}, "train_offsets do not rise from 0"),
        (lambda a: {"test_jpeg": a["test_jpeg"] * 0}, "test image 0 is damaged"),
        (lambda a: with_image(a, a["test_jpeg"][:300].tobytes()), "test image 0 is damaged"),
        (lambda a: with_image(a, encoded(np.zeros((33, 32, 3), np.uint8))), "RGB of .32, 33."),
        (lambda a: with_image(a, encoded(np.zeros((32, 32), np.uint8))), "L of .32, 32."),
        (lambda a: with_image(a, encoded(np.zeros((32, 32, 3), np.uint8), "PNG")), "is damaged"),
    ],
)
def test_a_damaged_jpeg_copy_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    arrays = jpeg_copy()
    np.savez(tmp_path / "cifar10_jpeg.npz", **(arrays | change(arrays)))
    with pytest.raises(CaseError, match=said):
        read_cifar10(tmp_path)


def test_what_is_no_jpeg_copy_or_far_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cifar10_jpeg.npz"
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CaseError, match="not CIFAR-10's JPEG copy, or damaged"):
        read_cifar10(tmp_path)
    np.savez(path, classes=np.array(THINGS))
    with pytest.raises(CaseError, match=r"or damaged .'train_jpeg is not a file"):
        read_cifar10(tmp_path)
    monkeypatch.setattr(natural, "_MOST_JPEG_BYTES", 2 << 20)
    np.savez_compressed(path, train_jpeg=np.zeros(3 << 20, np.uint8))
    with pytest.raises(CaseError, match="3 MiB when unpacked, expected at most 2; it is not CIFAR"):
        read_cifar10(tmp_path)


@pytest.mark.data
def test_the_real_mnist_has_its_known_counts_and_fashion_mnist_is_not_taken_for_it(
    data_root: Path,
) -> None:
    folder = data_root / "natural"
    images = read_mnist(folder / "mnist")
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(images.train_labels).tolist() == counts
    assert images.train.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    fashion = read_fashion_mnist(folder / "fashion-mnist")
    assert (np.bincount(fashion.train_labels) == 6000).all()
    assert fashion.train.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert (fashion.classes[9], fashion.source) == ("ankle boot", "Fashion-MNIST")
    with pytest.raises(CaseError, match=r"not that of MNIST .* keep MNIST and Fashion-MNIST apart"):
        read_mnist(folder / "fashion-mnist")


@pytest.mark.data
def test_real_jpegs_of_every_class_are_decoded(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natural, "_PER_BATCH", 200)
    chosen: Arrays = {"classes": np.array(THINGS)}
    with np.load(data_root / "natural" / "cifar10" / "cifar10_jpeg.npz") as whole:
        for split, each in (("train", 100), ("test", 20)):
            streams, offsets, labels = (
                whole[f"{split}_{p}"] for p in ("jpeg", "offsets", "labels")
            )
            rows = np.concatenate([np.flatnonzero(labels == number)[:each] for number in range(10)])
            parts = [streams[offsets[row] : offsets[row + 1]] for row in rows]
            chosen[f"{split}_jpeg"] = np.concatenate(parts)
            chosen[f"{split}_offsets"] = np.cumsum([0, *map(len, parts)])
            chosen[f"{split}_labels"] = labels[rows]
    np.savez(tmp_path / "cifar10_jpeg.npz", **chosen)  # type: ignore[arg-type]
    images = read_cifar10(tmp_path)
    assert np.bincount(images.train_labels).tolist() == [100] * 10
    mean = images.train.mean(axis=(0, 1, 2)) / 255
    assert mean == pytest.approx([0.4913, 0.4821, 0.4465], abs=0.02)  # those of the whole
