"""How long the runs that are left will take: from those that are done, else from a short probe."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from time import perf_counter

import numpy as np
import torch

from data_prep.odds import TABLE_7
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.baselines.autoencoder import Autoencoder
from esad_med.baselines.base import BaselineSettings
from esad_med.baselines.catalog import make_baseline
from esad_med.method.devices import choose_device
from esad_med.method.networks import NetworkSpec, VectorNetworkSpec, build_network
from esad_med.method.problem import network_spec
from pipelines.paper.data import is_vector
from pipelines.paper.methods import (
    AUTOENCODED,
    baseline_settings,
    esad_config,
    make_chunks,
)
from pipelines.paper.runs import Result, Run
from pipelines.paper.settings import ESAD, BenchmarkConfig

Shape = tuple[int, ...]

#: Normal training samples and the shape of one, (d,) or (h, w, c); Table 7, and the image sets,
#: as published.
PUBLISHED_SIZES: dict[str, tuple[int, Shape]] = {
    **{
        name: (int(0.6 * (facts.rows - facts.outliers)), (facts.columns,))
        for name, facts in TABLE_7.items()
    },
    "mnist": (6000, (28, 28, 1)),
    "fmnist": (6000, (28, 28, 1)),
    "cifar10": (5000, (32, 32, 3)),
    "camelyon16": (7612, (64, 64, 3)),
    "nih-subset": (5110, (64, 64, 1)),
    "nih-pa": (34_497, (64, 64, 1)),
    "nih-ap": (16_003, (64, 64, 1)),
}
_TEST_IMAGES = 10_000
#: Time of a sample and epoch, against an autoencoder's of the same network.
_AGAINST_AUTOENCODER = {
    "deep-svdd": 0.6,
    "deep-svdd-soft": 0.6,
    "deep-sad": 0.6,
    "supervised": 0.6,
    "ss-dgm-m2": 2.0,
    "ss-dgm-m1m2": 3.0,
}
#: A step of ESAD for vectors against the passes through its network: batches and the optimizer
#: take longer than these, though networks train together.
_WHOLE_STEP = 2
_PROBE_ROWS = 500
_SIDE = 16  # images are padded to multiples of it
_FEW = 4  # images that a probe takes: enough to tell, at full width too


@dataclass(frozen=True)
class Estimate:
    """What is left to do.

    Attributes:
        seconds: of all that is left, with the jobs that share it.
        measured: runs whose time is the mean of finished ones of their method and data.
        guessed: runs whose time is a probe's.
    """

    seconds: float
    measured: int
    guessed: int

    def __str__(self) -> str:
        """Such as "about 3 h 20 min (from finished runs)"."""
        how = "from finished runs" if not self.guessed else "a rough guess"
        return f"about {duration(self.seconds)} ({how})"


def duration(seconds: float) -> str:
    """A time as people say it: "1.5 s", "40 s", "12 min", "3 h 20 min", "2 days 5 h"."""
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def estimate(
    todo: Sequence[Run],
    done: Sequence[Result],
    config: BenchmarkConfig,
    *,
    jobs: int = 1,
    guess: Callable[[Sequence[Run], BenchmarkConfig], float] | None = None,
) -> Estimate:
    """Estimate the time of the runs that are left.

    Args:
        todo: the runs that are left.
        done: finished runs of the same settings on this machine.
        config: the settings.
        jobs: worker processes; that they slow each other down is not foreseen.
        guess: seconds of runs of which none is finished; `guess_seconds` if None.
    """
    seconds = defaultdict(list)
    for result in done:
        seconds[result.run.data, result.run.method].append(result.seconds)
    known = [run for run in todo if (run.data, run.method) in seconds]
    unknown = [run for run in todo if (run.data, run.method) not in seconds]
    measured = sum(float(np.mean(seconds[run.data, run.method])) for run in known)
    guessed = (guess or guess_seconds)(unknown, config) if unknown else 0.0
    return Estimate((measured + guessed) / jobs, len(known), len(unknown))


def guess_seconds(
    runs: Sequence[Run],
    config: BenchmarkConfig,
    sizes: Mapping[str, tuple[int, Shape]] = PUBLISHED_SIZES,
) -> float:
    """Seconds of runs in one process, from what this machine does in a second or two.

    Epochs times samples times the probed time of one; kernel methods by the square of their rows.

    Args:
        runs: which.
        config: their settings.
        sizes: data set -> normal training samples and the shape of one; those as published.
    """
    total = 0.0
    for chunk in make_chunks(runs):
        total += sum(_guess(run, sizes[run.data], config) for run in chunk)
        if chunk[0].method in ESAD or not any(run.method in AUTOENCODED for run in chunk):
            continue
        count, shape = sizes[chunk[0].data]
        settings = baseline_settings(chunk[0], config)
        passes = _passes(count, settings.pretrain_epochs, settings)
        total += passes * count * _autoencoder_seconds(shape, _plain(settings))
    return total


def _guess(run: Run, size: tuple[int, Shape], config: BenchmarkConfig) -> float:
    count, shape = size
    if run.method in ESAD:
        return _guess_esad(run, count, shape, config)
    settings = _plain(baseline_settings(run, config))
    if run.method in _AGAINST_AUTOENCODER:
        passes = _AGAINST_AUTOENCODER[run.method] * _passes(count, settings.epochs, settings)
        return passes * count * _autoencoder_seconds(shape, settings)
    kernel = run.method.removesuffix("-hybrid")
    if kernel not in ("oc-svm", "ssad"):
        return 0.5  # trees, or an autoencoder that is trained already
    code = settings.hidden[-1] if is_vector(run) else settings.dense[-1]
    features = code if run.method.endswith("-hybrid") else int(np.prod(shape))
    rows = min(count, settings.kernel_rows)
    trials = {"oc-svm": 50, "ssad": 10}[kernel] * config.unfair_selection
    tried = trials * min(count, settings.grid_rows) ** 2
    return (rows**2 + tried) / _PROBE_ROWS**2 * _kernel_seconds(kernel, features)


def _guess_esad(run: Run, count: int, shape: Shape, config: BenchmarkConfig) -> float:
    own = esad_config(run, config)
    normals = own.data.batch_size
    steps = -(-round(count * (1 - own.data.validation)) // normals)
    batch = normals + own.data.outliers_per_batch * bool(run.gamma_l) + own.data.turned_per_batch
    trained = own.planned_epochs(steps) * steps
    spec = network_spec(shape, own, source=run.key)
    if isinstance(spec, VectorNetworkSpec):
        step = _step_seconds(spec, (128, spec.features), own.device)
        return own.members * trained * _WHOLE_STEP * step
    scored = _TEST_IMAGES * own.test_time_augmentation / 3  # forward only
    sides = (-(-side // _SIDE) * _SIDE for side in shape[:2])
    sample = _step_seconds(spec, (_FEW, shape[2], *sides), own.device) / _FEW
    return own.members * (trained * batch + scored) * sample


def _passes(count: int, epochs: int, settings: BaselineSettings) -> int:
    """The epochs of a baseline, or as many as its most steps allow."""
    if settings.most_steps is None:
        return epochs
    return max(1, min(epochs, settings.most_steps // -(-count // settings.batch_size)))


def _plain(settings: BaselineSettings) -> BaselineSettings:
    """The same for every seed, so that a probe is made once."""
    return settings.model_copy(update={"seed": 0})


@lru_cache(maxsize=32)
def _step_seconds(spec: NetworkSpec, shape: Shape, device_name: str) -> float:
    """Seconds forward and back through ESAD's network, for a batch of this shape."""
    device = choose_device(device_name)
    with torch.random.fork_rng(devices=[]):
        network = build_network(spec).to(device).train()
        x = torch.rand(shape).to(device)

    def step() -> None:
        output = network(x)
        loss = (output.x_hat - x).square().mean() + output.z_hat.square().mean()
        loss.backward()
        loss.item()  # waits for a GPU

    return _least_seconds(step, tries=3)


