"""Negatives are told from what is seen, not from what the file says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.synthetic_xray import compose_xray
from data_prep.xray import read_xray
from data_prep.xray_chain import XraySpec
from data_prep.xray_checks import chest_likeness
from esad_med.base.errors import ImageError

NEGATIVE_OF_NIH = "00017999_000.jpg"  # a negative indeed: white outside, dark bones


@given(st.integers(0, 2**32 - 1), st.integers(16, 90), st.integers(16, 90))
def test_a_negative_is_as_unlikely_as_its_picture_is_likely(seed, rows, columns):
    picture = np.random.default_rng(seed).random((rows, columns)).astype(np.float32)
    likeness = chest_likeness(picture)
    assert chest_likeness(1 - picture) == pytest.approx(-likeness, abs=1e-4)
    assert -1 <= likeness <= 1


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1), st.floats(0, 0.5))
def test_brightness_and_contrast_do_not_matter(seed, contrast, brightness):
    picture = compose_xray(np.random.default_rng(seed), 64)
    dimmed = (picture * contrast + brightness).astype(np.float32)
    assert chest_likeness(dimmed) == pytest.approx(chest_likeness(picture), abs=1e-3)


def test_drawn_chests_are_taken_and_their_negatives_refused():
    for seed in range(20):
        picture = compose_xray(np.random.default_rng(seed), 96)
        XraySpec().check_polarity(picture)
        with pytest.raises(ImageError, match="probably inverted"):
            XraySpec().check_polarity(1 - picture)
        XraySpec(negative_below=-1).check_polarity(1 - picture)


def test_a_picture_of_one_value_is_neither():
    assert chest_likeness(np.full((80, 70), 0.3, np.float32)) == 0


def test_a_picture_that_is_not_contiguous_is_seen_as_it_is():
    picture = compose_xray(np.random.default_rng(0), 64)
    assert chest_likeness(np.asfortranarray(picture)) == chest_likeness(picture)
    assert chest_likeness(picture.astype(np.float64)) == pytest.approx(chest_likeness(picture))


@pytest.mark.data
def test_of_all_nih_images_at_hand_only_a_true_negative_is_refused(data_root):
    found = {}
    for path in sorted((data_root / "nih_cxr").glob("*1024/*")):
        found[path.name] = chest_likeness(read_xray(path).pixels)
    limit = XraySpec().negative_below
    assert len(found) == 1080
    assert [name for name, likeness in found.items() if likeness < limit] == [NEGATIVE_OF_NIH]
    assert np.mean([-likeness < limit for likeness in found.values()]) > 0.97


@pytest.mark.data
def test_a_true_negative_and_a_wrong_tag_are_refused_and_good_files_are_not(data_root):
    spec = XraySpec()
    for name in (f"nih_cxr/jpeg1024/{NEGATIVE_OF_NIH}", "cxr_dicom/odd/Fake_MONOHR1.dcm"):
        with pytest.raises(ImageError, match="probably inverted"):
            spec.check_polarity(read_xray(data_root / name).pixels)
    good = [p for d in ("chest", "wrapped_nih") for p in (data_root / "cxr_dicom" / d).iterdir()]
    assert len(good) == 6
    for path in good:
        spec.check_polarity(read_xray(path).pixels)
