"""Batches that are halved where the device's memory does not hold them."""

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy.typing as npt
import torch

from esad_med.base.errors import ConfigError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class BatchesThatFit:
    """Computes on batches, in parts where the device holds no more at once.

    Attributes:
        most: samples at once; halved whenever the device runs out of memory.
    """

    def __init__(self) -> None:
        self.most = sys.maxsize

    def each(
        self, compute: Callable[[npt.NDArray[Any]], Result], samples: npt.NDArray[Any]
    ) -> list[Result]:
        """The results for one batch's samples in order, most often one.

        Args:
            compute: takes samples, (b, ...); nothing of what failed may outlive it.
            samples: of one batch, (n, ...).

        Raises:
            ConfigError: the device does not even hold one sample.
        """
        parts: list[Result] = []
        start = 0
        while start < len(samples) or not parts:
            own = samples[start : start + min(self.most, len(samples))]
            try:
                parts.append(compute(own))
                start += len(own)
            except torch.OutOfMemoryError as error:
                self._halve(len(own), error)
        return parts

    def _halve(self, count: int, error: Exception) -> None:
        if count < 2:
            raise ConfigError(
                "out of memory on the device with a single sample; free it from other programs, or"
                " set device to cpu"
            ) from error
        self.most = count // 2
        logger.warning(
            "out of memory on the device with %d samples at once; going on with %d",
            count,
            self.most,
        )
