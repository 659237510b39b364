"""Scaling of vectors: by hand, constant columns, damaged values."""

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata

from esad_med.base.config import build_spec
from esad_med.base.errors import CaseError, ConfigError
from esad_med.method.scaling import ScaleConfig, Scaling, fit_scaling, normal_scores


def test_z_scores_by_hand() -> None:
    x = np.array([[0.0, 5, -9], [2, 5, 9]], np.float32)
    scaling = fit_scaling(x, ScaleConfig(clip=3))
    assert scaling is not None
    assert scaling.center == (1, 5, 0)
    assert scaling.scale == (1, 1, 9)  # a constant column keeps its unit
    z = scaling(torch.tensor([[2.0, 5, 0], [9, 9, -18]]))
    assert z.tolist() == [[1, 0, 0], [3, 3, -2]]
    assert fit_scaling(x, ScaleConfig(method="none")) is None


def test_without_a_clip_values_go_as_far_as_they_go() -> None:
    scaling = fit_scaling(np.array([[-1.0], [1]]), ScaleConfig(clip=None))
    assert scaling is not None
    assert scaling(torch.tensor([[50.0]])).item() == 50


def test_a_nearly_constant_column_is_not_blown_up() -> None:
    x = np.full((50, 1), 1e4) + 1e-6 * np.arange(50)[:, None]
    scaling = fit_scaling(x, ScaleConfig())
    assert scaling is not None
    assert scaling.scale == (1,)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    x = np.zeros((4, 3))
    x[2, 1] = value
    with pytest.raises(CaseError, match=r"column 1, training row 2: found (nan|inf)"):
        fit_scaling(x, ScaleConfig())


def test_normal_scores_are_those_of_the_ranks() -> None:
    x = np.random.default_rng(0).exponential(size=(5000, 2))
    scaling = fit_scaling(x, ScaleConfig(method="normal_scores"))
    assert scaling is not None
    z = scaling(torch.tensor(x, dtype=torch.float32)).numpy()
    assert z.shape == (5000, 4)
    plain = fit_scaling(x, ScaleConfig())
    assert plain is not None
    np.testing.assert_array_equal(z[:, :2], plain(torch.tensor(x, dtype=torch.float32)).numpy())
    expected = norm.ppf((rankdata(x[:, 0]) - 0.5) / 5000)
    expected = (expected - scaling.center[2]) / scaling.scale[2]
    inside = np.abs(expected) < 2.5
    np.testing.assert_allclose(z[inside, 2], expected[inside], atol=0.06)


def test_normal_scores_by_hand() -> None:
    quantiles = torch.tensor([[0.0, 1, 3, 3, 3]])  # at scores -2, -1, 0, 1, 2
    x = torch.tensor([[-9.0], [0], [0.25], [1], [2], [3], [3.5]])
    found = normal_scores(x, quantiles, 2.0).flatten().tolist()
    # Ties have the mean of what they span; beyond the last value lies the limit.
    assert found == [-2, -2, -1.75, -1, -0.5, 1, 2]


def test_normal_scores_do_not_hang_on_the_unit_or_the_tail() -> None:
    x = np.random.default_rng(0).normal(size=(400, 3))
    scalings = [fit_scaling(v, ScaleConfig(method="normal_scores")) for v in (x, np.exp(x))]
    first, second = (
        scaling(torch.tensor(v, dtype=torch.float32))[:, 3:].numpy()
        for scaling, v in zip(scalings, (x, np.exp(x)), strict=True)
        if scaling is not None
    )
    np.testing.assert_allclose(first, second, atol=0.03)


def test_normal_scores_of_a_constant_column_are_no_noise() -> None:
    x = np.full((50, 1), 1e4) + 1e-6 * np.arange(50)[:, None]
    scaling = fit_scaling(x, ScaleConfig(method="normal_scores"))
    assert scaling is not None
    z = scaling(torch.tensor([[1e4], [1e4 + 2], [0]], dtype=torch.float32))
    np.testing.assert_allclose(z.numpy(), [[0, 0], [2, 2], [-3, -3]], atol=0.01)


def test_fits_that_contradict_themselves_are_refused() -> None:
    for wrong in (
        {"center": [0.0], "scale": [1.0, 1]},
        {"center": [0.0], "scale": [1.0], "quantiles": [[0.0, 1]]},
        {"center": [0.0] * 4, "scale": [1.0] * 4, "quantiles": [[0.0, 1], [0.0]]},
    ):
        with pytest.raises(ConfigError, match=r"must hold|differ in number"):
            build_spec(Scaling, wrong, source="s")
