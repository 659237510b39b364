from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat
from scipy.optimize import Bounds, LinearConstraint, minimize
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

from esad_med.base.config import build_spec
from esad_med.base.errors import CaseError, ConfigError
from esad_med.baselines import selection
from esad_med.baselines.base import BaselineSettings, choose_rows
from esad_med.baselines.catalog import BASELINES, LABELS, make_baseline
from esad_med.baselines.hybrid import Hybrid
from esad_med.baselines.isolation_forest import IsolationForest
from esad_med.baselines.one_class_svm import OneClassSvm
from esad_med.baselines.selection import GAMMAS, NUS, select_on_test
from esad_med.baselines.ssad import Ssad, solve_dual, solve_in_parts

CLASSICAL = (OneClassSvm, IsolationForest, Ssad)
classical = pytest.mark.parametrize("method", CLASSICAL)


def blob(n: int, *, outliers: int = 0, seed: int = 0) -> tuple[Any, Any]:
    """Normals around 0; labeled outliers around (4, 0, 0, 0)."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(n + outliers, 4)).astype(np.float32)
    samples[n:, 0] += 4
    return samples, np.repeat([1, -1], [n, outliers]).astype(np.int8)


def settings(**changes: Any) -> BaselineSettings:
    return BaselineSettings(device="cpu", **changes)


# all of them


@classical
def test_farther_away_is_more_anomalous(method: type) -> None:
    detector = method(settings()).fit(*blob(200, outliers=4))
    near, far = np.zeros((1, 4), np.float32), np.full((1, 4), 2.5, np.float32)
    assert detector.score(near) < detector.score(far)


@classical
def test_scores_do_not_depend_on_the_batch(method: type) -> None:
    detector = method(settings()).fit(*blob(100, outliers=4))
    samples, _ = blob(50, seed=1)
    parts = [detector.score(samples[k : k + 7]) for k in range(0, 50, 7)]
    np.testing.assert_allclose(np.concatenate(parts), detector.score(samples), atol=1e-12)


@classical
def test_same_seed_same_scores_another_seed_others(method: type) -> None:
    samples, y = blob(400, outliers=4)

    def score(seed: int) -> Any:
        return method(settings(seed=seed, kernel_rows=100)).fit(samples, y).score(samples)

    np.testing.assert_array_equal(score(3), score(3))
    assert not np.allclose(score(3), score(4))


@pytest.mark.parametrize("method", [OneClassSvm, IsolationForest])
def test_unsupervised_methods_never_see_labeled_outliers(method: type) -> None:
    samples, y = (part[::-1] for part in blob(100, outliers=5))
    without = method(settings()).fit(samples[y > 0], y[y > 0]).score(samples)
    np.testing.assert_array_equal(method(settings()).fit(samples, y).score(samples), without)


@classical
def test_images_are_flattened(method: type) -> None:
    samples, y = blob(60, outliers=3)
    images = samples.reshape(-1, 1, 2, 2)
    flat, square = method(settings()).fit(samples, y), method(settings()).fit(images, y)
    np.testing.assert_array_equal(square.score(images), flat.score(samples))


@classical
def test_constant_columns_are_fine(method: type) -> None:
    samples, y = blob(60, outliers=3)
    samples[:, 2] = 0
    assert np.isfinite(method(settings()).fit(samples, y).score(samples)).all()
    assert np.isfinite(method(settings()).fit(0 * samples, y).score(samples)).all()


@classical
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(method: type, value: float) -> None:
    samples, y = blob(60, outliers=3)
    samples[7, 2] = value
    with pytest.raises(CaseError, match=f"sample 7, column 2: found {value}, expected finite"):
        method(settings()).fit(samples, y)
    fitted = method(settings()).fit(samples[10:], y[10:])
    with pytest.raises(CaseError, match="sample 7, column 2"):
        fitted.score(samples)
    with pytest.raises(CaseError, match=r"sample 7, value \[0, 1, 0\]"):
        method(settings()).fit(samples.reshape(-1, 1, 2, 2), y)


@classical
def test_too_few_unlabeled_samples_are_refused(method: type) -> None:
    with pytest.raises(CaseError, match="found 9 unlabeled training samples, expected at least 10"):
        method(settings()).fit(*blob(9, outliers=5))
    assert method(settings()).fit(*blob(10, outliers=5))


@classical
def test_labels_that_do_not_fit_are_the_callers_mistake(method: type) -> None:
    samples, y = blob(20)
    with pytest.raises(ValueError, match=r"\+1 or -1"):
        method(settings()).fit(samples, y[1:])
    with pytest.raises(ValueError, match=r"\+1 or -1"):
        method(settings()).fit(samples, y * 0)


def test_the_forest_is_of_the_size_it_is_told() -> None:
    """Two rows are set apart by one cut, as expected, 2 to the -1; 8 rows have 8 leaves at most."""
    samples, y = blob(100)
    flat = IsolationForest(settings(subsample=2)).fit(samples, y).score(samples)
    np.testing.assert_allclose(flat, 0.5)
    one = IsolationForest(settings(trees=1, subsample=8)).fit(samples, y).score(samples)
    assert 1 < len(np.unique(one)) <= 8


@pytest.mark.parametrize("gamma", [0.0, -1.0, "auto"])
def test_a_kernel_needs_a_width(gamma: Any) -> None:
    with pytest.raises(ConfigError, match="svm_gamma"):
        build_spec(BaselineSettings, {"svm_gamma": gamma}, source="baselines")


# which rows


@given(st.integers(0, 60), st.integers(10, 100), st.integers(10, 200), st.integers(0, 9))
def test_chosen_rows(labeled: int, unlabeled: int, most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat([1, -1], [unlabeled, labeled])).astype(np.int8)
    rows = choose_rows(y, most, seed=seed)
    assert (np.diff(rows) > 0).all()
    assert (y[rows] < 0).sum() == labeled
    if labeled + unlabeled <= most:
        assert len(rows) == len(y)
    else:
        assert len(rows) == max(most, labeled + 10)
    np.testing.assert_array_equal(rows, choose_rows(y, most, seed=seed))


# SSAD


def test_the_dual_by_hand() -> None:
    """Far apart, k is the identity: equal weights that sum to 1 + κ and to κ."""
    y = np.repeat([1, -1], [10, 2]).astype(np.int8)
    found = solve_dual(np.eye(12), y, np.ones(12), kappa=1)
    np.testing.assert_allclose(found.alpha, np.repeat([0.2, 0.5], [10, 2]), atol=1e-6)
    assert found.rho == pytest.approx(0.2, abs=1e-6)


PRICES = pytest.mark.parametrize(
    ("kappa", "eta_u", "eta_l"), [(1, 1, 1), (1, 0.06, 1), (0.5, 0.1, 0.11), (0, 0.05, 0.3)]
)


def small_dual(eta_u: float, eta_l: float, n: int = 60) -> tuple[Any, Any, Any]:
    samples, y = blob(n, outliers=6, seed=2)
    samples[-3:, 0] -= 3  # outliers among the normals
    return rbf_kernel(samples.astype(float), gamma=0.2), y, np.where(y > 0, eta_u, eta_l)


@PRICES
def test_the_dual_is_worth_what_the_primal_is(kappa: float, eta_u: float, eta_l: float) -> None:
    """No primal is worth less than a dual: where they meet, both are solved."""
    kernel, y, upper = small_dual(eta_u, eta_l)
    alpha, rho = solve_dual(kernel, y, upper, kappa=kappa)
    assert ((alpha >= 0) & (alpha <= upper)).all()
    assert (alpha * y).sum() == pytest.approx(1, abs=1e-7)
    assert alpha[y < 0].sum() >= kappa - 1e-7
    inside = kernel @ (alpha * y)
    norm = alpha * y @ inside  # ‖w‖²

    def primal(margin: float) -> float:
        slack = np.where(y > 0, rho - inside, inside - rho + margin)
        return float(norm / 2 - rho - kappa * margin + upper @ np.maximum(slack, 0))

    margins = [0.0, *(rho - inside[y < 0]).clip(0)]  # where the sum of slacks has its corners
    assert min(map(primal, margins)) == pytest.approx(-norm / 2, abs=1e-6)


@PRICES
def test_the_dual_agrees_with_another_solver(kappa: float, eta_u: float, eta_l: float) -> None:
    kernel, y, upper = small_dual(eta_u, eta_l, n=40)
    found = solve_dual(kernel, y, upper, kappa=kappa)
    product = kernel * np.outer(y, y)
    other = cast(Any, minimize)(  # its stubs know no array of unknown shape
        lambda a: 0.5 * a @ product @ a,
        upper / 2,
        method="SLSQP",
        jac=lambda a: product @ a,
        bounds=Bounds(np.zeros(len(y)), upper),
        constraints=[LinearConstraint(y[None], 1, 1), LinearConstraint(y[None] < 0, kappa, np.inf)],
        tol=1e-12,
    )
    np.testing.assert_allclose(kernel @ (found.alpha * y), kernel @ (other.x * y), atol=1e-4)


@pytest.mark.parametrize(("eta_u", "gamma"), [(1, 0.2), (0.01, 0.2), (0.004, 0.2), (1, 30)])
def test_parts_lead_to_the_whole_solution(eta_u: float, gamma: float) -> None:
    """With few supports, with many or most at their bound, where nearly all are one."""
    samples, y = blob(600, outliers=8)
    kernel, upper = rbf_kernel(samples.astype(float), gamma=gamma), np.where(y > 0, eta_u, 1)
    parts = solve_in_parts(kernel, y, upper, kappa=1)
    whole = solve_dual(kernel, y, upper, kappa=1)
    assert parts.rho == pytest.approx(whole.rho, abs=1e-6)
    np.testing.assert_allclose(kernel @ (parts.alpha * y), kernel @ (whole.alpha * y), atol=1e-5)


@pytest.mark.parametrize("nu", [0.05, 0.3])
def test_ssad_without_labels_is_one_class_svm(nu: float) -> None:
    """scikit-learn's weights sum to νn, ours to 1; its tolerance is 1e-3."""
    samples, y = blob(300)
    own = settings(nu=nu, eta_unlabeled=1 / (nu * 300))
    score = Ssad(own).fit(samples, y).score(samples) * nu * 300
    np.testing.assert_allclose(score, OneClassSvm(own).fit(samples, y).score(samples), atol=5e-3)


