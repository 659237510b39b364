"""SS-DGM: the semi-supervised deep generative models M2 and M1+M2 (Kingma et al., NeurIPS 2014)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from esad_med.baselines.base import (
    AnomalyScores,
    BaselineSettings,
    Floats,
    Labels,
    as_rows,
    check_finite,
    check_training,
)
from esad_med.baselines.supervised import check_labeled
from esad_med.baselines.training import apply, seeded, train

_CLASSES = 2  # normal, outlier


class SemiSupervisedVae:
    """M2: a VAE whose second latent is the class; M1+M2: M2 on the codes of a plain VAE.

    Labeled outliers are of class 1, unlabeled samples are marginalized over both classes. The score
    is the class's posterior q(y = 1 | x), as a logit.
    """

    def __init__(self, settings: BaselineSettings, *, kind: Literal["m2", "m1m2"]) -> None:
        self.settings = settings
        self.kind = kind

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Train; see `Baseline.fit`.

        Raises:
            CaseError: besides, no labeled outliers.
        """
        method = "SS-DGM"
        check_training(samples, y, method=method)
        check_labeled(y, method=method)
        own, x = self.settings, _flat(samples)
        binary = samples.ndim == 4
        weight = own.dgm_alpha * (y > 0).mean() / (y < 0).mean()
        with seeded(own) as self._device:
            self._first: GaussianVae | None = None
            if self.kind == "m1m2":
                self._first = GaussianVae(x.shape[1], own, classes=0, binary=binary)
                first = self._first.to(self._device)
                train(
                    first.parameters(),
                    lambda batch, _, __: first.bound(batch).mean(),
                    x,
                    y,
                    own,
                    epochs=own.pretrain_epochs,
                    device=self._device,
                    method=f"{method} M1",
                )
                first.eval()
                x, binary = apply(first.code, x, self._device), False
            self._second = M2(x.shape[1], own, binary=binary).to(self._device)
            train(
                self._second.parameters(),
                lambda batch, labels, _: self._second.loss(batch, labels, weight=weight),
                x,
                y,
                own,
                epochs=own.epochs,
                device=self._device,
                method=f"{method} M2",
            )
        self._second.eval()
        return self

    def score(self, samples: Floats) -> AnomalyScores:
        """The logit of q(y = 1 | x), (m,)."""
        check_finite(samples, method="SS-DGM")
        x = _flat(samples)
        if self._first is not None:
            x = apply(self._first.code, x, self._device)
        return apply(self._second.logit, x, self._device).astype(np.float64)


class GaussianVae(nn.Module):
    """A VAE with a Gaussian latent, given the class as a one-hot where there are classes.

    Its likelihood is Bernoulli for images in [0, 1], Gaussian of unit variance for vectors.
    """

    def __init__(
        self, features: int, settings: BaselineSettings, *, classes: int, binary: bool
    ) -> None:
        super().__init__()
        hidden, latent = settings.dgm_hidden, settings.dgm_latent
        self.binary = binary
        self.encoder = _mlp([features + classes, *hidden, 2 * latent])
        self.decoder = _mlp([latent + classes, *hidden[::-1], features])

    def bound(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Minus the evidence lower bound, without constants, (n,)."""
        extra = [] if given is None else [given]
        mean, log_variance = self.encoder(torch.cat([x, *extra], 1)).chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        out = self.decoder(torch.cat([z, *extra], 1))
        if self.binary:
            error = functional.binary_cross_entropy_with_logits(out, x, reduction="none").sum(1)
        else:
            error = 0.5 * (out - x).square().sum(1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        loss: Tensor = error + divergence
        return loss

    def code(self, x: Tensor) -> Tensor:
        """The latent's mean, (n, latent)."""
        return self.encoder(x).chunk(2, 1)[0]  # type: ignore[no-any-return]


class M2(nn.Module):
    """The generative model of x given class and latent, with a classifier q(y | x)."""

    def __init__(self, features: int, settings: BaselineSettings, *, binary: bool) -> None:
        super().__init__()
        self.vae = GaussianVae(features, settings, classes=_CLASSES, binary=binary)
        self.classifier = _mlp([features, *settings.dgm_hidden, _CLASSES])

    def loss(self, x: Tensor, y: Tensor, *, weight: float) -> Tensor:
        """Eqs. 6-9: bounds of labeled and unlabeled samples, and the classifier's loss.

        Args:
            x: (n, features).
            y: semi-labels, (n,).
            weight: α of the classifier's loss on labeled samples.
        """
        labeled = (y < 0).to(x.dtype)
        log_q = self.classifier(x).log_softmax(1)  # (n, 2)
        bounds = torch.stack([self._bound(x, c) for c in range(_CLASSES)], 1)  # (n, 2)
        # U(x) = sum over y of q(y|x) L(x, y), minus the entropy of q(y|x)
        unknown = (log_q.exp() * (bounds + log_q)).sum(1)
        known = bounds[:, 1] - weight * log_q[:, 1]
        loss: Tensor = (labeled * known + (1 - labeled) * unknown).mean()
        return loss

    def logit(self, x: Tensor) -> Tensor:
        """The classifier's log q(1|x) - log q(0|x), (n,)."""
        out = self.classifier(x)
        return out[:, 1] - out[:, 0]  # type: ignore[no-any-return]

    def _bound(self, x: Tensor, number: int) -> Tensor:
        given = functional.one_hot(torch.full((len(x),), number, device=x.device), _CLASSES)
        return self.vae.bound(x, given.to(x.dtype)) + math.log(_CLASSES)  # a uniform prior


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] if k else []
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers)


def _flat(samples: Floats) -> Floats:
    return as_rows(samples).astype(np.float32)
