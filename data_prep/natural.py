"""MNIST, Fashion-MNIST and CIFAR-10 (Tables 1, 2, 8, 9) from their published files.

MNIST and Fashion-MNIST are IDX files, packed by gzip or not, whose content is known byte by byte,
so that a file that agrees needs no further check. CIFAR-10 is read from its binary batches, or from
a copy as JPEG, whose pixels differ a little; `LabeledImages.source` says which it was.
"""

import gzip
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from esad_med.base.errors import CaseError
from esad_med.base.interrupts import raise_if_interrupted

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int8]

#: File of MNIST's family -> bytes before its data, and the data's shape.
_IDX: dict[str, tuple[int, tuple[int, ...]]] = {
    "train-images-idx3-ubyte": (16, (60_000, 28, 28, 1)),
    "train-labels-idx1-ubyte": (8, (60_000,)),
    "t10k-images-idx3-ubyte": (16, (10_000, 28, 28, 1)),
    "t10k-labels-idx1-ubyte": (8, (10_000,)),
}
#: SHA-256 of the unpacked files, in the order of `_IDX`.
_MNIST = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
_FASHION_MNIST = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
_GARMENTS = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_PER_BATCH = 10_000
_EDGE = 32
_JPEGS = "cifar10_jpeg.npz"
_PARTS = ("jpeg", "offsets", "labels")
_MOST_JPEG_BYTES = 256 << 20  # the copy has 53 MiB
#: What numpy raises on a damaged .npz, and Pillow on a damaged picture.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, LookupError, SyntaxError),
    *(RuntimeError, MemoryError, OverflowError),
)
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, LookupError),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


@dataclass(frozen=True)
class LabeledImages:
    """A data set with its official division.

    Attributes:
        train: (n, h, w, c) uint8.
        train_labels: number of the class, (n,) int8.
        test: (m, h, w, c) uint8.
        test_labels: (m,) int8.
        classes: their names, by number.
        source: what was read, for tables, such as "CIFAR-10 (JPEG copy)".
    """

    train: Bytes
    train_labels: Labels
    test: Bytes
    test_labels: Labels
    classes: tuple[str, ...]
    source: str


def read_mnist(folder: Path) -> LabeledImages:
    """Read the four IDX files of MNIST (LeCun et al., 1998), plain or as ``.gz``.

    Raises:
        CaseError: a file is missing, damaged, or not MNIST's.
    """
    return _read_idx_files(folder, _MNIST, tuple("0123456789"), "MNIST")


def read_fashion_mnist(folder: Path) -> LabeledImages:
    """Read the four IDX files of Fashion-MNIST (Xiao et al., 2017), plain or as ``.gz``.

    Raises:
        CaseError: a file is missing, damaged, or not Fashion-MNIST's.
    """
    return _read_idx_files(folder, _FASHION_MNIST, _GARMENTS, "Fashion-MNIST")


def read_cifar10(folder: Path) -> LabeledImages:
    """Read CIFAR-10 (Krizhevsky, 2009): its binary batches, or else a copy as JPEG.

    Args:
        folder: holds ``cifar-10-batches-bin`` or its files, or ``cifar10_jpeg.npz``. The latter has
            per split (train, test) all JPEG streams one after the other (``train_jpeg``, uint8),
            where each begins and the last ends (``train_offsets``, n + 1), and ``train_labels``.

    Raises:
        CaseError: neither is there, or it is damaged.
    """
    for place in (folder / "cifar-10-batches-bin", folder):
        if (place / _BATCHES[0]).is_file():
            train = [_read_batch(place / name) for name in _BATCHES]
            test = _read_batch(place / "test_batch.bin")
            return _cifar10(place, _joined(train), test, "CIFAR-10 (binary batches)")
    if (folder / _JPEGS).is_file():
        return _read_jpegs(folder / _JPEGS)
    python = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")
    if found := [name for name in python if (folder / name).exists()]:
        raise CaseError(
            f"{folder}: holds {found[0]}, CIFAR-10's Python version, which is made of pickles;"
            " pickle is never read, since it can run any program; fetch and unpack the binary"
            " version (cifar-10-binary.tar.gz)"
        )
    raise CaseError(
        f"{folder}: no CIFAR-10; expected the folder cifar-10-batches-bin, unpacked from"
        f" cifar-10-binary.tar.gz, or {_JPEGS}"
    )


def _read_idx_files(
    folder: Path, digests: tuple[str, ...], classes: tuple[str, ...], name: str
) -> LabeledImages:
    arrays = [
        _read_idx(folder, file, digest, name) for file, digest in zip(_IDX, digests, strict=True)
    ]
    train, train_labels, test, test_labels = arrays
    return LabeledImages(
        train, train_labels.view(np.int8), test, test_labels.view(np.int8), classes, name
    )


