"""Training steps on CUDA as one graph: a few hundred kernels are launched by one call."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esad_med.method.losses import Target

_WARM_UP = 3  # plain steps before the capture, as torch asks for

Backward = Callable[[Tensor, Target], Tensor]
"""Forward and backward pass of a batch; leaves gradients, gives the detached loss."""


class GraphedStep:
    """Captures the forward and backward pass of one batch shape, then replays it.

    Preparing the batch and the optimizer's step stay outside; both are a few kernels. Batches of
    another shape, such as a last smaller one, run kernel by kernel. The arithmetic is the same.

    The network may not be called with gradients elsewhere while this lives.
    """

    def __init__(self, backward: Backward, parameters: Sequence[nn.Parameter]) -> None:
        self._backward = backward
        self._parameters = parameters
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch's own
        self._warm = 0
        self._shape: torch.Size | None = None

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """Leave the batch's gradients in the parameters; the loss, detached, is overwritten later.

        Args:
            x: network input, (n, c, h, w) or (n, d).
            target: what it is trained towards.
        """
        if self._shape is None and self._warm >= _WARM_UP:
            self._capture(x, target)
        if x.shape != self._shape:
            return self._run(x, target)
        self._x.copy_(x)
        self._target.x.copy_(target.x)
        self._target.y.copy_(target.y)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._graph.replay()
        return self._loss

    def _run(self, x: Tensor, target: Target) -> Tensor:
        """The step kernel by kernel, on the stream of the capture where it warms up for it."""
        self._warm += 1
        self._forget_gradients()
        if self._shape is not None:
            return self._backward(x, target)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._backward(x, target)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _capture(self, x: Tensor, target: Target) -> None:
        self._x = x.clone(memory_format=torch.preserve_format)
        self._target = Target(target.x.clone(memory_format=torch.preserve_format), target.y.clone())
        self._forget_gradients()  # so that the capture makes its own, which every replay overwrites
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._loss = self._backward(self._x, self._target)
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._shape = x.shape

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def update_with(step: GraphedStep) -> Callable[[Any, Any], dict[str, Tensor]]:
    """A step as MONAI's ``iteration_update``: prepare the batch, gradients, optimizer."""

    def update(engine: Any, batch: Any) -> dict[str, Tensor]:
        engine.network.train()
        x, target = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        loss = step(x, target)
        engine.optimizer.step()
        return {"loss": loss}

    return update
