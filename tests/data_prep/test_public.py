import gzip
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from data_prep.public import (
    DpaCell,
    brighten,
    center_crop,
    dpa_cells,
    find_camelyon_slide,
    random_crops,
    read_cell,
    read_dpa_list,
    shrink,
)
from data_prep.slide_writing import write_pyramid
from data_prep.slides import Slide, open_slide
from data_prep.stain import StainSpec
from data_prep.stain_target import DEFAULT_TARGET
from data_prep.vahadane import REFERENCE_MATRIX, ordered
from esad_med.base.errors import CaseError, EsadError, SlideError

CELL = "{slide}_{label}_x_{row}_y_{col}_w_768_h_768.jpg"
Opener = Callable[[str], AbstractContextManager[Slide]]


def stained(seed: int, height: int, width: int, scale: float = 1.0) -> np.ndarray:
    """Two stains in blots of four pixels, so that a quarter of the size still shows them."""
    rng = np.random.default_rng(seed)
    codes = rng.exponential(0.5 * scale, (height // 4, width // 4, 2))
    codes *= rng.random(codes.shape) < 0.8
    small = np.rint(250 * np.exp(-codes @ ordered(REFERENCE_MATRIX))).astype(np.uint8)
    return np.repeat(np.repeat(small, 4, axis=0), 4, axis=1)


@pytest.fixture(scope="module")
def camelyon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tree with the published folder names; slides are 1536 wide and 2304 high."""
    root = tmp_path_factory.mktemp("camelyon16")
    for seed, name in enumerate(["training/normal/normal_001", "training/tumor/tumor_001"]):
        path = root / f"{name}.tif"
        path.parent.mkdir(parents=True)
        picture = stained(seed, 2304, 1536, 0.8 + 0.6 * seed)
        picture[1536:, 768:] = 255  # glass
        write_pyramid(path, picture, mpp=0.243, levels=2, description="composed", quality=100)
    return root


@pytest.fixture
def opener(camelyon: Path) -> Opener:
    return lambda name: open_slide(find_camelyon_slide(camelyon, name))


def write_list(path: Path, names: list[str]) -> Path:
    data = "".join(f"{name}\n" for name in names).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_list_is_read_in_order_and_x_is_the_row(tmp_path: Path, suffix: str) -> None:
    names = [
        CELL.format(slide="tumor_001", label="tumor", row=1536, col=768),
        CELL.format(slide="test_002", label="normal", row=0, col=3),
    ]
    cells = read_dpa_list(write_list(tmp_path / f"list{suffix}", names))
    assert cells == [
        DpaCell("tumor_001", 1, row=1536, col=768),
        DpaCell("test_002", 0, row=0, col=3),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no cells"),
        (b"normal_001.jpg\n", "line 1: 'normal_001.jpg' is not the name of a cell"),
        (b"n_normal_x_1_y_2_w_768_h_768.jpg\n" * 2, "line 2: listed before in line 1"),
        (b"n_normal_x_1_y_2_w_256_h_256.jpg\n", "not the name"),
        (b"../x_normal_x_1_y_2_w_768_h_768.jpg\n", "not the name"),
        (b"\xff\xfe", "damaged"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(CaseError, match=message):
        read_dpa_list(tmp_path / "list.txt")


def test_damaged_or_missing_lists_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"n_normal_x_1_y_2_w_768_h_768.jpg\n")
    (tmp_path / "cut.txt.gz").write_bytes(whole[:-12])
    (tmp_path / "plain.txt.gz").write_bytes(b"not compressed")
    for name in ("cut.txt.gz", "plain.txt.gz", "missing.txt"):
        with pytest.raises(CaseError, match=name):
            read_dpa_list(tmp_path / name)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "slides"), [("normal_train", 7612, 153), ("anomaly_test", 817, 0)]
)
def test_published_lists(data_root: Path, name: str, count: int, slides: int) -> None:
    cells = read_dpa_list(data_root / "splits_dpa" / "camelyon16" / f"{name}.txt.gz")
    assert len(cells) == count
    assert {cell.label for cell in cells} == {int(name.startswith("anomaly"))}
    if slides:
        assert len({cell.slide for cell in cells}) == slides


def test_cell_pixels_are_openslides_at_column_and_row(opener: Opener) -> None:
    with opener("normal_001") as slide:
        pixels = read_cell(slide, DpaCell("normal_001", 0, row=1400, col=300))
        np.testing.assert_array_equal(pixels, slide.read_region((300, 1400), 0, (768, 768)))
        with pytest.raises(CaseError, match="row and column exchanged"):
            read_cell(slide, DpaCell("normal_001", 0, row=300, col=1400))


def test_brighten_takes_the_90th_percentile_of_all_values_to_white() -> None:
    rgb = np.arange(100, dtype=np.uint8).repeat(3).reshape(10, 10, 3)
    bright = float(np.percentile(rgb, 90))
    out = brighten(rgb)
    assert out[9, 9].tolist() == [255, 255, 255]
    assert out[5, 0, 0] == int(50 * 255 / bright)
    assert brighten(np.zeros((4, 4, 3), np.uint8)).max() == 0


def test_shrink_and_crop_keep_place_and_value() -> None:
    rgb = np.full((768, 768, 3), 200, np.uint8)
    rgb[:, 384:] = 40
    small = shrink(rgb)
    assert small.shape == (192, 192, 3)
    assert small[0, 10].tolist() == [200, 200, 200]
    assert small[0, 180].tolist() == [40, 40, 40]
    middle = center_crop(small)
    np.testing.assert_array_equal(middle, small[64:128, 64:128])


def test_random_crops_lie_inside_and_are_what_they_say() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (192, 192, 3)).astype(np.uint8)
    crops, corners = random_crops(picture, 200, np.random.default_rng(1))
    assert corners.min() == 0
    assert corners.max() == 128
    for crop, (x, y) in zip(crops, corners, strict=True):
        np.testing.assert_array_equal(crop, picture[y : y + 64, x : x + 64])


def test_cells_of_two_looks_come_out_alike(opener: Opener) -> None:
    cells = [DpaCell(name, 0, 768, 0) for name in ("normal_001", "tumor_001")]
    raw = []
    for cell in cells:
        with opener(cell.slide) as slide:
            raw.append(read_cell(slide, cell).mean(axis=(0, 1)))
    for variant in ("cell", "slide"):
        done = list(
            dpa_cells(cells, opener, target=DEFAULT_TARGET, spec=StainSpec(), stain=variant)
        )
        assert [cell for cell, _ in done] == cells
        assert all(p.shape == (192, 192, 3) and p.dtype == np.uint8 for _, p in done)
        means = [picture.mean(axis=(0, 1)) for _, picture in done]
        if variant == "slide":  # "cell" does not scale concentrations
            assert np.abs(means[0] - means[1]).max() < 0.3 * np.abs(raw[0] - raw[1]).max()


def test_cell_protocol_is_its_steps_by_hand(opener: Opener) -> None:
    from data_prep.stain import fit_stain
    from data_prep.vahadane import remap_numpy

    cell = DpaCell("tumor_001", 1, 0, 768)
    ((_, picture),) = dpa_cells([cell], opener, target=DEFAULT_TARGET, spec=StainSpec())
    with opener("tumor_001") as slide:
        bright = brighten(slide.read_region((768, 0), 0, (768, 768)))
    matrix = fit_stain([bright], StainSpec(), name="c").matrix
    by_hand = remap_numpy(
        bright.reshape(-1, 3), matrix, np.ones(2), DEFAULT_TARGET.matrix, penalty=0.01
    )
    assert np.abs(picture.astype(int) - shrink(by_hand.reshape(768, 768, 3))).max() <= 1


def test_bad_cells_are_reported_and_the_rest_goes_on(opener: Opener) -> None:
    cells = [
        DpaCell("normal_001", 0, 0, 0),
        DpaCell("normal_001", 0, 1536, 768),  # glass
        DpaCell("normal_001", 0, 9000, 0),  # outside
        DpaCell("normal_027", 0, 0, 0),  # left out by DPA
        DpaCell("normal_099", 0, 0, 0),  # not there
        DpaCell("tumor_001", 1, 0, 0),
    ]
    failed: list[tuple[DpaCell, EsadError]] = []
    done = dpa_cells(
        cells,
        opener,
        target=DEFAULT_TARGET,
        spec=StainSpec(),
        on_error=lambda cell, error: failed.append((cell, error)),
    )
    assert [cell for cell, _ in done] == [cells[0], cells[5]]
    assert [cell for cell, _ in failed] == [cells[1], cells[2], cells[4]]
    assert isinstance(failed[0][1], SlideError)
    with pytest.raises(CaseError, match="normal_099"):
        list(dpa_cells(cells[3:], opener, target=DEFAULT_TARGET, spec=StainSpec()))
