"""Convex semi-supervised anomaly detection: a one-class SVM that also keeps outliers outside."""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import piqp
from sklearn.metrics.pairwise import rbf_kernel

from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.baselines.base import (
    AnomalyScores,
    BaselineSettings,
    Floats,
    Indices,
    Labels,
    as_rows,
    check_finite,
    check_training,
    choose_rows,
)

_START = 200  # unlabeled samples in the first, small problem
_TOLERANCE = 1e-7  # of ρ - ⟨w, φ(x)⟩, whose size is at most 1 + 2κ
_NEGLIGIBLE = 1e-8  # weights that the interior-point method leaves where 0 is meant
_SCORING_ROWS = 2000  # at a time, so that their kernel stays small


class Ssad:
    """SSAD of Görnitz, Kloft, Rieck and Brefeld, "Toward Supervised Anomaly Detection" (JAIR 2013).

    With φ of the RBF kernel k, over unlabeled samples i and labeled outliers j:

        min  ½‖w‖² - ρ - κγ + η_u Σ ξ_i + η_l Σ ξ_j    over w, ρ, γ ≥ 0, ξ ≥ 0
        so that   ⟨w, φ(x_i)⟩ ≥ ρ - ξ_i   and   ⟨w, φ(x_j)⟩ ≤ ρ - γ + ξ_j

    Its dual is solved, see `solve_dual`. The sums are not divided by the sizes of the groups, as in
    the authors' own code: divided, κ = η_u = η_l = 1 would have no solution. So η_u = 1 allows next
    to no slack; η_u = 1 / (νn) without labeled outliers is OC-SVM.

    Labeled normals, which the original also takes, do not occur here. Images are flattened.
    """

    def __init__(self, settings: BaselineSettings) -> None:
        self.settings = settings

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Learn from at most `kernel_rows` samples, all labeled outliers among them.

        Without labeled outliers it is unsupervised. See `Baseline.fit`.

        Raises:
            CaseError: samples that nothing can be learned from.
            ConfigError: κ, η_u and η_l that leave no solution for so many samples.
        """
        check_training(samples, y, method="SSAD")
        own = self.settings
        chosen = choose_rows(y, own.kernel_rows, seed=own.seed)
        rows, labels = as_rows(samples[chosen]), y[chosen]
        self._gamma = _kernel_gamma(rows, own)
        kernel = rbf_kernel(rows, gamma=self._gamma)
        found = solve_in_parts(kernel, labels, _upper_bounds(labels, own), kappa=own.kappa)
        used = np.flatnonzero(found.alpha > _NEGLIGIBLE)
        self._support, self._rho = rows[used], found.rho
        self._weights = found.alpha[used] * labels[used]
        return self

    def score(self, samples: Floats) -> AnomalyScores:
        """ρ - ⟨w, φ(x)⟩, (m,): how far samples lie outside the border; 0 on it."""
        check_finite(samples, method="SSAD")
        inside = np.empty(len(samples))
        for start in range(0, len(samples), _SCORING_ROWS):
            raise_if_interrupted()
            part = slice(start, start + _SCORING_ROWS)
            kernel = rbf_kernel(as_rows(samples[part]), self._support, gamma=self._gamma)
            inside[part] = kernel @ self._weights
        return self._rho - inside


class Dual(NamedTuple):
    """A solution of SSAD's dual.

    Attributes:
        alpha: weight of each sample, (n,).
        rho: the border: ⟨w, φ(x)⟩ = ρ.
    """

    alpha: npt.NDArray[np.float64]
    rho: float


def solve_dual(
    kernel: npt.NDArray[np.float64], y: Labels, upper: npt.NDArray[np.float64], *, kappa: float
) -> Dual:
    """Solve SSAD's dual by an interior-point method.

        min ½ Σ α_i α_j y_i y_j k(x_i, x_j)   so that   0 ≤ α ≤ upper,   Σ y_i α_i = 1,
                                                        Σ α_j ≥ κ over the labeled outliers

    The multipliers of the last two are -ρ and γ.

    Args:
        kernel: (n, n), positive semidefinite.
        y: semi-labels, (n,).
        upper: η_u or η_l of each sample, (n,).
        kappa: κ; without labeled outliers there is no margin, and it does not count.

    Raises:
        ModelError: the solver ended without a solution.
    """
    labeled = y < 0
    signs = y.astype(np.float64)
    solver = piqp.DenseSolver()
    solver.setup(
        P=np.asfortranarray(kernel * np.outer(signs, signs)),
        c=np.zeros(len(y)),
        A=signs[None],
        b=np.ones(1),
        G=labeled[None].astype(np.float64),
        h_l=np.array([kappa if labeled.any() else 0.0]),
        x_l=np.zeros(len(y)),
        x_u=upper,
    )
    status = solver.solve()
    if status != piqp.PIQP_SOLVED:
        raise ModelError(
            f"SSAD: the solver ended with {status.name} for {len(y)} samples; expected a solution;"
            " set another svm_gamma, or fewer kernel_rows"
        )
    return Dual(np.clip(solver.result.x, 0, upper), -float(solver.result.y[0]))


def solve_in_parts(
    kernel: npt.NDArray[np.float64], y: Labels, upper: npt.NDArray[np.float64], *, kappa: float
) -> Dual:
    """The same solution as `solve_dual`, by problems that grow; few samples support a border.

    A sample left out with α = 0 is right to be so if it lies inside, ⟨w, φ(x)⟩ ≥ ρ. Those that do
    not join, the worst first, at most as many as there are: so even where all must join, the last
    problem costs far more than those before it.
    """
    unlabeled, labeled = np.flatnonzero(y > 0), np.flatnonzero(y < 0)
    start = max(_START, int(np.ceil(2 * (1 + kappa) / upper[unlabeled[0]])))  # room for Σ y α = 1
    active: Indices = np.concatenate([labeled, unlabeled[:start]])
    while True:
        raise_if_interrupted()
        own = solve_dual(kernel[np.ix_(active, active)], y[active], upper[active], kappa=kappa)
        outside = own.rho - kernel[:, active] @ (own.alpha * y[active])
        outside[active] = 0
        wrong = np.flatnonzero(outside > _TOLERANCE)
        if not len(wrong):
            alpha = np.zeros(len(y))
            alpha[active] = own.alpha
            return Dual(alpha, own.rho)
        worst = wrong[np.argsort(-outside[wrong], kind="stable")]
        active = np.concatenate([active, worst[: len(active)]])


def _upper_bounds(y: Labels, settings: BaselineSettings) -> npt.NDArray[np.float64]:
    """η_u or η_l of each sample, after a check that they leave the dual a solution."""
    unlabeled, labeled = int((y > 0).sum()), int((y < 0).sum())
    kappa = settings.kappa if labeled else 0.0
    for name, price, count, least in (
        ("eta_labeled", settings.eta_labeled, labeled, kappa),
        ("eta_unlabeled", settings.eta_unlabeled, unlabeled, 1 + kappa),
    ):
        if price * count < least:
            raise ConfigError(
                f"SSAD: {name} {price:g} for {count} samples leaves no solution; expected at least"
                f" {least / count:g} with kappa {kappa:g}"
            )
    return np.where(y > 0, settings.eta_unlabeled, settings.eta_labeled)


def _kernel_gamma(rows: npt.NDArray[np.float64], settings: BaselineSettings) -> float:
    """γ of the kernel, as scikit-learn's SVMs take it."""
    if settings.svm_gamma != "scale":
        return settings.svm_gamma
    variance = float(rows.var())
    return 1 / (rows.shape[1] * variance) if variance > 0 else 1.0
