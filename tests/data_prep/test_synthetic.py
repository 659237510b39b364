from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import shapely
from defusedxml import ElementTree
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_prep.slide_writing import cell_outlines, write_pyramid
from data_prep.synthetic import (
    HE_MATRIX,
    change_look,
    compose_from_store,
    draw_layout,
    perturb_look,
    turn,
)
from data_prep.vahadane import REFERENCE_MATRIX, ordered, stain_angle
from esad_med.base.cases import Case, read_manifest
from esad_med.base.errors import StoreError
from esad_med.base.store import SampleStore
from esad_med.base.store_writing import write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """30 normal and 10 tumor tiles; tumor tiles hold more hematoxylin."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], [30, 10])
    codes = rng.exponential(0.5, (40, 16, 16, 2)) * (rng.random((40, 16, 16, 2)) < 0.8)
    codes[truth == 1, ..., 0] += 1.5
    codes = codes.repeat(2, axis=1).repeat(2, axis=2)
    tiles = np.rint(255 * np.exp(-codes @ ordered(REFERENCE_MATRIX))).astype(np.uint8)
    rows = pd.DataFrame(
        {
            "sample_id": [f"t{i}" for i in range(40)],
            "case_id": "",
            "patient_id": "",
            "split": "test",
            "semi_label": 1,
            "truth": truth,
        }
    )
    contract = {"kind": "tiles", "value_range": [0, 255], "mpp": 0.97}
    return write_store(tmp_path_factory.mktemp("pool") / "store", tiles, rows, contract)


def read_polygons(path: Path) -> tuple[shapely.Geometry, shapely.Geometry]:
    """Tumor and excluded area of an ASAP XML, read without our own reader."""
    groups: dict[str, list[shapely.Polygon]] = {"Tumor": [], "_2": []}
    for item in ElementTree.parse(path).getroot().iter("Annotation"):
        points = [(float(c.get("X")), float(c.get("Y"))) for c in item.iter("Coordinate")]
        groups[item.get("PartOfGroup")].append(shapely.Polygon(points))
    return shapely.union_all(groups["Tumor"]), shapely.union_all(groups["_2"])


def color_difference(cases: list[Case]) -> float:
    """How far the mean tissue colors of the first two slides lie apart, in gray levels."""
    colors = []
    for case in cases[:2]:
        with openslide.OpenSlide(case.path) as slide:
            picture = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        colors.append(picture[picture.mean(axis=2) < 220].mean(axis=0))
    return float(np.abs(colors[0] - colors[1]).max())


@given(st.integers(20, 500), st.floats(0.0, 0.3), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_layout_holds_what_was_asked_for(tissue: int, share: float, seed: int) -> None:
    tumor = round(share * tissue)
    labels = draw_layout(tissue, tumor, np.random.default_rng(seed))
    assert (labels >= 0).sum() == tissue
    assert (labels == 1).sum() <= tumor
    assert (labels == 1).sum() >= 0.8 * tumor  # a walled-in nest may stay smaller
    assert ndimage.label(labels == 1)[1] <= 3
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    assert (border == -1).all()


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_outlines_cover_the_cells_and_nothing_else(seed: int) -> None:
    cells = np.random.default_rng(seed).random((6, 7)) < 0.5
    outlines = cell_outlines(cells, 10)
    area = {"Tumor": 0.0, "_2": 0.0}
    for group, vertices in outlines:
        area[group] += shapely.Polygon(vertices).area
    assert area["Tumor"] - area["_2"] == pytest.approx(100 * cells.sum())


def test_turn_gives_each_of_the_eight_positions() -> None:
    tile, rng = np.arange(4).reshape(2, 2), np.random.default_rng(0)
    seen = {tuple(turn(tile, rng).ravel()) for _ in range(200)}
    assert len(seen) == 8


def test_look_stays_a_stain_matrix_and_strength_zero_is_none() -> None:
    matrix = ordered(REFERENCE_MATRIX)
    same, scale = perturb_look(matrix, np.random.default_rng(0), strength=0)
    np.testing.assert_allclose(same, matrix)
    np.testing.assert_allclose(scale, 1)
    for seed in range(50):
        other, scale = perturb_look(matrix, np.random.default_rng(seed))
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1)
        assert stain_angle(other) > 10
        assert 0.5 < scale.min() < scale.max() < 2


def test_same_look_changes_nothing_and_more_stain_is_darker(store: SampleStore) -> None:
    rgb = np.concatenate([np.asarray(store.samples).reshape(-1, 3), np.eye(3, dtype=np.uint8)])
    same = change_look(rgb, HE_MATRIX, np.ones(2))
    np.testing.assert_array_equal(same, np.maximum(rgb, 1))  # 0 and 1 have the same OD
    darker = change_look(rgb, HE_MATRIX, np.array([1.2, 1.2]))
    assert (darker <= same).all()
    assert darker.mean() < same.mean() - 5


def test_pyramid_opens_with_openslide_and_halves_by_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(60, 200, (9, 13, 1)), np.ones((64, 64, 3))).astype(np.uint8)
    path = tmp_path / "p.tif"
    write_pyramid(path, rgb, mpp=0.5, levels=3, description="composed, not a patient's", quality=98)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((832, 576), (416, 288), (208, 144))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-4)
        assert "composed" in slide.properties["tiff.ImageDescription"]
        for level in range(3):
            size = slide.level_dimensions[level]
            picture = np.asarray(slide.read_region((0, 0), level, size).convert("RGB"))
            by_hand = rgb[:: 2**level, :: 2**level]  # blocks of one color
            assert np.abs(picture.astype(int) - by_hand).max() <= 12  # JPEG
            assert np.abs(picture.astype(int) - by_hand).mean() < 1


def test_composed_slides_hold_the_tiles_the_annotations_and_the_manifest(
    store: SampleStore, tmp_path: Path
) -> None:
    cases = compose_from_store(
        store, tmp_path, normal_slides=1, tumor_slides=2, seed=3, tiles_per_slide=60,
        tumor_share=(0.1, 0.3), look=0,
    )  # fmt: skip
    assert read_manifest(tmp_path / "manifest.csv") == cases
    assert [case.truth for case in cases] == [0, 1, 1]
    assert cases[0].annotation is None
    for case in cases[1:]:
        with openslide.OpenSlide(case.path) as slide:
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.97, rel=1e-4)
            picture = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        side = picture.shape[0] // 32
        means = (
            picture[: side * 32, : side * 32].reshape(side, 32, side, 32, 3).mean(axis=(1, 3, 4))
        )
        tumor, excluded = read_polygons(case.annotation)
        inside = np.array(
            [
                [tumor.difference(excluded).contains(shapely.Point(c * 32 + 16, r * 32 + 16))]
                for r in range(side)
                for c in range(side)
            ]
        ).reshape(side, side)
        tissue = means < 235
        assert tissue.sum() == 60
        assert 0.08 <= inside.sum() / 60 <= 0.3
        assert means[inside].max() < means[tissue & ~inside].min()  # tumor tiles are the dark ones


def test_equal_seeds_give_equal_bytes_and_looks_differ(store: SampleStore, tmp_path: Path) -> None:
    options = {"normal_slides": 2, "tumor_slides": 0, "tiles_per_slide": 40}
    first = compose_from_store(store, tmp_path / "a", seed=1, **options)
    second = compose_from_store(store, tmp_path / "b", seed=1, **options)
    other = compose_from_store(store, tmp_path / "c", seed=2, **options)
    contents = [[case.path.read_bytes() for case in cases] for cases in (first, second, other)]
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0]
    plain = compose_from_store(store, tmp_path / "d", seed=1, look=0, **options)
    assert color_difference(first) > 2 * color_difference(plain)


def test_only_the_rows_given_are_used(store: SampleStore, tmp_path: Path) -> None:
    (case,) = compose_from_store(
        store, tmp_path, normal_slides=1, tumor_slides=0, seed=0, tiles_per_slide=30, look=0,
        rows=np.array([4]),
    )  # fmt: skip
    with openslide.OpenSlide(case.path) as slide:
        picture = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    side = picture.shape[0] // 32
    means = picture[: side * 32, : side * 32].reshape(side, 32, side, 32, 3).mean(axis=(1, 3))
    tissue = means[means.mean(axis=-1) < 235]
    assert np.ptp(tissue, axis=0).max() < 1  # one tile, turned
    np.testing.assert_allclose(tissue[0], store.samples[4].mean(axis=(0, 1)), atol=2)


def test_stores_without_what_is_needed_are_refused(store: SampleStore, tmp_path: Path) -> None:
    options = {"normal_slides": 1, "tumor_slides": 1, "seed": 0}
    with pytest.raises(StoreError, match="no tumor tiles"):
        compose_from_store(store, tmp_path, rows=np.arange(30), **options)
    with pytest.raises(StoreError, match="no normal tiles"):
        compose_from_store(store, tmp_path, rows=np.arange(30, 40), **options)
    rows = store.rows.iloc[:2]
    contract = {"kind": "tiles", "value_range": [0, 255]}
    plain = write_store(tmp_path / "no_mpp", np.asarray(store.samples[:2]), rows, contract)
    with pytest.raises(StoreError, match="no mpp"):
        compose_from_store(plain, tmp_path, normal_slides=1, tumor_slides=0, seed=0)
    gray = np.zeros((2, 32, 32, 1), np.uint8)
    gray_store = write_store(tmp_path / "gray", gray, rows, contract)
    with pytest.raises(StoreError, match="RGB"):
        compose_from_store(gray_store, tmp_path, normal_slides=1, tumor_slides=0, seed=0)
