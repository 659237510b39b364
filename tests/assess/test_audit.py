"""Leaks between splits, blank and blurred pictures, and what could not be checked."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from test_duplicates import textures

from esad_med.assess.audit import find_leaks
from esad_med.assess.picture_quality import QualityRule, judge_pictures, measure_pictures

NONE = np.empty((0, 2), np.int64)
RULE = QualityRule(constant_levels=2, blank_share=0.95, saturated_share=0.5, deviations=4)


def table(**columns):
    size = max(map(len, columns.values()))
    empty = {name: [""] * size for name in ("patient_id", "case_id", "split")}
    return pd.DataFrame(empty | columns)


def leaks_of(rows, first=None, near=NONE):
    first = np.arange(len(rows)) if first is None else np.array(first)
    return find_leaks(rows, first, near)


def test_patients_and_cases_in_two_splits():
    rows = table(
        patient_id=["a", "a", "b", "b", "c"],
        case_id=["1", "2", "3", "3", "4"],
        split=["train", "test", "train", "val", "test"],
    )
    leaks, checks = leaks_of(rows)
    assert [(leak.kind, leak.splits, leak.rows) for leak in leaks] == [
        ("patient", ("test", "train"), (0, 1)),
        ("patient", ("train", "val"), (2, 3)),
        ("case", ("train", "val"), (2, 3)),
    ]
    assert [(check.status, check.found) for check in checks] == [
        ("done", 2),
        ("done", 1),
        ("done", 0),
    ]


def test_copies_in_two_splits():
    rows = table(split=["train", "train", "test", "", "test"])
    leaks, checks = leaks_of(rows, [0, 0, 0, 0, 4], np.array([[1, 4], [0, 1], [3, 4]]))
    found = [(leak.kind, leak.rows) for leak in leaks]
    assert found == [("sample", (0, 1, 2)), ("near copy", (1, 4))]
    assert checks[-1].status == "in part"
    assert "1 rows have no split" in checks[-1].note


def test_what_could_not_be_checked_is_said():
    _, checks = leaks_of(table(split=["train", "train"]))
    assert {check.status for check in checks} == {"not checked"}
    assert "only split 'train'" in checks[0].note
    assert "no splits" in leaks_of(table(split=["", ""]))[1][0].note
    leaks, checks = leaks_of(table(split=["train", "test"], patient_id=["", "a"]))
    assert leaks == []
    assert [check.status for check in checks] == ["in part", "not checked", "done"]
    assert "1 rows have no patient id" in checks[0].note
    assert "no case ids" in checks[1].note


def judged(pictures, look="tissue"):
    findings, unclear = judge_pictures(measure_pictures(pictures, look), look, RULE)
    return {one.index: one.finding for one in findings}, unclear


@pytest.mark.parametrize("look", ["tissue", "upright"])
def test_blank_and_blurred_pictures_are_named(look):
    pictures = textures(60).astype(float)
    random = np.random.default_rng(0)
    pictures[3] = 250 + random.integers(-2, 3, pictures[3].shape)
    pictures[7] = 4 + random.integers(-2, 3, pictures[7].shape)
    pictures[11] = 128
    pictures[13] = ndimage.gaussian_filter(pictures[13], (3, 3, 0))
    found, unclear = judged(np.clip(pictures, 0, 255).round().astype(np.uint8), look)
    assert set(found) == {3, 7, 11, 13}
    assert "white" in found[3]
    assert "black" in found[7]
    assert (found[11], found[13]) == ("constant", "blurred")
    assert unclear == []


def test_dark_pictures_are_usual_among_dark_pictures():
    digits = textures(60, channels=1).astype(int)
    digits = np.where(digits < 150, 0, digits).astype(np.uint8)
    assert (digits == 0).mean() > 0.5
    found, _ = judged(digits, "upright")
    assert "saturated (black)" not in found.values()
    mostly = textures(60, channels=1)
    mostly[5, :28] = 255
    assert judged(mostly, "upright")[0][5] == "saturated (white)"


def test_few_pictures_have_no_usual_sharpness():
    found, unclear = judged(textures(5))
    assert found == {}
    assert "fewer than 20" in unclear[0]