@lru_cache(maxsize=32)
def _autoencoder_seconds(shape: Shape, settings: BaselineSettings) -> float:
    """Seconds per sample and epoch of an autoencoder: what two more epochs take."""
    samples = _noise(shape, 32 if len(shape) == 3 else 256)
    y = np.ones(len(samples), dtype=np.int8)

    def fit(epochs: int) -> None:
        Autoencoder(settings.model_copy(update={"pretrain_epochs": epochs})).fit(samples, y)

    one, three = (_least_seconds(partial(fit, epochs), tries=2) for epochs in (1, 3))
    return max(three - one, 1e-6) / 2 / len(samples)


@lru_cache(maxsize=32)
def _kernel_seconds(name: str, features: int) -> float:
    """Seconds of a kernel method for some rows."""
    samples = _noise((features,), _PROBE_ROWS)
    y = np.ones(len(samples), dtype=np.int8)
    y[-5:] = -1
    baseline = make_baseline(name, BaselineSettings())
    return _least_seconds(partial(baseline.fit, samples, y), tries=2)


def _least_seconds(work: Callable[[], object], *, tries: int) -> float:
    """The shortest of some tries: the first warms up, and other programs only lengthen it."""
    seconds = []
    for _ in range(tries):
        raise_if_interrupted()
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return min(seconds)


def _noise(shape: Shape, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Samples as baselines take them; their content changes no step's time."""
    whole = (count, *shape) if len(shape) == 1 else (count, shape[2], *shape[:2])
    return np.random.default_rng(0).random(whole, dtype=np.float32)