def test_labels_lift_the_scores_of_outliers() -> None:
    samples, y = blob(200, outliers=5)
    samples[y < 0, 0] -= 2  # close to the normals
    labeled = Ssad(settings()).fit(samples, y).score(samples)
    unlabeled = Ssad(settings()).fit(samples, np.ones_like(y)).score(samples)

    def lead(score: Any) -> float:
        return float((score[y < 0].min() - score[y > 0].mean()) / score[y > 0].std())

    assert (labeled[y < 0] > 0).all()  # outside the border
    assert (unlabeled[y < 0] < 0.01).all()
    assert lead(labeled) > lead(unlabeled) + 1


def test_kappa_opens_the_margin() -> None:
    """Without it labeled outliers that are hard to part from normals lie on the border."""
    samples, y = blob(200, outliers=5)
    samples[y < 0, 0] -= 2

    def nearest(kappa: float) -> float:
        return float(Ssad(settings(kappa=kappa)).fit(samples, y).score(samples[y < 0]).min())

    assert nearest(0) == pytest.approx(0, abs=1e-6)
    assert 1e-3 < nearest(1) < nearest(2)


def test_prices_without_a_solution_are_refused() -> None:
    samples, y = blob(100, outliers=5)
    with pytest.raises(ConfigError, match=r"eta_labeled 0\.1 for 5 samples .* at least 0\.2 "):
        Ssad(settings(eta_labeled=0.1)).fit(samples, y)
    with pytest.raises(ConfigError, match=r"eta_unlabeled 0\.019 .* at least 0\.02 "):
        Ssad(settings(eta_unlabeled=0.019)).fit(samples, y)
    for own in (settings(eta_labeled=0.2), settings(eta_unlabeled=0.02)):  # just enough
        assert np.isfinite(Ssad(own).fit(samples, y).score(samples)).all()
    without = settings(eta_labeled=0.1, eta_unlabeled=0.011)  # κ does not count
    assert Ssad(without).fit(samples[:100], y[:100])


