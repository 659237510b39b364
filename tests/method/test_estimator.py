"""`ESADDetector`: scikit-learn's own checks, and what they do not check."""

import warnings

import numpy as np
import pytest
from pyod.models.knn import KNN
from pyod.utils.data import evaluate_print
from pyod.utils.utility import precision_n_scores
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from esad_med import ESADDetector
from esad_med.base.errors import ConfigError
from esad_med.method.networks import default_hidden


def quick(**changes: object) -> ESADDetector:
    settings = {"members": 1, "epochs": 2, "random_state": 0, **changes}
    return ESADDetector(**settings)


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray]:
    """Two hundred normals around 0, twenty outliers whose first column is larger."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(220, 8))
    x[200:, 0] += 6
    return x, np.repeat([1, -1], [200, 20])


def test_scikit_learns_checks_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some checks pass labels of 0 and 1
        results = check_estimator(quick(epochs=1, hidden=(4, 2)), on_skip=None)
    assert len(results) > 40
    assert {r["check_name"] for r in results if r["status"] != "passed"} <= {
        "check_array_api_input"  # needs SCIPY_ARRAY_API
    }


def test_it_works_in_a_pipeline_under_cross_validation(
    table: tuple[np.ndarray, np.ndarray],
) -> None:
    model = make_pipeline(StandardScaler(), ESADDetector(random_state=0))
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    assert cross_val_score(model, *table, cv=folds, scoring="roc_auc").min() > 0.9


def test_pyod_evaluates_it_beside_its_own(
    table: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = table
    truth, scores = y == -1, -ESADDetector(members=2, random_state=0).fit(x, y).score_samples(x)
    evaluate_print("ESAD", truth, scores)
    evaluate_print("KNN", truth, KNN().fit(x).decision_scores_)
    ours, theirs = capsys.readouterr().out.splitlines()[:2]
    assert ours.startswith("ESAD ROC:")
    assert theirs.startswith("KNN ROC:")
    assert precision_n_scores(truth, scores) > 0.8


def test_labels_are_what_it_learns_from(table: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = table
    with_labels, without = quick(epochs=20).fit(x, y), quick(epochs=20).fit(x[y > 0])
    gaps = []
    for model in (with_labels, without):
        scores = model.score_samples(x)
        gaps.append((np.median(scores[y > 0]) - np.median(scores[y < 0])) / scores[y > 0].std())
    assert gaps[0] > gaps[1]
    assert with_labels.detector_.contract.training.outliers == 20
    assert without.detector_.contract.training.outliers == 0


def test_signs_and_offset(table: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = table
    model = quick(contamination=0.1).fit(x, y)
    scores = model.score_samples(x)
    np.testing.assert_allclose(model.decision_function(x), scores - model.offset_)
    assert (model.predict(x) == np.where(scores < model.offset_, -1, 1)).all()
    assert (model.predict(x[y > 0]) < 0).mean() == pytest.approx(0.1, abs=0.006)
    np.testing.assert_allclose(
        -scores, model.detector_.score(x.astype("f4")).score, rtol=1e-3, atol=1e-4
    )


def test_auto_calls_few_of_the_normals_outliers(table: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = table
    share = (quick(epochs=30).fit(x, y).predict(x[y > 0]) < 0).mean()
    assert share < 0.2


def test_seeds_decide(table: tuple[np.ndarray, np.ndarray]) -> None:
    def scores(seed: int) -> np.ndarray:
        return quick(random_state=seed).fit(*table).score_samples(table[0])

    assert (scores(1) == scores(1)).all()
    assert (scores(1) != scores(2)).any()


def test_labels_of_the_other_convention_are_pointed_out(
    table: tuple[np.ndarray, np.ndarray],
) -> None:
    with pytest.warns(UserWarning, match="marked by -1"):
        quick().fit(table[0], (table[1] < 0).astype(int))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"contamination": 0.7}, ValueError, r"in \(0, 0.5\], found 0.7"),
        ({"preset": "best"}, ConfigError, "preset"),
        ({"settings": {"epoch": 3}}, ConfigError, "did you mean 'epochs'"),
        ({"members": 0}, ConfigError, "members"),
    ],
)
def test_impossible_settings_are_refused(
    table: tuple[np.ndarray, np.ndarray], changes: dict[str, object], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        quick(**changes).fit(*table)


def test_too_few_unlabeled_samples(table: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="found 9 unlabeled samples"):
        quick().fit(table[0][:30], np.repeat([1, -1], [9, 21]))
    with pytest.raises(ValueError, match="y holds 3 labels"):
        quick().fit(table[0], [1, 1, -1])


@pytest.mark.parametrize(
    ("features", "hidden"), [(274, (128, 64, 32)), (36, (32, 16, 8)), (6, (32, 16, 4))]
)
def test_layers_follow_the_papers_data_sets(features: int, hidden: tuple[int, ...]) -> None:
    assert default_hidden(features) == hidden
