"""What every rank of `torchrun` checks in test_distributed.py: shares against the whole batch."""

import copy
import sys
from contextlib import nullcontext

import pytest
import torch
from threads_script import gloo_threads

from esad_med.base.errors import ConfigError
from esad_med.method.distributed import open_ranks
from esad_med.method.losses import EsadLoss, LossSpec, Target
from esad_med.method.networks import ImageNetworkSpec, VectorNetworkSpec, build_network
from esad_med.method.shared_norm import share_batch_norm

LOSSES = (LossSpec(), LossSpec(averaging="groups", push="log", eps=0.1, margin=2.0))


def compare(spec: ImageNetworkSpec | VectorNetworkSpec, count: int, loss_spec: LossSpec) -> None:
    """Two steps of this rank's share, and of the whole batch by a network of its own."""
    torch.manual_seed(0)
    alone = build_network(spec).double()
    shared = copy.deepcopy(alone)
    share_batch_norm(shared)
    wrapped = ranks.wrap(shared)
    size = (3, 16, 16) if isinstance(spec, ImageNetworkSpec) else (spec.features,)
    for _ in range(2):
        x = torch.randn(count, *size, dtype=torch.float64).clamp(-1, 1)
        target = Target(x.flip(-1), torch.where(torch.arange(count) < count - 2, 1.0, -1.0))
        alone.zero_grad()
        shared.zero_grad()
        whole, parts = EsadLoss(loss_spec)(alone(x), target), EsadLoss(loss_spec)
        whole.backward()
        own, own_target = ranks.share_batch(x, target)
        part = parts(wrapped(own), own_target)
        part.backward()
        torch.testing.assert_close(ranks.add(part.detach()), whole.detach(), rtol=1e-6, atol=1e-6)
        for (name, a), b in zip(alone.named_parameters(), shared.parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
        assert sum(float(p.grad.abs().sum()) for p in alone.parameters()) > 1
        for a, b in zip(alone.buffers(), shared.buffers(), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9)


with open_ranks("cpu") as ranks:
    assert ranks.count == int(sys.argv[1])
    assert ranks.from_first(b"said" if ranks.is_first else b"unheard") == b"said"
    assert ranks.from_first(None) is None
    with nullcontext() if ranks.is_first else pytest.raises(ConfigError, match="settings differ"):
        ranks.check_alike({"samples": "alike", "settings": str(ranks.rank)})
    for loss_spec in LOSSES:
        compare(ImageNetworkSpec(width=1 / 16, pooling="mean", skip=True), 11, loss_spec)
        compare(VectorNetworkSpec(features=6, hidden=(8, 4)), 7, loss_spec)
        compare(VectorNetworkSpec(features=6, hidden=(8, 4)), 2, loss_spec)  # the last has none
assert not gloo_threads(), "they would meet Python's own end"
