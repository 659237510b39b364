import numpy as np
import pandas as pd
import pytest

from data_prep.slides import open_slide
from data_prep.tissue import TissueSpec, find_tissue, mask_tissue

SPEC = TissueSpec()
GLASS, PINK = (243, 242, 241), (215, 165, 195)
ROWS, COLUMNS = np.mgrid[:80, :100]
DISC = (ROWS - 40) ** 2 + (COLUMNS - 50) ** 2 < 25**2


def picture(ground=GLASS, tissue=PINK, *, noise: float = 2.0) -> np.ndarray:
    rgb = np.where(DISC[..., None], tissue, ground)
    rgb = rgb + np.random.default_rng(0).normal(0, noise, rgb.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return (mask & truth).sum() / (mask | truth).sum()


@pytest.mark.parametrize(
    ("ground", "tissue"),
    [
        (GLASS, PINK),
        (GLASS, (120, 70, 150)),  # dense hematoxylin
        (GLASS, (236, 215, 226)),  # pale eosin
        ((236, 229, 214), (226, 200, 205)),  # yellowish lamp
        ((214, 215, 218), (170, 145, 175)),  # dim lamp
        (GLASS, (150, 110, 70)),  # DAB
        (GLASS, (120, 115, 185)),  # a blue hematoxylin is no pen
        ((255, 255, 255), PINK),  # nothing scanned beside the tissue
    ],
)
def test_tissue_is_found_under_any_light(ground, tissue):
    assert overlap(mask_tissue(picture(ground, tissue), 8.0, SPEC), DISC) > 0.9


@pytest.mark.parametrize("color", [GLASS, (255, 255, 255), (0, 0, 0), (200, 200, 200)])
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_glass_white_or_black_alone_hold_no_tissue(color, noise):
    assert not mask_tissue(picture(color, color, noise=noise), 8.0, SPEC).any()


def test_tissue_alone_is_tissue_throughout():
    rng = np.random.default_rng(0)
    rgb = rng.integers((190, 120, 160), (230, 175, 205), (80, 100, 3)).astype(np.uint8)
    assert mask_tissue(rgb, 8.0, SPEC).mean() > 0.99


@pytest.mark.parametrize(
    "pen", [(20, 90, 60), (40, 70, 170), (10, 130, 160), (12, 12, 14), (0, 0, 0)]
)
def test_pen_and_borders_are_no_tissue_unless_asked_for(pen):
    rgb = picture()
    rgb[2:8, 5:95] = pen
    mask = mask_tissue(rgb, 8.0, SPEC)
    assert overlap(mask, DISC) > 0.9
    assert not mask[:12].any()
    assert mask_tissue(rgb, 8.0, TissueSpec(ink=False))[4:6, 10:90].all() or max(pen) < 20


def test_grey_shadow_is_no_tissue():
    assert not mask_tissue(picture(GLASS, (222, 221, 222)), 8.0, SPEC).any()


def test_unscanned_white_does_not_turn_the_glass_into_tissue():
    rgb = picture((228, 227, 224))
    rgb[:, :20] = 255
    mask = mask_tissue(rgb, 8.0, SPEC)
    assert overlap(mask, DISC) > 0.9


def test_small_pieces_go_and_small_holes_close():
    rgb = picture(noise=0)
    rgb[5:10, 5:10] = PINK  # 25 pixels of 64 µm²: below min_object_um2
    rgb[38:42, 48:52] = GLASS  # 16 pixels: below max_hole_um2
    mask = mask_tissue(rgb, 8.0, SPEC)
    assert not mask[:12, :12].any()
    assert mask[38:42, 48:52].all()
    keep = TissueSpec(min_object_um2=0, max_hole_um2=0, smoothing_um=0)
    np.testing.assert_array_equal(mask_tissue(rgb, 8.0, keep), (rgb == PINK).all(-1))


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.rot90])
def test_a_turned_slide_has_the_turned_mask(turn):
    rgb = picture()
    np.testing.assert_array_equal(
        mask_tissue(np.ascontiguousarray(turn(rgb)), 8.0, SPEC),
        turn(mask_tissue(rgb, 8.0, SPEC)),
    )


def test_damaged_parts_count_as_tissue(make_slide):
    rgb = np.full((512, 512, 3), 244, np.uint8)
    with open_slide(make_slide(rgb, levels=(), damage=(0,))) as slide:
        tissue = find_tissue(slide, SPEC)
    edge = round(64 / tissue.downsample)
    assert tissue.mask[:edge, :edge].all()
    assert tissue.share < 0.3


@pytest.mark.data
@pytest.mark.parametrize("name", ["normal_scannerA", "normal_scannerB", "tumor_scannerA"])
def test_every_cell_of_the_composed_slides_is_found_and_little_else(data_root, name):
    path = data_root / "wsi" / f"composed_{name}.tif"
    cells = pd.read_csv(data_root / "wsi" / "composed_cells.csv")
    cells = cells[cells.slide == path.name]
    with open_slide(path) as slide:
        tissue = find_tissue(slide, SPEC)
    truth = np.zeros(tissue.mask.shape, bool)
    for x, y, size in (cells[["x", "y", "size"]] // tissue.downsample).astype(int).to_numpy():
        truth[y : y + size, x : x + size] = True
    assert tissue.downsample == pytest.approx(8 / 0.243, rel=0.05)
    assert (tissue.mask & truth).sum() / truth.sum() > 0.97
    grown = np.pad(truth, 1)[2:] | np.pad(truth, 1)[:-2]
    grown = grown[:, 2:] | grown[:, 1:-1] | grown[:, :-2]
    assert not (tissue.mask & ~grown).any()


@pytest.mark.data
def test_real_scan(data_root):
    with open_slide(data_root / "wsi" / "cmu-1-small-region.svs") as slide:
        tissue = find_tissue(slide, SPEC)
    assert 0.3 < tissue.share < 0.5  # by eye, 0.4
    assert tissue.mask[140, 60]  # within the section
    assert not tissue.mask[:60, :30].any()  # glass at the upper left
    assert not tissue.mask[60:, 125:].any()  # glass at the right
