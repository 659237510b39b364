"""Composed slides: real tiles put together to a pyramid that OpenSlide opens, with annotations.

They exercise the whole path from a slide to a report where no slide may be shipped. Tiles are
reused, turned and mirrored; no diagnosis can be drawn from them, and each file says so.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.color import OD_TABLE, Bytes, Floats
from data_prep.slide_writing import cell_outlines, write_asap, write_manifest, write_pyramid
from data_prep.vahadane import REFERENCE_MATRIX, ordered, sparse_concentrations
from esad_med.base.cases import Case
from esad_med.base.errors import StoreError
from esad_med.base.runs import ensure_folder
from esad_med.base.store import SampleStore

GLASS = 243  # gray level of the empty glass
HE_MATRIX = ordered(REFERENCE_MATRIX)


def compose_from_store(
    store: SampleStore,
    out_dir: Path,
    *,
    normal_slides: int,
    tumor_slides: int,
    seed: int,
    rows: npt.NDArray[np.int64] | None = None,
    tumor_share: tuple[float, float] = (0.02, 0.20),
    tiles_per_slide: int = 480,
    look: float = 1.0,
    mpp: float | None = None,
    split: str = "test",
    prefix: str = "composed",
) -> list[Case]:
    """Compose slides from a store's tiles, each with a stain look of its own.

    Level 0 is the resolution of the tiles, so every pixel is a tile's own but for the look and
    the JPEG. Tissue is a blob of whole tiles on glass, anchored to the tile grid; tumor tiles
    lie in one to three connected nests, outlined in an ASAP XML beside the slide.

    Args:
        store: tiles (n, h, h, 3) uint8 with ``truth``; 16 must divide h.
        out_dir: gets ``*.tif``, ``*.xml`` and ``manifest.csv``.
        normal_slides: how many slides without tumor.
        tumor_slides: how many with tumor.
        seed: decides everything; equal seeds give equal bytes.
        rows: indices of the tiles that may be used; all by default.
        tumor_share: least and greatest share of tumor tiles on a tumor slide, drawn evenly.
        tiles_per_slide: tissue tiles of each slide; tiles are drawn again if there are fewer.
        look: strength of the stain look; 0 leaves the colors as they are.
        mpp: µm per pixel of the tiles; by default the store's own.
        split: split of all slides in the manifest.
        prefix: start of the file names.

    Raises:
        StoreError: the store holds no such tiles.
        ConfigError: ``out_dir`` cannot be written.
    """
    if tiles_per_slide < 1 or not 0 < tumor_share[0] <= tumor_share[1] <= 1:
        raise ValueError("expected at least one tile per slide and shares within (0, 1]")
    pools = _tile_pools(store, rows, tumor=tumor_slides > 0)
    mpp = mpp if mpp is not None else _store_mpp(store)
    ensure_folder(out_dir)
    cases = []
    for index in range(normal_slides + tumor_slides):
        rng = np.random.default_rng([seed, index])
        share = rng.uniform(*tumor_share) if index >= normal_slides else 0.0
        name = f"{prefix}_{'tumor' if share else 'normal'}_{index:02d}"
        nests = max(1, round(share * tiles_per_slide)) if share else 0
        labels = draw_layout(tiles_per_slide, nests, rng)
        picture = _lay_tiles(labels, pools, rng, look)
        cases.append(_write_case(out_dir, name, picture, labels, mpp=mpp, split=split))
    write_manifest(out_dir / "manifest.csv", cases)
    return cases


def draw_layout(tissue: int, tumor: int, rng: np.random.Generator) -> npt.NDArray[np.int8]:
    """Which cells of a slide are glass (-1), normal tissue (0) or tumor (1).

    Args:
        tissue: number of cells that are not glass; they form one blob.
        tumor: how many of them are tumor, in one to three connected nests.
        rng: source of chance.

    Returns:
        (rows, columns), a square with a border of glass.
    """
    side = int(np.ceil(np.sqrt(tissue) * 1.35)) + 4
    labels = np.full((side, side), -1, dtype=np.int8)
    row, column = np.mgrid[:side, :side] - (side - 1) / 2
    distance = np.hypot(row, column) / blob_radius(np.arctan2(row, column), rng, wobble=0.12)
    border = np.maximum(np.abs(row), np.abs(column)) > (side - 1) / 2 - 1
    distance[border] = np.inf
    labels.ravel()[np.argsort(distance, axis=None, kind="stable")[:tissue]] = 0
    remaining = tumor
    for nest in range(3 if tumor >= 12 else 1, 0, -1):
        if remaining:
            _grow_nest(labels, remaining // nest, rng)
        remaining -= remaining // nest
    return labels


def blob_radius(angle: Floats, rng: np.random.Generator, *, wobble: float) -> Floats:
    """Radius of a closed smooth outline at each angle, 0.8 to 1.25."""
    radius = np.ones_like(angle)
    for order in range(2, 6):
        radius += wobble * rng.normal() / order * 2 * np.cos(order * angle + rng.uniform(0, 6.3))
    return np.clip(radius, 0.8, 1.25)


def _grow_nest(labels: npt.NDArray[np.int8], count: int, rng: np.random.Generator) -> None:
    """Turn ``count`` normal cells into one connected nest, growing at random from one cell."""
    cells = np.argwhere(labels == 0)
    nest = [tuple(cells[rng.integers(len(cells))])]
    labels[nest[0]] = 1
    while len(nest) < count:
        edge = sorted(
            {
                (r + dr, c + dc)
                for r, c in nest
                for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))
                if labels[r + dr, c + dc] == 0
            }
        )
        if not edge:
            break  # walled in by glass and other nests
        center = np.mean(nest, axis=0)
        reach = np.linalg.norm(np.array(edge) - center, axis=1) + rng.uniform(0, 2, len(edge))
        nest.append(edge[int(np.argmin(reach))])
        labels[nest[-1]] = 1


def perturb_look(
    matrix: Floats, rng: np.random.Generator, *, strength: float = 1.0
) -> tuple[Floats, Floats]:
    """A stain look: ``matrix`` (2, 3) with its stains turned, and a factor of each stain (2,).

    At strength 1 an entry moves by 8 %, a concentration by 15 % (one standard deviation).
    """
    turned = np.abs(matrix * (1 + strength * rng.normal(0, 0.08, (2, 3))))
    return ordered(turned), np.exp(strength * rng.normal(0, 0.15, 2))


def change_look(rgb: Bytes, matrix: Floats, scale: Floats) -> Bytes:
    """Give H&E tissue another look: OD + (scale C) matrix - C H&E, with C its concentrations.

    What the two stains do not explain stays as it is, so the same matrix changes nothing.

    Args:
        rgb: (n, 3).
        matrix: the stains of the look (2, 3).
        scale: factor of each concentration (2,).
    """
    out = np.empty_like(rgb)
    for start in range(0, len(rgb), 1 << 16):
        part = slice(start, start + (1 << 16))
        od = OD_TABLE[rgb[part]]
        codes = sparse_concentrations(od, HE_MATRIX, 0.01)
        od = np.maximum(od + (codes * scale) @ matrix - codes @ HE_MATRIX, 0)
        out[part] = np.rint(255 * np.exp(-od)).astype(np.uint8)
    return out


def turn(tile: npt.NDArray[np.generic], rng: np.random.Generator) -> npt.NDArray[np.generic]:
    """One of the eight quarter turns and mirror images of (h, h, ...)."""
    tile = np.rot90(tile, int(rng.integers(4)))
    return tile[:, ::-1] if rng.integers(2) else tile


def _lay_tiles(
    labels: npt.NDArray[np.int8],
    pools: Sequence[Bytes],
    rng: np.random.Generator,
    look: float,
) -> Bytes:
    """The picture (h, w, 3): each pool is used up in a random order before it is used again."""
    size = pools[0].shape[1]
    rows, columns = labels.shape
    picture = np.full((rows, size, columns, size, 3), GLASS, dtype=np.uint8)
    for label, pool in enumerate(pools):
        cells = np.argwhere(labels == label)
        order: list[int] = []
        while len(order) < len(cells):
            order.extend(rng.permutation(len(pool)))
        for (row, column), index in zip(cells, order[: len(cells)], strict=True):
            picture[row, :, column] = turn(pool[index], rng)
    if look:
        tissue = np.repeat(np.repeat(labels >= 0, size, axis=0), size, axis=1)
        flat = picture.reshape(rows * size, columns * size, 3)
        flat[tissue] = change_look(flat[tissue], *perturb_look(HE_MATRIX, rng, strength=look))
    return picture.reshape(rows * size, columns * size, 3)


def _write_case(
    out_dir: Path,
    name: str,
    picture: Bytes,
    labels: npt.NDArray[np.int8],
    *,
    mpp: float,
    split: str,
) -> Case:
    size = picture.shape[0] // labels.shape[0]
    write_pyramid(
        out_dir / f"{name}.tif",
        picture,
        mpp=mpp,
        levels=4,
        description=f"esad-med composed slide: tiles of {size} px at {mpp:g} um/px, reused with"
        " flips and rotations, in a stain look of its own; not a patient's slide",
    )
    annotation = None
    if (labels == 1).any():
        annotation = out_dir / f"{name}.xml"
        write_asap(annotation, cell_outlines(labels == 1, size))
    return Case(
        case_id=name,
        path=out_dir / f"{name}.tif",
        patient_id=f"patient_{name}",
        split=split,
        truth=int(annotation is not None),
        annotation=annotation,
        mpp=mpp,
    )


def _tile_pools(
    store: SampleStore, rows: npt.NDArray[np.int64] | None, *, tumor: bool
) -> list[Bytes]:
    """Normal and tumor tiles."""
    if store.samples.ndim != 4 or store.samples.shape[3] != 3 or store.samples.dtype != np.uint8:
        raise StoreError(f"{store.path}: {store.samples.shape}, expected RGB tiles (n, h, w, 3)")
    if store.samples.shape[1] != store.samples.shape[2] or store.samples.shape[1] % 16:
        raise StoreError(f"{store.path}: expected square tiles whose edge is a multiple of 16 px")
    chosen = np.arange(len(store)) if rows is None else rows
    truth = store.rows["truth"].iloc[chosen].fillna(-1).to_numpy(dtype=np.int64)
    pools = [np.asarray(store.samples[chosen[truth == label]]) for label in (0, 1)]
    for pool, name in zip(pools, ("normal", "tumor"), strict=True):
        if not len(pool) and (name == "normal" or tumor):
            raise StoreError(f"{store.path}: holds no {name} tiles (column truth) to compose from")
    return pools


def _store_mpp(store: SampleStore) -> float:
    try:
        return float(store.contract["mpp"])
    except (KeyError, TypeError, ValueError):
        raise StoreError(
            f"{store.path}: store.json has no mpp; give the µm per pixel of its tiles"
        ) from None