# hybrids


class ToTwo:
    """An encoder to two numbers, the second of which is constant but for its rounding."""

    def encode(self, samples: Any) -> Any:
        codes = np.stack([samples[:, 0] * 50 + 7, 0.1 + samples[:, 1] * 1e-8], 1)
        return codes.astype(np.float32)


@classical
def test_a_hybrid_is_its_detector_on_scaled_codes(method: type) -> None:
    samples, y = blob(100, outliers=4)
    own, encoder = settings(svm_gamma=0.5), cast(Any, ToTwo())
    hybrid = Hybrid(method(own), own, encoder).fit(samples, y)
    first = samples[:, 0].astype(np.float64)
    codes = np.stack([(first - first.mean()) / first.std(), np.zeros(len(first))], 1)
    codes = codes.astype(np.float32)
    expected = method(own).fit(codes, y).score(codes)
    np.testing.assert_allclose(hybrid.score(samples), expected, atol=1e-2)  # libsvm stops at 1e-3


def test_codes_are_scaled_as_the_training_samples_are() -> None:
    """The detector sees z-scores of training codes, and other samples in the same frame."""
    seen: list[Any] = []

    class Keeper:
        def fit(self, samples: Any, y: Any) -> Self:
            seen.append(samples)
            return self

        def score(self, samples: Any) -> Any:
            seen.append(samples)
            return samples[:, 0].astype(np.float64)

    samples, y = blob(100, outliers=4)
    Hybrid(Keeper(), settings(), cast(Any, ToTwo())).fit(samples, y).score(samples + 1)
    train, test = seen
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(0), [1, 0], atol=1e-5)
    np.testing.assert_allclose((test - train)[:, 0], 1 / samples[:, 0].std(), rtol=1e-4)


