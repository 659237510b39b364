"""Copies are found however they lie; other pictures are not taken for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from esad_med.assess.descriptors import Projection, describe_for_copies, shrink, to_gray
from esad_med.assess.duplicates import (
    ORIENTATIONS,
    candidate_pairs,
    compare_pictures,
    compare_rows,
    digest_samples,
    first_of_each,
    group_pairs,
    orientations,
)


def textures(count, seed=0, side=32, channels=3):
    """Smooth random pictures (n, h, w, c) uint8, no two alike."""
    noise = np.random.default_rng(seed).normal(size=(count, side, side, channels))
    smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 0))
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def turned(pictures):
    """The eight orientations of (n, h, w, c)."""
    planes = pictures.transpose(0, 3, 1, 2)
    return [way.transpose(0, 2, 3, 1) for way in orientations(planes)]


def test_a_descriptor_is_the_same_in_every_orientation():
    pictures = textures(5)
    own = describe_for_copies(to_gray(pictures))
    ways = turned(pictures)
    assert len({way.tobytes() for way in ways}) == 8
    for way in ways:
        np.testing.assert_allclose(describe_for_copies(to_gray(way)), own, atol=1e-5)
    assert np.abs(own[0] - own[1]).max() > 0.05  # or the same for every picture


@given(st.integers(0, 1000), st.sampled_from([16, 28, 32, 50]))
def test_descriptors_are_never_further_apart_than_the_thumbnails(seed, side):
    one, other = textures(2, seed, side, 1)
    small = shrink(to_gray(np.stack([one, other])), 16)
    small = small - small.mean(axis=(1, 2), keepdims=True)
    small /= np.sqrt((small**2).sum(axis=(1, 2), keepdims=True))
    ways = orientations(small[1][None, None])
    best = min(np.sqrt(((small[0] - way[0, 0]) ** 2).sum()) for way in ways)
    found = describe_for_copies(to_gray(np.stack([one, other])))
    between = np.sqrt(((found[0] - found[1]) ** 2).sum())
    assert between <= best + 1e-4
    placed = Projection.fit([describe_for_copies(to_gray(textures(40, 1, side, 1)))], 8)
    steps = placed(found) * placed.scale[0]  # one block: one unit
    assert np.sqrt(((steps[0] - steps[1]) ** 2).sum()) <= between + 1e-4


def test_brightness_and_contrast_do_not_matter():
    pictures = textures(3)
    darker = (0.8 * pictures.astype(float) + 10).round().astype(np.uint8)
    found = [describe_for_copies(to_gray(one)) for one in (pictures, darker)]
    assert np.abs(found[0] - found[1]).max() < 0.01
    likeness = compare_pictures(pictures, darker)
    assert (likeness.correlation > 0.999).all()
    assert (likeness.residual < 0.003).all()


@pytest.mark.parametrize("way", range(8))
def test_a_pair_is_compared_in_the_orientation_that_fits(way):
    pictures = textures(4)
    likeness = compare_pictures(turned(pictures)[way], pictures)
    np.testing.assert_allclose(likeness.correlation, 1, atol=1e-4)
    assert {ORIENTATIONS[index] for index in likeness.orientation} == {ORIENTATIONS[way]}


def test_other_pictures_are_unlike():
    likeness = compare_pictures(textures(20, 0), textures(20, 1))
    assert likeness.correlation.max() < 0.5
    assert likeness.residual.min() > 0.1


def test_pictures_that_are_not_square_are_only_mirrored():
    tall = textures(2)[:, :, :20]
    assert np.allclose(compare_pictures(tall, tall[:, ::-1]).correlation, 1, atol=1e-4)


def test_equal_bytes_are_found():
    samples = np.array([[1, 2], [3, 4], [1, 2], [1, 2], [5, 6]], np.float32)
    assert first_of_each(digest_samples(samples)).tolist() == [0, 1, 0, 0, 4]


def test_candidates_are_the_near_points_each_pair_once():
    points = np.array([[0, 0], [0.01, 0], [1, 1], [1, 1.01], [5, 5]], np.float32)
    rows = np.arange(5)
    pairs = np.concatenate(list(candidate_pairs(points, rows, radius=0.05, neighbors=3)))
    assert pairs.tolist() == [[0, 1], [2, 3]]
    without = np.array([0, 2, 3, 4])
    pairs = np.concatenate(list(candidate_pairs(points, without, radius=0.05, neighbors=3)))
    assert pairs.tolist() == [[2, 3]]
    assert list(candidate_pairs(points, rows[:1], radius=1, neighbors=3)) == []


def test_rows_are_compared_by_distance():
    one = np.zeros((2, 3), np.float32)
    other = np.array([[0, 0, 0], [3, 4, 0]], np.float32)
    assert compare_rows(one, other).residual.tolist() == [0, 5]


def test_chains_are_one_group():
    groups = group_pairs(5, np.array([[0, 1], [1, 3]]))
    assert groups[0] == groups[1] == groups[3]
    assert len(set(groups)) == 3
