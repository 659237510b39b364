from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely

from data_prep import demo_slides
from data_prep.annotations import read_annotation, tumor_fraction
from data_prep.demo_slides import (
    DEMO_MPP,
    compose_demo_picture,
    compose_demo_slides,
    source_concentrations,
)
from esad_med.base.cases import Case, read_manifest

PLAN = (("train_normal", "train", 0), ("train_tumor", "train", 3), ("test_tumor", "test", 2))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Case]]:
    """The demo's slides, fewer and smaller."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_slides, "DEMO_PLAN", PLAN)
        patch.setattr(demo_slides, "DEMO_SIZE", 1536)
        return folder, compose_demo_slides(folder, seed=1)


def read(case: Case) -> np.ndarray:
    with openslide.OpenSlide(case.path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def test_manifest_gives_the_cases_back(demo: tuple[Path, list[Case]]) -> None:
    folder, cases = demo
    assert read_manifest(folder / "manifest.csv") == cases
    assert [(c.case_id, c.split, c.truth) for c in cases] == [
        (name, split, int(lesions > 0)) for name, split, lesions in PLAN
    ]
    assert len({case.patient_id for case in cases}) == len(cases)


def test_plan_trains_on_both_kinds_and_holds_out_one_of_each() -> None:
    plan = {(split, lesions > 0) for _, split, lesions in demo_slides.DEMO_PLAN}
    assert plan == {("train", False), ("train", True), ("test", False), ("test", True)}


def test_openslide_sees_a_pyramid_that_says_what_it_is(demo: tuple[Path, list[Case]]) -> None:
    for case in demo[1]:
        with openslide.OpenSlide(case.path) as slide:
            assert slide.dimensions == (1536, 1536)
            assert slide.level_downsamples == (1, 2, 4, 8, 16)
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(DEMO_MPP, rel=1e-4)
            assert "not a patient" in slide.properties["tiff.ImageDescription"]


def test_lesions_lie_on_tissue_and_differ_from_it(demo: tuple[Path, list[Case]]) -> None:
    corners = np.stack(np.meshgrid(np.arange(0, 1536, 128), np.arange(0, 1536, 128)), -1)
    corners = corners.reshape(-1, 2).astype(np.int64)
    for case in demo[1][1:]:
        picture = read(case)
        annotation = read_annotation(case.annotation, slide_size=(1536, 1536))
        lesions = {name: count for name, _, count in PLAN}[case.case_id]
        assert len(shapely.get_parts(annotation.tumor)) == lesions
        share = tumor_fraction(annotation, corners, 128.0)
        assert 0.01 < share.mean() < 0.1
        yx = np.argwhere(picture.min(axis=2) >= 0)[:: 7 * 13]
        points = shapely.points(yx[:, ::-1] + 0.5)
        inside = shapely.contains(annotation.tumor, points)
        dark = picture[yx[:, 0], yx[:, 1]].min(axis=1)
        assert (dark[inside] < 215).mean() > 0.97  # hardly any glass within
        tissue = ~inside & (dark < 215)
        red, _, blue = picture[yx[:, 0], yx[:, 1]].astype(int).T
        purple = (red - blue < 10) & (red < 180)  # nuclei
        assert purple[inside].mean() > 1.5 * purple[tissue].mean()


def test_slides_have_glass_around_and_looks_of_their_own(demo: tuple[Path, list[Case]]) -> None:
    colors = []
    for case in demo[1]:
        picture = read(case)
        assert picture[:40].min() > 220
        assert 0.2 < (picture.min(axis=2) < 215).mean() < 0.6
        colors.append(picture[picture.min(axis=2) < 200].mean(axis=0))
    assert np.ptp(colors, axis=0).max() > 5


def test_equal_seeds_give_equal_pictures() -> None:
    source = source_concentrations()
    pictures = [
        compose_demo_picture(source, 1, np.random.default_rng(seed), size=1024)[0]
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()
