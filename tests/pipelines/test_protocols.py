"""The paper's splits: counts, what may never overlap, and what a seed decides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.natural import LabeledImages
from data_prep.odds import Table, read_odds
from esad_med.base.errors import CaseError, ConfigError
from pipelines.paper.protocols import RunData, natural_run, odds_run


def compose_table(normals: int, outliers: int) -> Table:
    """Rows that hold their own number and truth, mixed."""
    truth = np.random.default_rng(0).permutation([0] * normals + [1] * outliers).astype(np.int8)
    samples = np.stack([np.arange(len(truth)), truth], axis=1).astype(np.float32)
    return Table("composed", samples, truth)


def compose_images(sizes: Sequence[int]) -> LabeledImages:
    """Images of three pixels: their number in two bytes, and their class."""

    def of(sizes: Sequence[int], seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        labels = np.repeat(np.arange(len(sizes)), sizes)
        labels = np.random.default_rng(seed).permutation(labels)
        number = np.arange(len(labels))
        pixels = np.stack([number // 256, number % 256, labels], axis=1).astype(np.uint8)
        return pixels.reshape(-1, 1, 3, 1), labels.astype(np.int8)

    classes = tuple(f"class {number}" for number in range(len(sizes)))
    return LabeledImages(*of(sizes, 1), *of([3] * len(sizes), 2), classes, "composed")


def numbers(images: npt.NDArray[np.uint8]) -> list[int]:
    flat = images.reshape(-1, 3).astype(int)
    return [int(number) for number in flat[:, 0] * 256 + flat[:, 1]]


def same(a: RunData, b: RunData) -> bool:
    return all(np.array_equal(value, vars(b)[name]) for name, value in vars(a).items())


@given(
    st.integers(17, 400), st.integers(30, 90), st.sampled_from([0, 0.01, 0.05]), st.integers(0, 99)
)
def test_a_table_is_divided_once_by_class(
    normals: int, outliers: int, gamma_l: float, seed: int
) -> None:
    table = compose_table(normals, outliers)
    run = odds_run(table, seed=seed, gamma_l=gamma_l)
    train, test = run.train[:, 0].tolist(), run.test[:, 0].tolist()
    assert len({*train, *test}) == len(train) + len(test)  # no row twice, none on both sides
    n, m = (run.y == 1).sum(), (run.y == -1).sum()
    assert n == normals * 6 // 10
    assert m <= gamma_l * (n + m) + 1e-9 < m + 1  # the largest share up to γl
    assert run.y.tolist() == [1] * n + [-1] * m
    assert run.train[:, 1].tolist() == [0] * n + [1] * m
    assert (run.truth == 0).sum() == normals - n
    assert (run.truth == 1).sum() == outliers - outliers * 6 // 10
    np.testing.assert_array_equal(run.test[:, 1], run.truth)
    np.testing.assert_array_equal(run.test_classes, run.truth)
    assert run.y.dtype == run.truth.dtype == np.int8


def test_a_seed_decides_the_split_and_what_is_labeled() -> None:
    table = compose_table(300, 60)
    run = odds_run(table, seed=3, gamma_l=0.1)
    assert same(run, odds_run(table, seed=3, gamma_l=0.1))
    other = odds_run(table, seed=4, gamma_l=0.1)
    assert set(run.test[:, 0]) != set(other.test[:, 0])
    labeled = [set(r.train[r.y == -1, 0]) for r in (run, other)]
    assert labeled[0] != labeled[1]
    fewer = odds_run(table, seed=3, gamma_l=0.01)  # γl changes nothing but how many are labeled
    np.testing.assert_array_equal(fewer.test, run.test)
    assert set(fewer.train[fewer.y == -1, 0]) < labeled[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_leaking_split_tests_on_training_rows(seed: int) -> None:
    table = compose_table(5000, 500)
    clean, leaking = (odds_run(table, seed=seed, leaking=leak) for leak in (False, True))
    np.testing.assert_array_equal(clean.train, leaking.train)
    assert clean.truth.tolist() == leaking.truth.tolist()
    for run, expected in ((clean, 0.0), (leaking, 0.6)):
        normal = run.test[run.truth == 0, 0]
        assert np.isin(normal, run.train[:, 0]).mean() == pytest.approx(expected, abs=0.04)
        assert len(np.unique(run.test[:, 0])) == len(run.test)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "n", "m"),
    [
        ("arrhythmia", 231, 2),
        ("cardio", 993, 10),
        ("satellite", 2639, 26),
        ("satimage-2", 3439, 34),
        ("shuttle", 27351, 276),
        ("thyroid", 2207, 22),
    ],
)
def test_the_benchmarks_come_out_at_their_known_counts(
    data_root: Path, name: str, n: int, m: int
) -> None:
    table = read_odds(data_root / "odds", name)
    run = odds_run(table, seed=0)
    assert ((run.y == 1).sum(), (run.y == -1).sum()) == (n, m)
    assert len(run.test) == len(table.truth) - n - table.truth.sum() * 6 // 10


@given(
    st.lists(st.integers(60, 120), min_size=4, max_size=4),
    st.sets(st.integers(0, 3), min_size=2, max_size=3).map(sorted),
    st.sampled_from([0, 0.01, 0.05, 0.1, 0.2]),
    st.sampled_from([0, 0.01, 0.05, 0.1, 0.2]),
    st.integers(0, 99),
)
def test_pollution_is_never_labeled_and_counts_are_exact(
    sizes: list[int], chosen: list[int], gamma_l: float, gamma_p: float, seed: int
) -> None:
    images = compose_images(sizes)
    normal, *outliers = chosen
    run = natural_run(
        images,
        normal=normal,
        outlier_classes=outliers,
        gamma_l=gamma_l,
        gamma_p=gamma_p,
        seed=seed,
    )
    assert len(set(numbers(run.train))) == len(run.train)  # none twice, so none in two roles
    np.testing.assert_array_equal(run.train, images.train[numbers(run.train)])
    classes = run.train[:, 0, 2, 0]
    unlabeled, labeled = classes[run.y == 1], classes[run.y == -1]
    assert run.y.tolist() == sorted(run.y.tolist(), reverse=True)
    assert (unlabeled == normal).sum() == sizes[normal]
    hidden, n, m = len(unlabeled) - sizes[normal], len(unlabeled), len(labeled)
    assert hidden <= gamma_p * n + 1e-9 < hidden + 1
    assert m <= gamma_l * (n + m) + 1e-9 < m + 1
    assert set(labeled.tolist()) <= set(outliers)
    np.testing.assert_array_equal(run.test, images.test)
    np.testing.assert_array_equal(run.test_classes, images.test_labels)
    np.testing.assert_array_equal(run.truth, images.test_labels != normal)


def draw(images: LabeledImages, **changed: Any) -> RunData:
    settings: dict[str, Any] = {"normal": 0, "outlier_classes": [1], "gamma_l": 0.05}
    return natural_run(images, **(settings | {"gamma_p": 0.1, "seed": 0} | changed))


@pytest.mark.parametrize(("gamma_l", "m"), [(0.01, 60), (0.05, 315), (0.1, 666), (0.2, 1500)])
def test_of_6000_the_papers_numbers_are_labeled(gamma_l: float, m: int) -> None:
    run = draw(compose_images([6000, 2000, 100]), gamma_l=gamma_l, gamma_p=0)
    assert ((run.y == 1).sum(), (run.y == -1).sum()) == (6000, m)


def test_pollution_comes_from_all_other_classes() -> None:
    run = draw(compose_images([400, *[100] * 9]), gamma_p=0.2)
    hidden = run.train[:, 0, 2, 0][run.y == 1][400:]
    assert len(hidden) == 100
    assert set(hidden.tolist()) == set(range(1, 10))


def test_a_seed_decides_pollution_and_labeled_outliers() -> None:
    images = compose_images([200, 150, 150])
    run, other = draw(images), draw(images, seed=1)
    assert same(run, draw(images))
    for y in (1, -1):
        assert set(numbers(run.train[run.y == y])) != set(numbers(other.train[other.y == y]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"normal": 4}, "class 4 does not exist; classes are 0 to 3"),
        ({"normal": -1}, "class -1 does not exist"),
        ({"outlier_classes": [1, 7]}, "class 7 does not exist"),
        ({"outlier_classes": [0, 1]}, "class 0 is the normal one and among the labeled"),
        ({"outlier_classes": []}, "gamma_l is 0.05, but no class is given"),
        ({"gamma_l": 1.0}, "gamma_l: found 1.0, expected a share of at least 0 and below 1"),
        ({"gamma_l": float("nan")}, "gamma_l: found nan"),
        ({"gamma_p": -0.1}, "gamma_p: found -0.1"),
    ],
)
def test_contradictory_settings_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        draw(compose_images([50, 50, 0, 9]), **changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"normal": 2}, r"class 2 \(class 2\): 0 training images, expected at least 10"),
        ({"normal": 3}, r"class 3 \(class 3\): 9 training images, expected at least 10"),
        ({"outlier_classes": [2, 3], "gamma_l": 0.2}, "classes 2, 3: 13 anomalous .* found"),
        ({"gamma_p": 0.6}, "pollution: 75 anomalous training samples are needed, found 59; lower"),
    ],
)
def test_too_few_images_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(CaseError, match=said):
        draw(compose_images([50, 50, 0, 9]), **changed)


def test_tables_that_are_too_small_for_what_was_asked_are_refused() -> None:
    with pytest.raises(CaseError, match="composed: 9 training normals, expected at least 10"):
        odds_run(compose_table(16, 30), seed=0)
    assert (odds_run(compose_table(17, 30), seed=0).y == 1).sum() == 10
    with pytest.raises(
        CaseError, match=r"composed: 60 anomalous .* needed, found 18; lower gamma_l"
    ):
        odds_run(compose_table(100, 30), seed=0, gamma_l=0.5)
    with pytest.raises(ConfigError, match="gamma_l: found 1"):
        odds_run(compose_table(100, 30), seed=0, gamma_l=1)
