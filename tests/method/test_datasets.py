"""γl, γp, classes, folds, balanced batches."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esad_med.base.errors import CaseError
from esad_med.base.store import SampleStore
from esad_med.method.batches import TrainingBatches
from esad_med.method.config import DataConfig, TrainConfig
from esad_med.method.datasets import choose_training_set, labeled_outlier_count, pollution_count
from esad_med.method.folds import Fold, held_out_by, split_folds
from esad_med.method.transforms import InputTransform

MakeStore = Callable[..., SampleStore]


@pytest.mark.parametrize(("gamma_l", "m"), [(0.01, 60), (0.05, 315), (0.1, 666), (0.2, 1500)])
def test_labelled_outliers_of_6000(gamma_l: float, m: int) -> None:
    assert labeled_outlier_count(6000, gamma_l) == m


@given(st.integers(0, 100_000), st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.2, 0.5]))
def test_counts_are_the_largest_that_keep_the_ratio(n: int, gamma: float) -> None:
    for count in (labeled_outlier_count, pollution_count):
        m = count(n, gamma)
        assert m <= gamma * (n + m) + 1e-6
        assert m + 1 > gamma * (n + m + 1) - 1e-6


def test_without_ratios_the_semi_labels_decide(vector_store: MakeStore) -> None:
    truth = np.r_[np.zeros(55), np.ones(17)].astype(int)  # five hidden among the unlabeled
    chosen = choose_training_set(vector_store(truth=truth), DataConfig(), seed=0)
    assert chosen.normals.tolist() == list(range(60))
    assert chosen.outliers.tolist() == list(range(60, 72))


def test_labelled_and_pollution_never_meet(vector_store: MakeStore) -> None:
    store = vector_store(normals=60, outliers=40)
    config = DataConfig(labeled_ratio=0.2, pollution=0.1)
    chosen = choose_training_set(store, config, seed=1)
    hidden = chosen.normals[chosen.normals >= 60]
    assert len(hidden) == 6  # of 66 unlabeled
    assert len(chosen.outliers) == 16  # .2 * 66 / .8 = 16.5
    assert not set(hidden) & set(chosen.outliers)
    assert set(range(60)) <= set(chosen.normals)
    other = choose_training_set(store, config, seed=2)
    assert set(other.outliers) != set(chosen.outliers)
    assert len(choose_training_set(store, DataConfig(labeled_count=7), seed=0).outliers) == 7
    assert len(choose_training_set(store, DataConfig(labeled_count=7), seed=0).normals) == 60


def test_labelled_outliers_come_from_k_classes(vector_store: MakeStore) -> None:
    kind = ["normal"] * 60 + ["a", "b", "c"] * 10
    store = vector_store(normals=60, outliers=30, kind=kind)
    config = DataConfig(labeled_count=5, class_column="kind", labeled_classes=1)
    chosen = choose_training_set(store, config, seed=0)
    assert len({kind[i] for i in chosen.outliers}) == 1
    named = DataConfig(labeled_count=8, class_column="kind", labeled_classes=("b", "c"))
    chosen = choose_training_set(store, named, seed=0)
    assert {kind[i] for i in chosen.outliers} == {"b", "c"}
    for bad in (("d",), 4):
        config = DataConfig(labeled_count=5, class_column="kind", labeled_classes=bad)  # type: ignore[arg-type]
        with pytest.raises(CaseError, match="labeled_classes"):
            choose_training_set(store, config, seed=0)


def test_test_rows_are_never_touched(vector_store: MakeStore) -> None:
    split = ["train"] * 40 + ["test"] * 20 + ["train"] * 6 + ["test"] * 6
    store = vector_store(split=split, case_id=[f"{s}{i % 5}" for i, s in enumerate(split)])
    chosen = choose_training_set(store, DataConfig(), seed=0)
    assert len(chosen.normals) == 40
    assert len(chosen.outliers) == 6
    folds = split_folds(chosen, store.rows, count=5, validation=0.2, seed=0)
    for fold in folds:
        for part in fold.__dict__.values():
            assert {split[i] for i in part} <= {"train"}


def test_too_few_samples_are_refused(vector_store: MakeStore) -> None:
    with pytest.raises(CaseError, match="9 normal or unlabeled"):
        choose_training_set(vector_store(normals=9), DataConfig(), seed=0)
    with pytest.raises(CaseError, match="13 anomalous training samples are needed, found 12"):
        choose_training_set(vector_store(), DataConfig(labeled_count=13), seed=0)
    config = DataConfig(labeled_count=1, class_column="kind", labeled_classes=1)
    with pytest.raises(CaseError, match="no column 'kind'"):
        choose_training_set(vector_store(), config, seed=0)


def folds_of(store: SampleStore, **changes: Any) -> tuple[list[Fold], Any]:
    chosen = choose_training_set(store, DataConfig(), seed=0)
    values = {"count": 5, "validation": 0.2, "seed": 0, **changes}
    return split_folds(chosen, store.rows, **values), chosen


@pytest.mark.parametrize("column", ["case_id", "patient_id"])
def test_held_out_cases_and_patients_never_cross(vector_store: MakeStore, column: str) -> None:
    # patients of two cases each: with patient_id given, cases of one patient stay together
    patients = [f"p{i % 10 // 2}" for i in range(72)] if column == "patient_id" else ""
    store = vector_store(patient_id=patients)
    folds, chosen = folds_of(store)
    for fold in folds:
        held = np.r_[fold.held_normals, fold.held_outliers]
        train = np.r_[fold.normals, fold.outliers]
        ids = store.rows[column]
        assert not set(ids.iloc[held]) & set(ids.iloc[train])
        assert len(fold.held_outliers) > 0
        assert sorted([*held, *train]) == list(range(72))
    assert held_out_by(chosen, folds) == column.removesuffix("_id")
    # every case holds labeled outliers, so normals are held out in turn, each once
    everything = np.sort(np.concatenate([f.held_normals for f in folds]))
    assert everything.tolist() == list(range(60))


def test_all_folds_hold_out_the_same_normals_of_cases_without_outliers(
    vector_store: MakeStore,
) -> None:
    cases = [f"n{i % 6}" for i in range(80)] + [f"t{i % 4}" for i in range(52)]
    store = vector_store(normals=120, case_id=cases)
    folds, chosen = folds_of(store)
    shared = set(folds[0].held_normals.tolist())
    assert 12 <= len(shared) <= 48  # about a fifth of 120
    assert {cases[i][0] for i in shared} == {"n"}
    for fold in folds:
        assert set(fold.held_normals.tolist()) == shared
        trained = set(store.rows["case_id"].iloc[np.r_[fold.normals, fold.outliers]])
        assert not trained & set(store.rows["case_id"].iloc[fold.held_outliers])
    outliers = [row for fold in folds for row in fold.held_outliers.tolist()]
    assert sorted(outliers) == list(range(120, 132))  # in turn, each once
    assert held_out_by(chosen, folds) == "case"


def test_a_third_of_the_normals_may_be_held_out_where_slides_are_few(
    vector_store: MakeStore,
) -> None:
    cases = ["n0"] * 30 + ["n1"] * 30 + ["t0"] * 30 + ["t1"] * 30 + ["t0", "t1"] * 6
    folds, chosen = folds_of(vector_store(normals=120, case_id=cases), validation=0.1)
    assert {len(fold.held_normals) for fold in folds} == {30}
    assert {cases[i][0] for fold in folds for i in fold.held_normals} == {"n"}
    assert held_out_by(chosen, folds) == "case"


def test_few_folds_hold_out_the_few_cases_with_outliers(vector_store: MakeStore) -> None:
    """Two tumor slides among six: two members learn from them what the terms are worth."""
    cases = [f"n{i % 4}" for i in range(100)] + [f"t{i % 2}" for i in range(32)]
    folds, _ = folds_of(vector_store(normals=120, case_id=cases), validation=0.1, count=2)
    held = sorted(row for fold in folds for row in fold.held_outliers.tolist())
    assert held == list(range(120, 132))
    assert all(len(fold.outliers) == 6 for fold in folds)


def test_scarce_normals_are_held_out_in_turn(vector_store: MakeStore) -> None:
    """A fifth of 40 are too few for percentiles."""
    folds, _ = folds_of(vector_store(normals=40, case_id=""))
    held = np.sort(np.concatenate([fold.held_normals for fold in folds]))
    assert held.tolist() == list(range(40))


def test_one_large_case_of_normals_is_not_given_up_whole(vector_store: MakeStore) -> None:
    cases = ["n"] * 50 + [f"t{i % 4}" for i in range(22)]
    folds, _ = folds_of(vector_store(case_id=cases))
    assert len({fold.held_normals.tobytes() for fold in folds}) > 1
    assert min(len(fold.normals) for fold in folds) >= 5


def test_the_only_source_of_outliers_is_never_held_out(vector_store: MakeStore) -> None:
    store = vector_store(case_id=[f"n{i % 6}" for i in range(60)] + ["tumor"] * 12)
    folds, _ = folds_of(store)
    assert all(len(f.outliers) == 12 and not len(f.held_outliers) for f in folds)
    assert all(len(f.held_normals) for f in folds)


def test_validation_rows_are_what_is_held_out(vector_store: MakeStore) -> None:
    split = ["train"] * 50 + ["val"] * 10 + ["train"] * 8 + ["val"] * 4
    store = vector_store(split=split, case_id=[f"{s}{i % 5}" for i, s in enumerate(split)])
    (fold, *others), _ = folds_of(store)
    assert fold.held_normals.tolist() == list(range(50, 60))
    assert fold.held_outliers.tolist() == list(range(68, 72))
    assert len(fold.normals) == 50
    assert all(o == fold for o in others) or len(others) == 4


def test_a_single_case_is_held_out_by_sample_and_says_so(
    vector_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        folds, chosen = folds_of(vector_store(case_id="only"))
    assert "held out by sample" in caplog.text
    assert held_out_by(chosen, folds) == "sample"
    assert len(folds[0].held_normals) == 12


def batches_of(store: SampleStore, config: TrainConfig, *, member: int = 0) -> TrainingBatches:
    fold = Fold(np.arange(45), np.arange(60, 70), np.arange(45, 60), np.arange(70, 72))
    return TrainingBatches(
        store.samples,
        fold,
        config,
        transform=InputTransform(value_range=store.value_range, image=False),
        device=torch.device("cpu"),
        member=member,
    )


def test_balanced_batches_hold_a_fixed_number_of_outliers(
    vector_store: MakeStore, vector_config: Callable[..., TrainConfig]
) -> None:
    batches = batches_of(vector_store(), vector_config())
    drawn = list(batches)
    assert len(drawn) == len(batches) == 3
    for batch in drawn:
        assert (batch["normals"], len(batch["rows"])) == (16, 20)
        assert set(batch["rows"][16:].tolist()) <= set(range(60, 70))
    normals = np.concatenate([b["rows"][:16] for b in drawn])
    assert set(normals) == set(range(45))
    assert len(normals) == 48  # the last batch is filled up


@pytest.mark.parametrize("outliers", [0, 10])
def test_turned_normals_are_outliers_of_upright_pictures(
    image_store: SampleStore, outliers: int
) -> None:
    values = {
        "kind": "upright",
        "data": {"batch_size": 16, "outliers_per_batch": 4, "turned_per_batch": 6},
        "augment": {"noise": 0},
    }
    fold = Fold(np.arange(40), np.arange(48, 48 + outliers), np.arange(40, 48), np.arange(0))
    batches = TrainingBatches(
        image_store.samples,
        fold,
        TrainConfig.model_validate(values),
        transform=InputTransform(value_range=image_store.value_range, image=True),
        device=torch.device("cpu"),
        member=0,
    )
    beside = 4 if outliers else 0
    assert batches.sizes == [16 + beside + 6] * 3
    for batch in batches:
        x, target = batches.prepare_batch(batch, torch.device("cpu"))
        stored = batches.transform(batch["samples"])
        assert target.y.tolist() == [1] * 16 + [-1] * (beside + 6)
        assert torch.equal(x[:-6], stored[:-6])
        for own, turned in zip(stored[-6:], x[-6:], strict=True):
            assert any(torch.equal(torch.rot90(own, k, (1, 2)), turned) for k in (1, 2, 3))
        assert set(batch["rows"][-6:].tolist()) <= set(batch["rows"][:16].tolist())


def test_unbalanced_batches_draw_each_sample_once(
    vector_store: MakeStore, vector_config: Callable[..., TrainConfig]
) -> None:
    config = vector_config(data={"outliers_per_batch": 0, "batch_size": 18})
    batches = batches_of(vector_store(), config)
    drawn = list(batches)
    assert [len(b["rows"]) for b in drawn] == [18, 18, 18]  # no batch of one: 55 = 3 * 18 + 1
    assert len(batches) == 3
    rows = np.concatenate([b["rows"] for b in drawn])
    assert len(set(rows)) == 54
    assert all((b["rows"][: b["normals"]] < 60).all() for b in drawn)
    assert all((b["rows"][b["normals"] :] >= 60).all() for b in drawn)


def test_an_epoch_depends_on_seed_member_and_number_only(
    vector_store: MakeStore, vector_config: Callable[..., TrainConfig]
) -> None:
    store, config = vector_store(), vector_config()

    def rows(epoch: int, **changes: int) -> list[int]:
        batches = batches_of(store, config, **changes)
        batches.start_epoch(epoch)
        return [int(r) for batch in batches for r in batch["rows"]]

    assert rows(3) == rows(3)
    assert rows(3) != rows(4)
    assert rows(3) != rows(3, member=1)


@pytest.mark.parametrize("beside", [0, 4])
@pytest.mark.parametrize(("normals", "size"), [(60, 16), (60, 200), (61, 24), (60, 71), (60, 8)])
def test_batches_have_the_sizes_that_they_say(
    vector_store: MakeStore,
    vector_config: Callable[..., TrainConfig],
    normals: int,
    size: int,
    beside: int,
) -> None:
    config = vector_config(data={"batch_size": size, "outliers_per_batch": beside})
    store = vector_store(normals=normals)
    batches = batches_of(store, config)
    assert [len(batch["rows"]) for batch in batches] == batches.sizes
    assert len(batches) == len(batches.sizes)
    assert min(batches.sizes) > 1


def test_x_tilde_is_drawn_by_seed_member_and_epoch(
    vector_store: MakeStore, vector_config: Callable[..., TrainConfig]
) -> None:
    store, config = vector_store(), vector_config(target={"draw": "fresh"})

    def target(epoch: int, **changes: int) -> torch.Tensor:
        batches = batches_of(store, config, **changes)
        batch = next(iter(batches))
        batches.start_epoch(epoch)
        return batches.prepare_batch(batch, torch.device("cpu"))[1].x[16:]

    assert torch.equal(target(3), target(3))
    assert not torch.equal(target(3), target(4))
    assert not torch.equal(target(3), target(3, member=1))


@pytest.mark.parametrize("draw", ["fresh", "fixed"])
def test_targets_are_x_for_normals_and_x_tilde_for_outliers(
    vector_store: MakeStore, vector_config: Callable[..., TrainConfig], draw: str
) -> None:
    config = vector_config(target={"draw": draw}, augment={"noise": 0.5})
    batches = batches_of(vector_store(), config)
    batch = next(iter(batches))
    stored = batch["samples"]
    first = batches.prepare_batch(batch, torch.device("cpu"))
    again = batches.prepare_batch(batch, torch.device("cpu"))
    for x, target in (first, again):
        assert torch.equal(target.x[:16], stored[:16])  # clean, though the input is noised
        assert (target.x[16:] != stored[16:]).any(1).all()
        assert not torch.isclose(x, stored).any(1).all()
    same = torch.equal(first[1].x[16:], again[1].x[16:])
    assert same is (draw == "fixed")
