"""The demo's slides, composed from the one stained tissue picture that scikit-image ships.

What is real: the texture, `skimage.data.immunohistochemistry` (colon, H-DAB), in random pieces,
turned and mirrored. What is composed: the arrangement, the H&E-like colors, and the lesions, which
are drawn: nests of crowded, enlarged, dark nuclei.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from data_prep.color import OD_TABLE, Bytes, Floats
from data_prep.slide_writing import write_asap, write_manifest, write_pyramid
from data_prep.synthetic import GLASS, HE_MATRIX, blob_radius, perturb_look, turn
from data_prep.vahadane import ordered, sparse_concentrations
from esad_med.base.cases import Case
from esad_med.base.runs import ensure_folder

DEMO_MPP = 0.5
DEMO_SIZE = 3072  # level-0 pixels: 1.5 mm
#: name, split, number of lesions
DEMO_PLAN = (
    ("train_normal_1", "train", 0),
    ("train_normal_2", "train", 0),
    ("train_normal_3", "train", 0),
    ("train_normal_4", "train", 0),
    ("train_tumor_1", "train", 3),
    ("train_tumor_2", "train", 3),
    ("test_normal", "test", 0),
    ("test_tumor", "test", 3),
)
_H_DAB = np.array([[0.650, 0.704, 0.286], [0.268, 0.570, 0.776]])  # Ruifrok & Johnston 2001
_PIECE, _OVERLAP = 320, 48  # pixels of a piece of texture, and of its soft seam
Plane = npt.NDArray[np.float32]
Outline = npt.NDArray[np.float64]


def compose_demo_slides(out_dir: Path, *, seed: int = 0) -> list[Case]:
    """Compose the eight slides of `DEMO_PLAN` with their annotations and ``manifest.csv``.

    No download, about a second per slide; equal seeds give equal bytes.

    Raises:
        ConfigError: ``out_dir`` cannot be written.
    """
    ensure_folder(out_dir)
    source = source_concentrations()
    cases = []
    for index, (name, split, lesions) in enumerate(DEMO_PLAN):
        rng = np.random.default_rng([seed, index])
        picture, outlines = compose_demo_picture(source, lesions, rng, size=DEMO_SIZE)
        path = out_dir / f"{name}.tif"
        write_pyramid(
            path,
            picture,
            mpp=DEMO_MPP,
            levels=5,
            description="esad-med composed demo slide: texture of"
            " skimage.data.immunohistochemistry, recolored; lesions are drawn; not a patient's"
            " slide",
        )
        annotation = path.with_suffix(".xml") if lesions else None
        if annotation:
            write_asap(annotation, [("Tumor", outline.tolist()) for outline in outlines])
        cases.append(Case(name, path, f"demo_{index:02d}", split, int(lesions > 0), annotation))
    write_manifest(out_dir / "manifest.csv", cases)
    return cases


def source_concentrations() -> Plane:
    """Hematoxylin and counterstain (2, 512, 512) of the shipped picture; DAB plays the eosin."""
    from skimage import data

    rgb = np.asarray(data.immunohistochemistry(), dtype=np.uint8)
    codes = sparse_concentrations(OD_TABLE[rgb.reshape(-1, 3)], ordered(_H_DAB), 0.01)
    planes = codes.T.reshape(2, *rgb.shape[:2]).astype(np.float32)
    hematoxylin, counterstain = planes
    return np.stack([1.5 * hematoxylin, 0.5 * counterstain + 0.25 * hematoxylin])


def compose_demo_picture(
    source: Plane, lesions: int, rng: np.random.Generator, *, size: int
) -> tuple[Bytes, list[Outline]]:
    """One slide and the outlines of its lesions.

    Args:
        source: concentrations of the texture (2, h, w).
        lesions: how many nests to draw.
        rng: source of chance.
        size: edge of the picture in pixels.

    Returns:
        (size, size, 3) uint8, and per lesion its vertices (k, 2) as x, y.
    """
    matrix, scale = perturb_look(HE_MATRIX, rng)
    center = size * rng.uniform(0.48, 0.52, 2)
    tissue, _ = _draw_blob(size, center, 0.36 * size, rng)
    planes = _quilt(source, size, rng)
    turns = rng.uniform(0, 2 * np.pi) + np.arange(lesions) * 2 * np.pi / max(lesions, 1)
    outlines = []
    for angle in turns:
        reach = 0.18 * size * rng.uniform(0.6, 1)
        position = center + reach * np.array([np.cos(angle), np.sin(angle)])
        mask, nest = _draw_blob(size, position, size * rng.uniform(0.045, 0.075), rng)
        _draw_lesion(planes, mask, nest, rng)
        outlines.append(nest)
    planes *= tissue * scale[:, None, None].astype(np.float32)
    return _develop(planes, matrix, rng), outlines


def _draw_blob(
    size: int, center: Floats, radius: float, rng: np.random.Generator
) -> tuple[Plane, Outline]:
    """A blob as a soft mask (size, size) in [0, 1] and as an outline (k, 2) of x, y."""
    from skimage.draw import polygon2mask

    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    length = radius * blob_radius(angle, rng, wobble=0.1)
    outline = center + length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # at an eighth of the resolution: the edge is soft anyway
    small = polygon2mask((size // 8, size // 8), outline[:, ::-1] / 8 - 0.5)
    mask = ndimage.zoom(
        ndimage.gaussian_filter(small.astype(np.float32), 0.7), 8, order=1, grid_mode=True,
        mode="nearest",
    )  # fmt: skip
    return mask, outline


def _quilt(source: Plane, size: int, rng: np.random.Generator) -> Plane:
    """Texture (2, size, size): overlapping random pieces, turned, with soft seams."""
    step = _PIECE - _OVERLAP
    count = -(-(size - _OVERLAP) // step)
    total = np.zeros((2, count * step + _OVERLAP, count * step + _OVERLAP), np.float32)
    rise = (np.arange(_OVERLAP, dtype=np.float32) + 0.5) / _OVERLAP
    ramp = np.concatenate([rise, np.ones(step - _OVERLAP, np.float32), rise[::-1]])
    weight = ramp[:, None] * ramp  # weights of neighbors add up to 1
    for row in range(count):
        for column in range(count):
            y, x = rng.integers(0, source.shape[1] - _PIECE, 2)
            piece = source[:, y : y + _PIECE, x : x + _PIECE].transpose(1, 2, 0)
            turned = turn(piece, rng).transpose(2, 0, 1)
            top, left = row * step, column * step
            total[:, top : top + _PIECE, left : left + _PIECE] += weight * turned
    return total[:, :size, :size]


def _draw_lesion(planes: Plane, mask: Plane, outline: Outline, rng: np.random.Generator) -> None:
    """Crowd enlarged dark nuclei into the nest, in place; between them the tissue shows, paler."""
    left, top = (np.floor(outline.min(axis=0)) - 32).astype(int)
    right, bottom = (np.ceil(outline.max(axis=0)) + 32).astype(int)
    view = (slice(top, bottom), slice(left, right))
    inside = mask[view]
    nuclei = _draw_nuclei(inside > 0.5, rng)
    hematoxylin, counterstain = planes[:, *view]
    cytoplasm = inside * (1 - 0.7 * np.clip(nuclei, 0, 1))
    hematoxylin[:] = np.maximum(hematoxylin * (1 - 0.4 * inside), nuclei)
    counterstain[:] = counterstain * (1 - 0.5 * inside) + 0.25 * cytoplasm


def _draw_nuclei(inside: npt.NDArray[np.bool_], rng: np.random.Generator) -> Plane:
    """Hematoxylin (h, w) of nuclei, 9-13 µm apart by nest, whose centers lie inside."""
    gap = int(rng.integers(18, 27))
    stamps = [_draw_nucleus(rng) for _ in range(32)]
    canvas = np.zeros(inside.shape, np.float32)
    free = inside.copy()
    free[:28], free[-28:], free[:, :28], free[:, -28:] = False, False, False, False
    disc = np.hypot(*(np.mgrid[: 2 * gap + 1, : 2 * gap + 1] - gap)) >= gap
    places = np.argwhere(free)
    for y, x in rng.permutation(places)[: len(places) // 12]:
        if free[y, x]:
            free[y - gap : y + gap + 1, x - gap : x + gap + 1] &= disc
            stamp = turn(stamps[rng.integers(len(stamps))], rng)
            part = canvas[y - 20 : y + 20, x - 20 : x + 20]
            np.maximum(part, stamp, out=part)
    return canvas


def _draw_nucleus(rng: np.random.Generator) -> Plane:
    """One nucleus (40, 40): an uneven ellipse of 8-13 pixels radius, coarse chromatin, dark rim."""
    y, x = np.mgrid[:40, :40] - 19.5
    angle = np.arctan2(y, x)
    radius = np.hypot(y, x) / blob_radius(angle, rng, wobble=0.12) / rng.uniform(8, 13)
    radius = radius * (1 + 0.2 * np.cos(2 * angle))
    chromatin = ndimage.gaussian_filter(rng.normal(size=(40, 40)), 1.6)
    body = 0.85 + 0.9 * chromatin + 0.35 * np.exp(-(((radius - 0.9) / 0.12) ** 2))
    edge = 1 / (1 + np.exp((radius - 1) * 14))
    nucleus: Plane = (rng.uniform(0.75, 1.15) * edge * np.maximum(body, 0)).astype(np.float32)
    return nucleus


def _develop(planes: Plane, matrix: Floats, rng: np.random.Generator) -> Bytes:
    """Concentrations (2, h, w) to colors on glass, with a little sensor noise."""
    stains = matrix.astype(np.float32)
    noise = rng.normal(0, 1.2, (256, 256, 3)).astype(np.float32)
    height, width = planes.shape[1:]
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 256):
        part = planes[:, top : top + 256]
        rows = part.shape[1]
        grain = np.tile(noise[:rows], (1, -(-width // 256), 1))[:, :width]
        for channel in range(3):
            od = stains[0, channel] * part[0] + stains[1, channel] * part[1]
            light = GLASS * np.exp(-od) + grain[..., channel]
            picture[top : top + 256, :, channel] = np.clip(light, 0, 255)
    return picture
