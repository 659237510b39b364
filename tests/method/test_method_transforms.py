"""Network input, x_tilde, augmentation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, DivisiblePad, EnsureChannelFirst, ScaleIntensityRange

from esad_med.method.transforms import (
    AugmentSpec,
    InputTransform,
    WrongTargetSpec,
    corrupt,
    each_view,
    jitter,
    mix,
    random_views,
    shift,
    view,
    views_of,
    wrong_target,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [28, 32, 33])
def test_input_transform_is_monais_chain_for_whole_batches(side: int) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (3, side, 20, 3), dtype=np.uint8)
    chain = Compose(
        [
            EnsureChannelFirst(channel_dim=-1),
            DivisiblePad(16),
            ScaleIntensityRange(a_min=0, a_max=255, b_min=-1, b_max=1),
        ]
    )
    expected = np.stack([np.asarray(chain(sample)) for sample in samples])
    ours = InputTransform(value_range=(0, 255), image=True)(samples)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)
    assert ours.shape[2:] == ((side + 15) // 16 * 16, 32)


def test_input_range_is_minus_one_to_one_and_vectors_are_passed_on() -> None:
    ends = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(16, 1).repeat(16, 2)
    x = InputTransform(value_range=(0, 255), image=True)(ends)
    assert x[0].unique().tolist() == [-1]
    assert x[1].unique().tolist() == [1]
    vectors = torch.randn(2, 5)
    assert torch.equal(InputTransform(value_range=(-9, 9), image=False)(vectors), vectors)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.booleans(), st.booleans())
def test_x_tilde_is_never_x(seed: int, constant: bool, image: bool) -> None:
    shape = (4, 3, 16, 16) if image else (4, 3)
    x = torch.full(shape, 0.5) if constant else torch.randn(shape, generator=seeded(seed))
    x_tilde = wrong_target(x, WrongTargetSpec(), seeded(seed))
    assert x_tilde.shape == x.shape
    assert (x_tilde != x).flatten(1).any(1).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_x_tilde_is_turned_or_permuted_not_only_noised(seed: int) -> None:
    x = torch.arange(2.0 * 256).reshape(2, 1, 16, 16)
    turned = wrong_target(x, WrongTargetSpec(noise=1e-6), seeded(seed))
    for one, original in zip(turned, x, strict=True):
        fits = [torch.allclose(one, torch.rot90(original, k, (1, 2)), atol=1e-3) for k in range(4)]
        assert fits[0] is False
        assert sum(fits) == 1
    rows = torch.arange(3.0).repeat(8, 1)  # 1 of 6 permutations of 3 leaves all in place
    permuted = wrong_target(rows, WrongTargetSpec(noise=1e-6), seeded(seed))
    assert torch.allclose(permuted.sort(1).values, rows, atol=1e-3)
    assert not torch.isclose(permuted, rows, atol=1e-3).all(1).any()


def test_x_tilde_of_oblong_pictures_keeps_the_shape() -> None:
    x = torch.randn(2, 3, 16, 32)
    x_tilde = wrong_target(x, WrongTargetSpec(noise=1e-6), seeded())
    assert torch.allclose(x_tilde, torch.rot90(x, 2, (2, 3)), atol=1e-4)


def test_x_tilde_carries_noise_of_its_sigma() -> None:
    x = torch.zeros(4, 3, 64, 64)
    x_tilde = wrong_target(x, WrongTargetSpec(), seeded())
    assert x_tilde.std().item() == pytest.approx(0.1, rel=0.02)


def test_the_eight_views_differ_and_keep_the_values() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    views = [view(x, k) for k in range(8)]
    assert len({tuple(v.flatten().tolist()) for v in views}) == 8
    assert all(torch.equal(v.flatten().sort().values, x.flatten()) for v in views)
    assert torch.equal(views[0], x)


def test_oblong_pictures_have_views_that_fit() -> None:
    x = torch.zeros(1, 1, 4, 6)
    assert views_of((1, 4, 6), 8) == [0, 2, 4, 6]
    assert all(view(x, k).shape == x.shape for k in views_of((1, 4, 6), 8))
    assert views_of((1, 4, 4), 2) == [0, 1]


def test_shifted_pictures_are_windows_of_the_mirrored_picture() -> None:
    x = torch.rand(200, 3, 16, 32).contiguous(memory_format=torch.channels_last)
    moved = shift(x, 0.125, seeded())
    padded = torch.nn.functional.pad(x, (4, 4, 2, 2), mode="reflect")
    seen = set()
    for picture, wide in zip(moved, padded, strict=True):
        windows = [(r, c) for r in range(5) for c in range(9)]
        found = [w for w in windows if torch.equal(picture, wide[:, w[0] :, w[1] :][:, :16, :32])]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 45  # 5 rows by 9 columns of whole pixels, all drawn in 200 pictures
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert shift(x, 0.0, seeded()) is x
    assert shift(x[:, 0, 0], 0.5, seeded()).shape == (200, 32)  # vectors are passed on


def test_random_views_are_views_and_all_occur() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4).expand(200, 1, 4, 4)
    seen = {tuple(v.flatten().tolist()) for v in random_views(x, AugmentSpec(), seeded())}
    assert seen == {tuple(view(x[:1], k).flatten().tolist()) for k in range(8)}
    flips = AugmentSpec(rotations=False)
    assert len({tuple(v.flatten().tolist()) for v in random_views(x, flips, seeded())}) == 2
    still = AugmentSpec(flips=False, rotations=False)
    assert torch.equal(random_views(x, still, seeded()), x)


def test_augmentation_is_off_at_zero_and_on_above() -> None:
    x = torch.rand(4, 3, 16, 16)
    off = AugmentSpec()
    assert torch.equal(jitter(x, off, seeded()), x)
    assert torch.equal(corrupt(x, off, seeded()), x)
    assert torch.equal(mix(x, 0, seeded()), x)
    for name in ("brightness", "contrast", "color"):
        assert not torch.equal(jitter(x, AugmentSpec(**{name: 0.1}), seeded()), x)
    noisy = corrupt(torch.zeros(4, 3, 64, 64), AugmentSpec(noise=0.5), seeded())
    assert noisy.std().item() == pytest.approx(0.5, rel=0.02)
    assert not torch.equal(mix(x, 1, seeded()), x)


def test_erasing_blanks_one_square_in_about_half_of_the_pictures() -> None:
    x = torch.rand(200, 1, 16, 16)
    changed = (corrupt(x, AugmentSpec(erase=0.25), seeded()) != x).flatten(1).sum(1)
    assert set(changed.tolist()) == {0, 16}  # a square of 4 x 4
    assert 60 < (changed > 0).sum() < 140


@pytest.mark.parametrize("size", [(16, 16), (16, 32)])
def test_each_picture_gets_the_view_of_its_own_index(size: tuple[int, int]) -> None:
    x = torch.rand(8, 3, *size).contiguous(memory_format=torch.channels_last)
    indices = torch.tensor([7, 1, 0, 3, 2, 6, 5, 4] if size[0] == size[1] else [6, 0, 2, 4] * 2)
    found = each_view(x, indices)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for picture, index, one in zip(x, indices.tolist(), found, strict=True):
        assert torch.equal(one, view(picture[None], index)[0])
