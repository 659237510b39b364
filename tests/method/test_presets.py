"""The settings of a training: presets, overrides, refusals."""

from pathlib import Path

import pytest

from esad_med.base.config import dump_yaml, load_config
from esad_med.base.errors import ConfigError
from esad_med.method.config import TrainConfig


def test_paper_is_the_recipe_of_the_supplement() -> None:
    config = load_config(TrainConfig, overrides=["preset=paper"])
    optimizer, data, loss = config.optimizer, config.data, config.loss
    assert (optimizer.name, optimizer.lr, optimizer.halve_every) == ("sgd", 0.1, 50)
    assert (config.epochs, data.batch_size, data.outliers_per_batch) == (200, 32, 0)
    assert (loss.lambda1, loss.lambda2, loss.norm, loss.averaging) == (1, 1, "l2", "joint")
    assert (config.network.width, config.network.skip, config.members) == (1, False, 1)
    assert (config.fusion.mode, config.ema, config.test_time_augmentation) == ("sum", 0, 1)
    assert optimizer.clip == 1  # a guard of ours


def test_the_users_keys_win_over_the_presets() -> None:
    config = load_config(
        TrainConfig, overrides=["preset=paper", "optimizer.lr=0.01", "network.width=0.25"]
    )
    assert (config.optimizer.lr, config.network.width) == (0.01, 0.25)
    assert (config.optimizer.name, config.epochs) == ("sgd", 200)


def test_the_users_epochs_are_not_stretched_by_the_preset() -> None:
    own = load_config(TrainConfig, overrides=["kind=vector"])
    assert [own.planned_epochs(n) for n in (2, 1000)] == [200, 3]
    given = load_config(TrainConfig, overrides=["kind=vector", "epochs=7"])
    assert [given.planned_epochs(n) for n in (2, 1000)] == [7, 7]
    both = load_config(TrainConfig, overrides=["kind=vector", "epochs=7", "least_steps=100"])
    assert both.planned_epochs(2) == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.turned_per_batch=4"], "set kind=upright"),
        (["kind=upright", "augment.rotations=true"], "augment.rotations=false"),
        (["kind=upright", "test_time_augmentation=4"], "test_time_augmentation=1"),
        (["kind=vector", "data.turned_per_batch=4"], "vectors cannot be turned"),
        (["kind=upright", "data.outliers_per_batch=0"], "needs balanced batches"),
    ],
)
def test_turned_normals_are_not_outliers_and_normal_at_once(
    changes: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, overrides=changes)


@pytest.mark.parametrize("preset", ["paper", "recommended"])
def test_config_to_yaml_to_config(tmp_path: Path, preset: str) -> None:
    config = load_config(TrainConfig, overrides=[f"preset={preset}", "data.labeled_count=20"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(TrainConfig, file) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate: unknown key"),
        ("preset=best", "preset"),
        ("data.pollution=1.5", "data.pollution"),
        ("loss.push=away", "loss.push"),
    ],
)
def test_impossible_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, overrides=[override])


def test_ratio_and_count_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude"):
        load_config(TrainConfig, overrides=["data.labeled_ratio=.1", "data.labeled_count=5"])
    with pytest.raises(ConfigError, match="class_column"):
        load_config(TrainConfig, overrides=["data.labeled_classes=1"])
