"""The whole detector as one module of torch, for other runtimes: stored samples in, scores out.

Whitening, scaling, views, members, fusion and percentile are inside. It is of PyTorch's own layers,
float32 throughout; the fusion is the twin of `Fusion.fuse`, the percentile that of
`Calibration.percentile`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from esad_med.method.contract import Contract
from esad_med.method.fusion import OFFSET
from esad_med.method.networks import Network, fold_batch_norm
from esad_med.method.scoring_networks import network_terms, trained_network
from esad_med.method.transforms import InputTransform, view, views_of

Columns = tuple[Tensor, Tensor, Tensor, Tensor]
"""Score, reconstruction, norm (see `Scores`) and percentile of n samples, each (n,) float32; plain,
so that an exported program names no class of ours."""


class DetectorModule(nn.Module):
    """A detector's contract and weights as one module; what it gives is `Detector.score`'s."""

    quantiles: Tensor  # (k,), ascending
    statistics: Tensor  # (members, 4, 1); empty where Eq. 17 is summed literally

    def __init__(self, contract: Contract, weights: Mapping[str, Tensor]) -> None:
        """Put contract and weights together.

        Raises:
            ModelError: the weights do not fit the network of the contract.
        """
        super().__init__()
        self._contract = contract
        own = contract.input
        self._transform = InputTransform(
            value_range=own.value_range, image=own.is_image, scaling=contract.scaling
        )
        with torch.no_grad():
            self.members = nn.ModuleList(
                fold_batch_norm(trained_network(contract.network, weights, k))
                for k in range(contract.members)
            )
        rows = [list(member.model_dump().values()) for member in contract.fusion.members]
        self.register_buffer("quantiles", torch.tensor(contract.calibration.quantiles))
        self.register_buffer("statistics", torch.tensor(rows)[..., None])
        self.eval().requires_grad_(False)

    def forward(self, samples: Tensor) -> Columns:
        """Take samples as they are stored, (n, h, w, c) or (n, d), of the contract's type."""
        x = self._transform(samples)
        x, views = self._views(x)
        terms = [self._terms(network, x, views) for network in self.members]  # type: ignore[arg-type]
        first, second = (torch.stack(own) for own in zip(*terms, strict=True))  # (members, n)
        return self._fuse(first, second)

    def _views(self, x: Tensor) -> tuple[Tensor, int]:
        """All views as one batch (views n, c, h, w): a program of one view's length."""
        count = self._contract.views
        indices = views_of(tuple(x.shape[1:]), count) if x.ndim == 4 else [0]
        return torch.cat([view(x, index) for index in indices]), len(indices)

    def _terms(self, network: Network, x: Tensor, views: int) -> list[Tensor]:
        terms = network_terms(network, x, spec=self._contract.terms)
        return [term.reshape(views, -1).mean(0) for term in terms]

    def _fuse(self, first: Tensor, second: Tensor) -> Columns:
        """`Fusion.fuse` in torch, of (members, n)."""
        fusion = self._contract.fusion
        if fusion.mode == "standardized":
            if fusion.transform == "log":
                first, second = (first + OFFSET).log(), (second + OFFSET).log()
            first = (first - self.statistics[:, 0]) / self.statistics[:, 1]
            second = (second - self.statistics[:, 2]) / self.statistics[:, 3]
        over = _median if fusion.across == "median" else _mean
        first, second = over(first), over(second)
        score = fusion.reconstruction_weight * first + fusion.norm_weight * second
        return score, first, second, self._percentile(score)

    def _percentile(self, score: Tensor) -> Tensor:
        """`Calibration.percentile` in torch: numpy's interpolation between the quantiles."""
        last = len(self.quantiles) - 1
        below = torch.searchsorted(self.quantiles, score, right=True) - 1  # -1: below them all
        left = below.clamp(0, last - 1)
        low, high = self.quantiles[left], self.quantiles[left + 1]
        reached = (score >= low).to(score.dtype)  # two quantiles alike: beyond both, or before
        share = torch.where(high > low, (score - low) / (high - low), reached)
        return 100 / last * (left + share.clamp(0, 1))


class PictureModule(nn.Module):
    """A detector of pictures as MONAI calls networks: (n, c, h, w) float32 in, (n, 4) out."""

    def __init__(self, detector: DetectorModule) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        """Take values as stored, such as 0 to 255; give the `Columns` side by side."""
        return torch.stack(self.detector(image.permute(0, 2, 3, 1)), dim=1)


def _mean(terms: Tensor) -> Tensor:
    return terms.mean(0)


def _median(terms: Tensor) -> Tensor:
    """As numpy has it: between the two in the middle where there are as many above as below."""
    ranked, count = terms.sort(0).values, len(terms)
    return (ranked[(count - 1) // 2] + ranked[count // 2]) / 2
