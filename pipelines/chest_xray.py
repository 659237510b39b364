"""What making stores of radiographs and triaging them share: one image to one sample."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from data_prep.xray import Xray, read_xray
from data_prep.xray_chain import Preparation, XraySpec, xray_chain
from esad_med.base.config import build_spec
from esad_med.base.errors import EsadError, ModelError
from esad_med.base.limits import Limits
from esad_med.method.detector import Detector
from esad_med.method.encoder import Encoder
from pipelines.embedding import input_form

MODALITY = "chest radiograph"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PreparedXray:
    """A radiograph and the sample made of it.

    Attributes:
        xray: the whole picture and what its file says.
        sample: (size, size, 1) uint8.
    """

    xray: Xray
    sample: npt.NDArray[np.uint8]


@cache
def chain_of(spec: XraySpec) -> Preparation:
    """The MONAI chain of a preparation, made once in a process."""
    return xray_chain(spec)


def prepare_xray(path: Path, *, spec: XraySpec, limits: Limits, chain: Preparation) -> PreparedXray:
    """Read one file and make it a sample; whatever is no upright positive chest size is refused.

    Raises:
        ImageError: cannot be read, too small or too long, or probably a negative.
    """
    xray = read_xray(path, limits=limits)
    spec.check_shape(*xray.pixels.shape)
    spec.check_polarity(xray.pixels)
    return PreparedXray(xray, chain(xray.pixels))


def on_threads(
    function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 8
) -> Iterator[tuple[Item, Result | EsadError]]:
    """Apply a function to items on several threads; results in order.

    An `EsadError` is a result like any other; anything else is raised. Decoders let other threads
    run, so this keeps all cores reading.

    Args:
        function: what to apply.
        items: to what.
        ahead: how many results may wait to be taken.
    """
    count = os.cpu_count() or 1
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) >= max(ahead, 2 * count):
                    first, future = waiting.popleft()
                    yield first, _result(future)
            while waiting:
                first, future = waiting.popleft()
                yield first, _result(future)
        finally:
            for _, future in waiting:
                future.cancel()


def _result(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except EsadError as error:
        return error


def preparation_of(detector: Detector, encoder: Encoder | None = None) -> XraySpec:
    """How a detector's images were prepared.

    Args:
        detector: that is to score them.
        encoder: that is to make embeddings of them, or None.

    Raises:
        ModelError: the detector was not trained on radiographs, or not with this encoder.
    """
    values: Any = detector.contract.preparation.get("xray")
    if detector.input.modality != MODALITY or values is None:
        raise ModelError(
            f"a detector of modality '{detector.input.modality}', expected '{MODALITY}'; train one"
            " on a store of `esad-med xray`"
        )
    spec = build_spec(XraySpec, values, source="the detector's preparation")
    detector.check_input(
        source="radiographs",
        **input_form(spec.size_px, encoder, trained_px=spec.size_px, channels=1),
        modality=MODALITY,
        view_positions=detector.input.view_positions,
        crop_share=spec.crop_share,
    )
    return spec
