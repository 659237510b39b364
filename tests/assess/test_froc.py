"""FROC by Camelyon16's arithmetic: numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure

from esad_med.assess.froc import (
    SlideDetections,
    bootstrap_froc,
    compute_froc,
    find_lesions,
    match_detections,
    suppress_neighbors,
)
from esad_med.base.errors import CaseError

# At level 5 and 0.25 µm a pixel is 8 µm: tumor grows by less than 75 / 16 = 4.69, so by 4 pixels.
RULES = {"mpp": 0.25, "downsample": 32}


def picture(*boxes, size=(100, 100)):
    mask = np.zeros(size, bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def test_a_lesion_grows_by_half_of_75_um_to_each_side():
    lesions = find_lesions(picture((40, 30, 50, 70)), **RULES)
    rows, columns = np.nonzero(lesions.labels)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (36, 53, 26, 73)
    assert lesions.count == 1
    assert not lesions.isolated  # 4 sqrt((48² - 1) / 12) = 55 pixels, above 275 / 8 = 34.4


@pytest.mark.parametrize(("gap", "count"), [(8, 1), (9, 2)])
def test_growth_closes_a_gap_of_less_than_75_um(gap, count):
    """Between two edges 8 pixels apart each has a neighbor within 4; 9 apart the middle has not."""
    tumor = picture((20, 10, 60, 30), (20, 30 + gap, 60, 60 + gap))
    assert find_lesions(tumor, **RULES).count == count


def test_lesions_that_touch_at_a_corner_are_one():
    tumor = picture((10, 10, 20, 20), (20, 20, 30, 30))
    assert find_lesions(tumor, growth_um=0.1, **RULES).count == 1


def test_holes_are_filled():
    ring = picture((10, 10, 70, 70))
    ring[25:55, 25:55] = False
    lesions = find_lesions(ring, **RULES)
    assert lesions.count == 1
    assert lesions.labels[40, 40] == 1


@pytest.mark.parametrize(("isolated_um", "isolated"), [(91.91, set()), (91.92, {1})])
def test_isolated_tumor_cells_have_a_short_longest_axis(isolated_um, isolated):
    """A bar of 10 pixels of 8 µm: 4 sqrt((10² - 1) / 12) = 11.489 pixels, 91.913 µm."""
    bar = picture((50, 50, 53, 60))
    found = find_lesions(bar, growth_um=0.1, isolated_um=isolated_um, **RULES)
    assert found.isolated == isolated


@given(st.lists(st.tuples(*[st.integers(0, 39)] * 2, *[st.integers(1, 25)] * 2), min_size=1))
def test_only_the_surroundings_of_tumor_need_to_be_looked_at(boxes):
    """The organizers' steps over the whole picture, at its edges too."""
    tumor = picture(*((y, x, y + h, x + w) for y, x, h, w in boxes), size=(40, 40))
    near = ndimage.distance_transform_edt(~tumor) < 75 / 16
    whole = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    np.testing.assert_array_equal(find_lesions(tumor, **RULES).labels, whole)


def test_a_mask_without_tumor_has_no_lesion():
    lesions = find_lesions(np.zeros((20, 20), bool), **RULES)
    assert (lesions.count, lesions.isolated) == (0, frozenset())


def test_detections_are_hits_false_or_ignored():
    tumor = picture((10, 10, 60, 20), (80, 80, 82, 82))
    lesions = find_lesions(tumor, **RULES)
    assert lesions.isolated == {2}
    xy = np.array([(10, 10), (19, 59), (81, 81), (50, 50), (-1, 10), (5, 100), (6, 30)]) * 32
    match = match_detections([0.3, 0.6, 0.9, 0.5, 0.4, 0.2, 0.1], xy, lesions)
    assert match.hits.tolist() == [0.6, 0]  # the best; nothing for isolated tumor cells
    assert match.false_positives.tolist() == [0.5, 0.4, 0.2]  # the last two outside of the picture
    assert (match.ignored, match.targets) == (1, 1)


