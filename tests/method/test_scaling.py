"""Scaling of vectors: by hand, constant columns, damaged values."""

import numpy as np
import pytest
import torch

from esad_med.base.errors import CaseError
from esad_med.method.scaling import ScaleConfig, fit_scaling


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
