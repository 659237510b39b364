"""Detectors from arrays: many at once are what they are one by one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from esad_med.base.errors import CaseError, ConfigError, ModelError
from esad_med.method import fitting
from esad_med.method.config import TrainConfig
from esad_med.method.detector import Detector
from esad_med.method.fitting import TrainingData, fit_detector, fit_detectors
from esad_med.method.optimization import clip_each

MakeConfig = Callable[..., TrainConfig]


def table(normals: int = 70, outliers: int = 12, *, seed: int = 0) -> TrainingData:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, [1, 10, 0.1, 1, 1], (normals + outliers, 5)).astype(np.float32)
    x[normals:, 0] += 5
    return TrainingData(x, np.repeat([1, -1], [normals, outliers]))


def detectors_of(data: list[TrainingData], configs: list[TrainConfig]) -> list[Detector]:
    return [one for one in fit_detectors(data, configs) if not isinstance(one, ModelError)]


SGD = {"name": "sgd", "lr": 0.01}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"outliers_per_batch": 0}, "optimizer": {"weight_decay": 0.1, "warmup": 3}},
        {"ema": 0.0, "optimizer": SGD, "target": {"draw": "fresh"}},
        {"optimizer": {**SGD, "clip": None}, "network": {"second_encoder": False}},
        {"optimizer": SGD, "network": {"normalization": "none"}, "target": {"permute": False}},
    ],
)
def test_training_together_is_training_one_by_one(
    vector_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    configs = [vector_config(epochs=2, seed=seed, **changes) for seed in range(3)]
    data = [table(seed=1), table(seed=2), table(seed=3)]
    together = detectors_of(data, configs)
    monkeypatch.setattr(fitting, "can_stack", lambda config, spec: False)
    alone = detectors_of(data, configs)
    assert len(together) == len(alone) == 3
    # Adam turns the rounding of a gradient near zero into a whole step.
    near = 1e-5 if configs[0].optimizer.name == "sgd" else 4 * configs[0].optimizer.lr
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.weights.keys() == theirs.weights.keys()
        for name, tensor in ours.weights.items():
            other = theirs.weights[name]
            # The distance's matrix holds the inverse of a spread, so numbers well above one.
            size = max(1.0, float(other.abs().max())) if "scored" in name else 1.0
            torch.testing.assert_close(
                tensor, other, rtol=1e-4, atol=near * size, msg=lambda m, n=name: f"{n} {m}"
            )
    first, second = (one.weights["member0.decoder.0.weight.weight"] for one in together[:2])
    assert (first - second).abs().max() > 0.1


def test_problems_of_different_sizes_train_side_by_side(vector_config: MakeConfig) -> None:
    data = [table(70), table(40, seed=1), table(300, seed=2)]
    configs = [vector_config(seed=seed) for seed in range(3)]
    for found, own in zip(fit_detectors(data, configs), data, strict=True):
        assert not isinstance(found, ModelError)
        assert found.contract.training.normals == (own.y > 0).sum()


def test_patients_and_cases_are_held_out_whole(vector_config: MakeConfig) -> None:
    data = table(60, 12)
    empty = [""] * 72
    cases = [f"slide {row // 7}" for row in range(72)]
    for kind, rows in (
        ("case", pd.DataFrame({"case_id": cases, "patient_id": empty})),
        ("patient", pd.DataFrame({"case_id": empty, "patient_id": cases})),
        ("sample", None),
    ):
        whole = replace(data, rows=rows)
        detector = fit_detector(whole, vector_config(epochs=1, data={"validation": 0.2}))
        assert detector.contract.calibration.held_out_by == kind
        assert (detector.contract.calibration.normals % 7 == 0) == (rows is not None)


@pytest.mark.parametrize("normals", [25, 47, 85])
def test_tables_smaller_than_a_batch_are_held_out_in_unequal_parts(
    vector_config: MakeConfig, normals: int
) -> None:
    config = vector_config(members=10, epochs=1, data={"batch_size": 128, "validation": 0.1})
    data = table(normals, 3)
    sizes = {len(fold.normals) for fold in fitting._pose(data, config).folds}
    assert len(sizes) > 1  # so the members' batches differ
    assert np.isfinite(fit_detector(data, config).score(data.samples).score).all()


def test_one_that_diverges_leaves_the_others_as_they_are(vector_config: MakeConfig) -> None:
    wild = vector_config(optimizer={"name": "sgd", "lr": 1e30, "clip": None}, seed=1)
    calm = vector_config(seed=2)
    first, second = fit_detectors([table(), table()], [wild, calm])
    assert isinstance(first, ModelError)
    assert "member 0, epoch 1" in str(first)
    assert not isinstance(second, ModelError)
    with pytest.raises(ModelError, match="not finite"):
        fit_detector(table(), wild)


def test_a_network_in_a_stack_diverges_alone(vector_config: MakeConfig) -> None:
    huge = table()
    huge.samples[0, 1] = 3e38  # its square is infinite
    config = vector_config(scale={"method": "none"})
    first, second = fit_detectors(
        [huge, table()], [config, vector_config(scale={"method": "none"})]
    )
    assert isinstance(first, ModelError)
    assert not isinstance(second, ModelError)


def test_gradients_are_clipped_network_by_network() -> None:
    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [torch.randn(3, 4, 5) * torch.tensor([0.01, 1, 9]).view(3, 1, 1), torch.ones(3, 5)]

    stacked = [torch.zeros_like(g).requires_grad_() for g in gradients()]
    for parameter, gradient in zip(stacked, gradients(), strict=True):
        parameter.grad = gradient
    sizes = clip_each(stacked, 3.0)
    for k in range(3):
        own = [torch.zeros_like(g[k]).requires_grad_() for g in gradients()]
        for parameter, gradient in zip(own, gradients(), strict=True):
            parameter.grad = gradient[k]
        torch.testing.assert_close(sizes[k], torch.nn.utils.clip_grad_norm_(own, 3.0))
        for parameter, together in zip(own, stacked, strict=True):
            assert together.grad is not None
            torch.testing.assert_close(parameter.grad, together.grad[k])


def test_few_labeled_outliers_are_all_trained_on(vector_config: MakeConfig) -> None:
    few, many = (fit_detector(table(outliers=count), vector_config()).contract for count in (9, 12))
    assert (few.calibration.outliers, few.fusion.learned) == (0, False)
    assert many.calibration.outliers > 0
    assert many.fusion.learned


def test_columns_are_scaled_inside(vector_config: MakeConfig) -> None:
    data = table()
    moved = TrainingData(data.samples * 1000 + 7, data.y)
    first, second = (fit_detector(one, vector_config()) for one in (data, moved))
    np.testing.assert_allclose(
        first.score(data.samples).score, second.score(moved.samples).score, rtol=0.05, atol=0.05
    )
    constant = TrainingData(np.hstack([data.samples, np.full((82, 1), 3, "f4")]), data.y)
    assert np.isfinite(fit_detector(constant, vector_config()).score(constant.samples).score).all()


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_scores_do_not_depend_on_the_batch(vector_config: MakeConfig, precision: Any) -> None:
    data = table()
    detector = fit_detector(data, vector_config())
    whole = detector.score(data.samples, precision=precision).score
    single = detector.score(data.samples, batch_size=1, precision=precision).score
    exact = precision == "float64"
    np.testing.assert_allclose(whole, single, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


def test_epochs_follow_the_least_and_the_most_steps() -> None:
    config = TrainConfig(epochs=10, least_steps=100, most_steps=400)
    assert [config.planned_epochs(n) for n in (4, 10, 40, 50, 900)] == [25, 10, 10, 8, 1]
    with pytest.raises(ValueError, match="least_steps is above most_steps"):
        TrainConfig(least_steps=2, most_steps=1)


def test_what_cannot_be_trained_on_is_refused(vector_config: MakeConfig) -> None:
    data = table()
    with pytest.raises(
        CaseError, match="9 normal or unlabeled training samples, expected at least"
    ):
        fit_detector(TrainingData(data.samples, np.repeat([1, -1], [9, 73])), vector_config())
    with pytest.raises(ConfigError, match="kind=vector, the settings say kind=image"):
        fit_detector(data, TrainConfig())
    damaged: npt.NDArray[np.float32] = data.samples.copy()
    damaged[3, 4] = np.nan
    with pytest.raises(CaseError, match="column 4, training row 3: found nan"):
        fit_detector(TrainingData(damaged, data.y), vector_config())