def _read_idx(folder: Path, file: str, digest: str, name: str) -> Bytes:
    """The data of one IDX file; its header is part of what the digest vouches for."""
    header, shape = _IDX[file]
    path = next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)
    if path is None:
        raise CaseError(f"{folder}: no {file} or {file}.gz, expected the four files of {name}")
    data = _read_at_most(path, header + int(np.prod(shape)))
    if hashlib.sha256(data).hexdigest() != digest:
        raise CaseError(
            f"{path}: its content is not that of {name} (another SHA-256 than {digest[:12]}…);"
            " fetch the original again, and keep MNIST and Fashion-MNIST apart: their files are"
            " named alike"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read_at_most(path: Path, size: int) -> bytes:
    """The content of a file, unpacked where it is gzip; no more than one byte over `size`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise CaseError(f"{path}: cannot be read ({error}); fetch it again") from error
    if len(data) != size:
        found = f"only {len(data):,}" if len(data) < size else f"more than {size:,}"
        raise CaseError(f"{path}: {found} bytes, expected {size:,}; fetch it again")
    return data


def _read_batch(path: Path) -> tuple[Bytes, Bytes]:
    """Images and labels of a batch: records of a label and three planes, red first."""
    record = 1 + 3 * _EDGE**2
    data = _read_at_most(path, _PER_BATCH * record)
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    planes = records[:, 1:].reshape(-1, 3, _EDGE, _EDGE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0]


def _joined(parts: list[tuple[Bytes, Bytes]]) -> tuple[Bytes, Bytes]:
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _read_jpegs(path: Path) -> LabeledImages:
    names = [f"{split}_{part}" for split in ("train", "test") for part in _PARTS]
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(member.file_size for member in packed.infolist())
        if size > _MOST_JPEG_BYTES:
            raise CaseError(
                f"{path}: {size >> 20} MiB when unpacked, expected at most"
                f" {_MOST_JPEG_BYTES >> 20}; it is not CIFAR-10's JPEG copy"
            )
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("classes", *names)}
    except _DAMAGED as error:
        raise CaseError(f"{path}: not CIFAR-10's JPEG copy, or damaged ({error})") from error
    if tuple(arrays["classes"].ravel().tolist()) != _THINGS:
        raise CaseError(f"{path}: 'classes' differs, expected {', '.join(_THINGS)}")
    train = _decode_split(path, "train", arrays, len(_BATCHES) * _PER_BATCH)
    test = _decode_split(path, "test", arrays, _PER_BATCH)
    return _cifar10(path, train, test, "CIFAR-10 (JPEG copy)")


def _decode_split(
    path: Path, split: str, arrays: Mapping[str, npt.NDArray[Any]], count: int
) -> tuple[Bytes, npt.NDArray[Any]]:
    streams, offsets, labels = (arrays[f"{split}_{part}"] for part in _PARTS)
    shapes = (streams.shape, offsets.shape, labels.shape)
    kinds = streams.dtype.kind + offsets.dtype.kind + labels.dtype.kind
    if shapes != ((streams.size,), (count + 1,), (count,)) or not re.fullmatch("u[iu][iu]", kinds):
        raise CaseError(
            f"{path}: {split}_jpeg, {split}_offsets and {split}_labels are of shape {shapes},"
            f" expected whole numbers of shape (bytes,), ({count + 1},), ({count},)"
        )
    if offsets[0] != 0 or offsets[-1] != len(streams) or (offsets[1:] <= offsets[:-1]).any():
        raise CaseError(f"{path}: {split}_offsets do not rise from 0 to {len(streams)}, damaged")
    images = np.empty((count, _EDGE, _EDGE, 3), np.uint8)
    for index in range(count):
        raise_if_interrupted()
        stream = streams[offsets[index] : offsets[index + 1]].tobytes()
        try:
            images[index] = _decode(stream)
        except _UNREADABLE as error:
            raise CaseError(f"{path}: {split} image {index} is damaged ({error})") from error
    return images, labels


def _decode(stream: bytes) -> Bytes:
    with Image.open(io.BytesIO(stream), formats=["JPEG"]) as image:
        if (image.size, image.mode) != ((_EDGE, _EDGE), "RGB"):  # before anything is decoded
            raise ValueError(f"{image.mode} of {image.size}, expected RGB of {_EDGE}x{_EDGE}")
        return np.asarray(image)


def _cifar10(
    path: Path,
    train: tuple[Bytes, npt.NDArray[Any]],
    test: tuple[Bytes, npt.NDArray[Any]],
    source: str,
) -> LabeledImages:
    """What was read, if it has as many images of each class as CIFAR-10."""
    for split, labels in (("train", train[1]), ("test", test[1])):
        expected = len(labels) // len(_THINGS)
        for number, name in enumerate(_THINGS):
            if (found := np.count_nonzero(labels == number)) != expected:
                raise CaseError(
                    f"{path}: {found} {split} images of class {number} ({name}), expected"
                    f" {expected}; fetch CIFAR-10 again"
                )
    return LabeledImages(
        train[0], train[1].astype(np.int8), test[0], test[1].astype(np.int8), _THINGS, source
    )