def test_a_hybrid_trains_its_own_autoencoder() -> None:
    samples, y = blob(60, outliers=3)
    own = settings(pretrain_epochs=1, hidden=(3, 2))
    hybrid = Hybrid(OneClassSvm(own), own)
    with pytest.raises(ValueError, match="not fitted"):
        hybrid.score(samples)
    score = hybrid.fit(samples, y).score(samples)
    assert np.isfinite(score).all()
    assert hybrid.autoencoder is not None
    assert hybrid.autoencoder.encode(samples).shape == (63, 2)


# by name


def test_every_baseline_has_a_label_and_is_made() -> None:
    assert tuple(LABELS) == BASELINES
    assert len(set(LABELS.values())) == len(BASELINES) == 13
    for name in BASELINES:
        made = make_baseline(name, settings())
        assert callable(made.fit)
        assert callable(made.score)


@pytest.mark.parametrize(
    ("name", "made_by", "encoded", "words"),
    [
        ("cae", "autoencoder.Cae", True, {}),
        ("deep-svdd", "deep_svdd.DeepSvdd", True, {}),
        ("deep-svdd-soft", "deep_svdd.DeepSvdd", True, {"soft": True}),
        ("deep-sad", "deep_sad.DeepSad", True, {}),
        ("ss-dgm-m2", "ss_dgm.SemiSupervisedVae", False, {"kind": "m2"}),
        ("ss-dgm-m1m2", "ss_dgm.SemiSupervisedVae", False, {"kind": "m1m2"}),
        ("supervised", "supervised.SupervisedClassifier", False, {}),
    ],
)
def test_deep_methods_are_made_as_their_names_say(
    name: str, made_by: str, encoded: bool, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, encoder = settings(), cast(Any, ToTwo())
    monkeypatch.setattr(f"esad_med.baselines.{made_by}", lambda *args, **kwargs: (args, kwargs))
    expected = ((own, encoder) if encoded else (own,), words)
    assert cast(Any, make_baseline(name, own, encoder)) == expected


@pytest.mark.parametrize(
    ("name", "method"),
    [("oc-svm", OneClassSvm), ("isolation-forest", IsolationForest), ("ssad", Ssad)],
)
def test_classical_names_stand_for_themselves_and_their_hybrids(name: str, method: type) -> None:
    encoder = cast(Any, ToTwo())
    assert type(make_baseline(name, settings())) is method
    hybrid = make_baseline(f"{name}-hybrid", settings(), encoder)
    assert isinstance(hybrid, Hybrid)
    assert type(hybrid.detector) is method
    assert hybrid.autoencoder is encoder


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="'ocsvm' is unknown; did you mean 'oc-svm'"):
        make_baseline("ocsvm", settings())
    with pytest.raises(ConfigError, match="known: oc-svm, isolation-forest"):
        select_on_test("zzz", settings(), *blob(20), *blob(20))


# chosen on test labels


def ring(n: int, seed: int) -> tuple[Any, Any]:
    """Normals on a circle; a third of the samples, in its middle, is anomalous."""
    rng = np.random.default_rng(seed)
    truth = (np.arange(n) % 3 == 0).astype(np.int8)
    angle = rng.uniform(0, 2 * np.pi, n)
    radius = np.where(truth, 0.1, 1.5)
    samples = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return (samples + rng.normal(0, 0.05, (n, 2))).astype(np.float32), truth


@pytest.mark.parametrize("name", ["oc-svm", "ssad"])
def test_the_choice_on_test_labels_finds_a_kernel_that_sees_the_ring(name: str) -> None:
    train, truth = ring(240, seed=0)
    train, y = train[truth == 0], np.ones(160, np.int8)
    test, truth = ring(300, seed=1)
    start = settings(svm_gamma=GAMMAS[0], nu=0.5, grid_rows=60)
    chosen = select_on_test(name, start, train, y, test, truth)
    before = make_baseline(name, start).fit(train, y).score(test)
    after = make_baseline(name, chosen).fit(train, y).score(test)
    assert roc_auc_score(truth, before) < 0.5 < 0.99 < roc_auc_score(truth, after)
    assert chosen.svm_gamma in GAMMAS
    assert chosen.nu in NUS if name == "oc-svm" else chosen.nu == start.nu
    same = {"svm_gamma": start.svm_gamma, "nu": start.nu}
    assert chosen.model_copy(update=same) == start


