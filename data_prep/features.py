"""Feature files of CLAM and TRIDENT: HDF5 with a vector and a corner per tile of one slide.

FILE.h5/features   (n, d) or (1, n, d), float16, float32 or float64
FILE.h5/coords     (n, 2), top-left corners (x, y) in level-0 pixels; with TRIDENT's attributes

CLAM writes no attributes beside features. What we write ourselves also names the encoder and the
preparation of the tiles, see `esad_med.outputs.exchange`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from esad_med.base.errors import CaseError, EsadError
from esad_med.base.limits import Limits
from esad_med.base.text_limits import parse_json

FEATURE_SUFFIXES = (".h5", ".hdf5")
ENCODER, PREPARATION = "esad_encoder", "esad_preparation"  # attributes of ours, as JSON

_NUMBERS = (
    *("patch_size", "patch_size_level0", "overlap", "tile_px", "target_magnification"),
    *("level0_mpp", "level0_width", "level0_height"),
)
_MIB = 1 << 20
_BLOCK_BYTES = 16 * _MIB
_MOST_DIMENSIONS = 65_536
_MOST_TILES = 50_000_000  # as of a grid
_MOST_PIXELS = 1 << 31  # along a side of a slide
_MOST_RATIO = 100  # of bytes claimed to bytes stored: float32 hardly compresses, fill values do
_MOST_ATTRIBUTE = 1 << 18  # bytes
# What h5py is known to raise on damaged files.
_DAMAGED = (
    *(OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError),
    *(OverflowError, MemoryError, IndexError, NotImplementedError, SystemError),
)


@dataclass(frozen=True)
class FeatureHeader:
    """What a feature file says besides its vectors; None where it says nothing.

    Attributes:
        xy_level0: (n, 2) int64, top-left corners in level-0 pixels.
        dim: length of a vector.
        tile_px: edge of a tile in the pixels an encoder got before its own resizing.
        edge_level0: edge of a tile in level-0 pixels.
        overlap_px: pixels that neighbors share, of ``tile_px``.
        mpp: µm per pixel of the tiles, from level-0 mpp, else from the target magnification.
        mpp_level0: of level 0, likewise.
        slide_size: (width, height) at level 0.
        encoder: identity of the encoder as plain values, of our own files.
        preparation: of the tiles as plain values, of our own files.
    """

    xy_level0: npt.NDArray[np.int64]
    dim: int
    tile_px: int | None
    edge_level0: float | None
    overlap_px: int
    mpp: float | None
    mpp_level0: float | None
    slide_size: tuple[int, int] | None
    encoder: Mapping[str, Any] | None
    preparation: Mapping[str, Any] | None

    def __len__(self) -> int:
        return len(self.xy_level0)


class FeatureFile:
    """An open feature file whose parts agree; vectors are read in blocks.

    Attributes:
        header: what it says besides them.
    """

    def __init__(self, header: FeatureHeader, features: Any) -> None:
        self.header = header
        self._features = features

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors in order, (b, d) float32 at a time.

        Raises:
            CaseError: damaged data, or values that are not finite numbers in float32.
        """
        count, features = len(self.header), self._features
        rows = max(1, _BLOCK_BYTES // (self.header.dim * features.dtype.itemsize))
        if features.chunks:  # a chunk is unpacked whole, so take whole ones
            own = features.chunks[-2]
            rows = max(1, rows // own) * own
        for start in range(0, count, rows):
            place = slice(start, min(start + rows, count))
            try:
                found = features[0, place] if features.ndim == 3 else features[place]
            except _DAMAGED as error:
                raise CaseError(
                    f"damaged from vector {start} on ({error}); copy it again"
                ) from error
            with np.errstate(over="ignore", invalid="ignore"):
                block = np.ascontiguousarray(found, dtype=np.float32)
            finite = np.isfinite(block).all(1)
            if not finite.all():
                row = int(np.argmin(finite))
                value = found[row][~np.isfinite(block[row])][0]
                raise CaseError(
                    f"vector {start + row} holds {value}, expected finite numbers; run the encoder"
                    " again, in float32"
                )
            yield block


@contextmanager
def open_features(path: Path, *, limits: Limits | None = None) -> Iterator[FeatureFile]:
    """Open a feature file after checking that its parts agree and lie within the limits.

    Only data of the file itself is read: no links, no external storage, no virtual data sets, no
    Python objects.

    Raises:
        CaseError: not such a file, damaged, or beyond the limits; the message begins with its name.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise CaseError("not a regular file")
        try:
            file = h5py.File(path, "r", locking=False)
        except _DAMAGED as error:
            raise CaseError(f"not an HDF5 file ({_reason(error)})") from error
        with file:
            yield _open(file, limits or Limits())
    except CaseError as error:
        if str(error).startswith(path.name):
            raise
        raise CaseError(f"{path.name}: {error}") from error.__cause__


def _open(file: Any, limits: Limits) -> FeatureFile:
    try:
        features, coords = _dataset(file, "features"), _dataset(file, "coords")
        count, dim = _check_features(features, limits)
        corners = _read_corners(coords, count, limits)
        header = _header(corners, dim, {**_attributes(features), **_attributes(coords)})
    except EsadError:
        raise
    except _DAMAGED as error:
        raise CaseError(f"damaged ({_reason(error)}); copy it again") from error
    return FeatureFile(header, features)


def _dataset(file: Any, name: str) -> Any:
    """A data set whose bytes lie in the file itself."""
    link = file.get(name, getlink=True)
    if link is None:
        found = ", ".join(sorted(map(str, file))[:10]) or "nothing"
        raise CaseError(
            f"no data set '{name}', found {found}; expected features and coords, as CLAM and"
            " TRIDENT write them"
        )
    if not isinstance(link, h5py.HardLink):
        raise CaseError(f"'{name}' is a link to elsewhere, expected data; copy the data into it")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise CaseError(f"'{name}' is a {type(found).__name__.lower()}, expected a data set")
    if found.external or found.is_virtual:
        raise CaseError(f"'{name}' lies in other files, expected data; copy the data into it")
    return found


def _check_features(features: Any, limits: Limits) -> tuple[int, int]:
    """Count and length of the vectors."""
    shape, kind = features.shape, features.dtype
    if kind.kind != "f" or kind.itemsize not in (2, 4, 8):
        raise CaseError(f"features are {kind}, expected float16, float32 or float64")
    if shape is None or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise CaseError(
            f"features of shape {_shape(shape)}, expected (n, d) or (1, n, d), one vector per tile"
        )
    count, dim = shape[-2:]
    if count < 1:
        raise CaseError("no vectors, expected one per tile; was there tissue on the slide?")
    if not 1 <= dim <= _MOST_DIMENSIONS or count > _MOST_TILES:
        raise CaseError(
            f"{count} vectors of {dim} values, expected up to {_MOST_TILES} of up to"
            f" {_MOST_DIMENSIONS}"
        )
    if count * dim * 4 > limits.features_mib * _MIB:
        raise CaseError(
            f"its vectors take {count * dim * 4 / _MIB:,.0f} MiB, expected at most"
            f" {limits.features_mib:g} (limits.features_mib)"
        )
    claimed, stored = count * dim * kind.itemsize, features.id.get_storage_size()
    if claimed > _MOST_RATIO * stored:
        raise CaseError(
            f"features claim {claimed} bytes and store {stored}: they were never written, or hold"
            " the same value all over; run the encoder again"
        )
    _check_chunks(features, "features", limits)
    return count, dim


def _check_chunks(data: Any, name: str, limits: Limits) -> None:
    """A chunk is unpacked whole, however little of it is asked for."""
    if data.chunks:
        size = int(np.prod(data.chunks, dtype=object)) * data.dtype.itemsize
        if size > limits.unpacked_mib * _MIB:
            raise CaseError(
                f"a chunk of '{name}' takes {size / _MIB:,.0f} MiB when unpacked, expected at most"
                f" {limits.unpacked_mib:g} (limits.unpacked_mib)"
            )


def _read_corners(coords: Any, count: int, limits: Limits) -> npt.NDArray[np.int64]:
    if coords.dtype.kind not in "iuf" or coords.dtype.itemsize > 8:
        raise CaseError(f"coords are {coords.dtype}, expected whole numbers (x, y)")
    shape = coords.shape
    if shape is not None and len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if shape != (count, 2):
        raise CaseError(
            f"coords of shape {_shape(coords.shape)} beside {count} vectors, expected ({count}, 2);"
            " the parts come from different runs"
        )
    _check_chunks(coords, "coords", limits)
    found = np.asarray(coords[()]).reshape(count, 2)
    with np.errstate(invalid="ignore"):
        corners = found.astype(np.int64)
        good = (corners == found) & (found >= 0) & (found < _MOST_PIXELS)
    if not good.all():
        row = int(np.argmin(good.all(1)))
        raise CaseError(
            f"corner {row} is {found[row].tolist()}, expected whole numbers of level-0 pixels, 0 or"
            " more"
        )
    if len(np.unique(corners[:, 0] * _MOST_PIXELS + corners[:, 1])) != count:
        raise CaseError("two vectors have one corner, expected each tile once")
    return corners


def _attributes(data: Any) -> dict[str, Any]:
    """The attributes that we look at, as plain values."""
    found: dict[str, Any] = {}
    for name in (*_NUMBERS, ENCODER, PREPARATION):
        if name not in data.attrs:
            continue
        large = data.attrs.get_id(name).get_storage_size() > _MOST_ATTRIBUTE
        value = b"" if large else data.attrs[name]
        if large or (isinstance(value, str | bytes) and len(value) > _MOST_ATTRIBUTE):
            raise CaseError(f"attribute '{name}' is longer than {_MOST_ATTRIBUTE >> 10} KiB")
        if name in (ENCODER, PREPARATION):
            found[name] = _json(name, value)
        else:
            found[name] = _number(name, value)
    return found


def _json(name: str, value: object) -> Mapping[str, Any]:
    text = value.encode() if isinstance(value, str) else value
    try:
        if isinstance(text, bytes) and isinstance(values := parse_json(text, nesting=8), dict):
            return values
    except ValueError as error:
        raise CaseError(f"attribute '{name}' is no JSON ({error}); write the file again") from error
    raise CaseError(f"attribute '{name}' is no JSON object; write the file again")


def _number(name: str, value: object) -> float | None:
    """A positive number; None for what TRIDENT writes where it does not know."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise CaseError(f"attribute '{name}' is no number")
    number = float(array.reshape(()))
    return number if 0 < number < _MOST_PIXELS else None


def _header(corners: npt.NDArray[np.int64], dim: int, known: Mapping[str, Any]) -> FeatureHeader:
    tile, edge = known.get("tile_px") or known.get("patch_size"), known.get("patch_size_level0")
    mpp_level0, mpp = known.get("level0_mpp"), None
    if mpp_level0 and edge and tile:
        mpp = mpp_level0 * edge / tile
    elif target := known.get("target_magnification"):
        mpp = 10 / target  # nominal: 40x is 0.25 µm per pixel
    size = known.get("level0_width"), known.get("level0_height")
    whole = (int(size[0]), int(size[1])) if size[0] and size[1] else None
    if whole and (corners.max(0) >= whole).any():
        raise CaseError(
            f"a corner at {corners.max(0).tolist()} on a slide of {list(whole)} pixels; is it of"
            " another slide?"
        )
    return FeatureHeader(
        xy_level0=corners,
        dim=dim,
        tile_px=int(tile) if tile else None,
        edge_level0=edge,
        overlap_px=int(known.get("overlap") or 0),
        mpp=mpp,
        mpp_level0=mpp_level0,
        slide_size=whole,
        encoder=known.get(ENCODER),
        preparation=known.get(PREPARATION),
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"({', '.join(map(str, shape))})"


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