def test_a_lesion_reaches_to_the_picture_s_last_pixel():
    lesions = find_lesions(picture((60, 90, 100, 100)), **RULES)
    assert match_detections([0.5], [(3199, 3199)], lesions).hits.tolist() == [0.5]


def test_all_detections_of_a_normal_slide_are_false():
    match = match_detections([0.3, 0.6], [(1, 2), (3, 4)], None)
    assert match.false_positives.tolist() == [0.3, 0.6]
    assert (len(match.hits), match.targets) == (0, 0)


def slide(hits, false, targets):
    return SlideDetections(np.array(hits, float), np.array(false, float), 0, targets)


BY_HAND = [
    slide([0.9, 0.4, 0], [0.7], 2),  # the third are isolated tumor cells
    slide([0], [0.5], 1),
    slide([], [0.9, 0.3], 0),
    slide([], [], 0),
]


def test_froc_by_hand():
    """Thresholds 0.3, 0.4, 0.5, 0.7 and 0.9; three lesions, four slides; 0.9 is tied."""
    froc = compute_froc(BY_HAND)
    np.testing.assert_allclose(froc.false_positives, [1, 0.75, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(froc.sensitivity, np.array([2, 2, 1, 1, 1, 0]) / 3)
    np.testing.assert_allclose(list(froc.at.values()), np.array([1, 1, 2, 2, 2, 2]) / 3)
    assert froc.score == pytest.approx(5 / 9)
    assert (froc.slides, froc.lesions) == (4, 3)
    assert compute_froc(BY_HAND, [0.125]).score == pytest.approx(1 / 6)  # halfway to the first


def test_the_lowest_threshold_is_dropped_as_in_the_organizers_code():
    """Where every lesion was found the least probable detection is lost, a hit or not."""
    froc = compute_froc([slide([0.9, 0.2], [0.5], 2)])
    assert froc.sensitivity.tolist() == [0.5, 0.5, 0]
    assert froc.false_positives.tolist() == [1, 0, 0]


def test_slides_without_any_detection_score_nothing():
    assert compute_froc([slide([0], [], 1), slide([], [], 0)]).score == 0


def test_a_sensitivity_needs_a_lesion():
    with pytest.raises(CaseError, match="at least one"):
        compute_froc([slide([], [0.5], 0)])


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 9), max_size=4)), min_size=1))
def test_froc_only_sees_the_order(plan):
    """A rising map changes nothing, and a better hit never lowers the score."""
    slides = [slide(np.arange(1, k + 1) / 10, np.array(false) / 10, k) for k, false in plan] + [
        slide([0.5, 0], [], 2)
    ]
    mapped = [slide(s.hits**3, s.false_positives**3, s.targets) for s in slides]
    better = [slide(np.where(s.hits, 1.0, 0), s.false_positives, s.targets) for s in slides]
    score = compute_froc(slides).score
    assert compute_froc(mapped).score == pytest.approx(score)
    assert compute_froc(better).score >= score - 1e-12


def test_the_interval_holds_the_score_and_needs_two_tumor_slides():
    slides = [*BY_HAND, slide([0.8, 0.6], [0.1], 2)] * 4
    low, high = bootstrap_froc(slides, resamples=100)
    assert low < compute_froc(slides).score < high
    assert np.isnan(bootstrap_froc([slide([0.5], [], 1)])).all()


def test_suppression_keeps_the_highest_of_neighbors():
    xy = [(0, 0), (1, 0), (2, 0), (3, 0), (9, 0)]
    assert suppress_neighbors([5, 6, 7, 1, 7], xy, radius=1).tolist() == [2, 4, 0]
    assert suppress_neighbors([5, 6, 7, 1, 7], xy, radius=0.5).tolist() == [2, 4, 1, 0, 3]
    assert suppress_neighbors([], [], radius=1).tolist() == []
