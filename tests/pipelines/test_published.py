"""The paper's numbers: how many there are, and some of each table as printed."""

from collections import Counter

import pytest

from pipelines.paper.published import _CELLS, QUOTED, published


def test_every_printed_cell_is_there() -> None:
    counts = Counter(table for table, *_ in _CELLS)
    assert counts == {
        1: 15 * 4 - 3,
        2: 13 * 3 - 4,
        3: 7 * 4 - 3,
        4: 6 * 8,
        5: 6 * 2,
        8: 15 * 9,
        9: 15 * 9 - 6,
    }
    for cell in _CELLS.values():
        assert 39 < cell.mean < 100
        assert cell.sd is None or 0 <= cell.sd < 17


@pytest.mark.parametrize(
    ("table", "data", "method", "setting", "mean", "sd"),
    [
        (1, "cifar10", "esad", {"gamma_l": 0.01}, 83.7, 6.4),
        (1, "mnist", "ss-dgm", {"gamma_l": 0.2}, 91.2, 5.6),
        (2, "fmnist", "DGEO", {}, 93.5, None),
        (2, "mnist", "esad", {"gamma_l": 0.0}, 98.5, 1.3),
        (3, "nih-pa", "DPA", {}, 70.8, 0.1),
        (3, "camelyon16", "esad", {}, 96.8, 0.4),
        (4, "arrhythmia", "supervised", {}, 39.2, 9.5),
        (4, "thyroid", "ss-dgm", {}, 72.7, 12.0),
        (5, "cardio", "esad", {"variant": "no second encoder"}, 96.5, 1.1),
        (5, "satellite", "esad", {"variant": ""}, 92.5, 0.7),
        (8, "fmnist", "ssad-hybrid", {"gamma_p": 0.2}, 74.3, 10.6),
        (9, "cifar10", "deep-svdd", {"k_l": 3}, 58.6, 10.0),
        (9, "mnist", "supervised", {"k_l": 5}, 96.9, 1.7),
    ],
)
def test_some_of_each_table(
    table: int, data: str, method: str, setting: dict[str, float], mean: float, sd: float | None
) -> None:
    cell = published(table, data, method, **setting)
    assert cell is not None
    assert (cell.mean, cell.sd, cell.quoted) == (mean, sd, method in QUOTED)


def test_what_is_not_printed_is_none() -> None:
    assert published(1, "mnist", "ss-dgm", gamma_l=0.0) is None
    assert published(2, "cifar10", "supervised") is None
    assert published(4, "cardio", "isolation-forest") is None


def test_tables_agree_where_they_repeat_a_number() -> None:
    for data in ("mnist", "fmnist", "cifar10"):
        for method in ("ssad-hybrid", "ss-dgm", "deep-sad", "esad"):
            once = published(1, data, method, gamma_l=0.05)
            assert once == published(8, data, method, gamma_p=0.0)
        for method in ("oc-svm-hybrid", "cae", "deep-svdd", "esad", "supervised", "ss-dgm"):
            assert published(8, data, method, gamma_p=0.1) == published(9, data, method, k_l=1)
        assert published(1, data, "esad", gamma_l=0.2) == published(2, data, "esad", gamma_l=0.2)
    for data in ("satellite", "cardio"):
        assert published(5, data, "esad", variant="") == published(4, data, "esad")


def test_esad_is_best_where_the_paper_says_so() -> None:
    for table in (1, 8, 9):
        groups: dict[tuple[str, object], dict[str, float]] = {}
        for (number, data, method, setting), cell in _CELLS.items():
            if number == table:
                groups.setdefault((data, setting), {})[method] = cell.mean
        assert groups
        assert all(max(own, key=own.__getitem__) == "esad" for own in groups.values())