def test_the_choice_sees_a_tenth_of_the_test_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 normals and 3 anomalous samples, 2 and 1: both kinds, however rare."""
    seen: set[tuple[int, int]] = set()

    def auc(truth: Any, score: Any) -> Any:
        seen.add((int((truth == 0).sum()), int((truth == 1).sum())))
        return roc_auc_score(truth, score)

    monkeypatch.setattr(selection, "roc_auc_score", auc)
    test, _ = blob(20, outliers=3)
    truth = np.repeat([0, 1], [20, 3]).astype(np.int8)
    chosen = select_on_test("ssad", settings(), *blob(30), test, truth)
    assert chosen.svm_gamma in GAMMAS
    assert seen == {(2, 1)}
    with pytest.raises(ValueError, match="no test sample has truth 1"):
        select_on_test("ssad", settings(), *blob(30), test, truth * 0)


def test_methods_without_a_kernel_are_not_chosen_for() -> None:
    own = settings()
    for name in ("isolation-forest", "isolation-forest-hybrid", "deep-sad", "supervised"):
        assert select_on_test(name, own, *blob(20), *blob(20)) is own
    with pytest.raises(ValueError, match="fitted autoencoder"):
        select_on_test("ssad-hybrid", own, *blob(20), *blob(20))


def test_hybrids_are_chosen_on_their_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial scores by its γ as the hybrid would, but all samples are encoded only once."""
    encoded: list[int] = []
    trials: list[tuple[Any, Any]] = []

    class Counting(ToTwo):
        def encode(self, samples: Any) -> Any:
            encoded.append(len(samples))
            return super().encode(samples)

    def auc(truth: Any, score: Any) -> Any:
        trials.append((truth, score))
        return roc_auc_score(truth, score)

    monkeypatch.setattr(selection, "roc_auc_score", auc)
    train, y = blob(40, outliers=2)
    truth, encoder = (y < 0).astype(np.int8), cast(Any, Counting())
    select_on_test("ssad-hybrid", settings(), train, y, train, truth, encoder)
    assert encoded == [42, 4 + 1]
    for gamma, (part, score) in zip(GAMMAS, trials, strict=True):
        own = settings(svm_gamma=gamma)
        whole = Hybrid(Ssad(own), own, cast(Any, ToTwo())).fit(train, y).score(train)
        own_row = np.abs(score[:, None] - whole).argmin(1)
        np.testing.assert_allclose(score, whole[own_row], atol=1e-9)
        np.testing.assert_array_equal(part, truth[own_row])


@pytest.mark.parametrize(("name", "trials"), [("oc-svm", 50), ("ssad", 10)])
def test_each_setting_is_tried_once_on_few_rows(
    name: str, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[BaselineSettings] = []

    def make(name: str, own: BaselineSettings, autoencoder: Any) -> Any:
        tried.append(own)
        return make_baseline(name, own, autoencoder)

    monkeypatch.setattr(selection, "make_baseline", make)
    train, y = blob(40, outliers=2)
    select_on_test(name, settings(grid_rows=20), train, y, train, (y < 0).astype(np.int8))
    assert {own.kernel_rows for own in tried} == {20}
    assert len({(own.svm_gamma, own.nu) for own in tried}) == len(tried) == trials


# real data


@pytest.mark.data
@pytest.mark.parametrize(
    ("method", "least"), [(OneClassSvm, 0.99), (IsolationForest, 0.99), (Ssad, 0.99)]
)
def test_satimage_2(data_root: Path, method: type, least: float) -> None:
    table = loadmat(data_root / "odds" / "satimage-2.mat")
    x, truth = table["X"].astype(np.float64), table["y"].ravel().astype(int)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))
    normal, outlier = order[truth[order] == 0], order[truth[order] == 1]
    used = np.concatenate([normal[:3439], outlier[:34]])
    rest = np.concatenate([normal[3439:], outlier[42:]])
    center, scale = x[used].mean(0), x[used].std(0)
    z = ((x - center) / scale).astype(np.float32)
    y = np.repeat([1, -1], [3439, 34]).astype(np.int8)
    score = method(settings()).fit(z[used], y).score(z[rest])
    assert roc_auc_score(truth[rest], score) > least
