"""From a run to what it measures: settings of each method, training, scores, AUC."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.odds import TABLE_7
from esad_med.assess.measures import auc
from esad_med.base.config import build_spec, load_config
from esad_med.base.errors import ConfigError, EsadError, ModelError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.runs import digest_bytes, ensure_folder
from esad_med.baselines.autoencoder import Autoencoder
from esad_med.baselines.base import BaselineSettings
from esad_med.baselines.catalog import make_baseline
from esad_med.baselines.selection import select_on_test
from esad_med.method.config import TrainConfig
from esad_med.method.detector import Detector
from esad_med.method.fitting import TrainingData, fit_detectors
from esad_med.method.networks import default_hidden
from pipelines.paper.data import Floats, Loaded, as_input, is_vector, read_run
from pipelines.paper.gallery import scores_file
from pipelines.paper.runs import FailedRun, Outcome, Result, Run
from pipelines.paper.settings import ESAD, ESAD_SETTINGS, IMAGE_NETWORKS, BenchmarkConfig
from pipelines.scoring import write_scores

DataOf = Callable[[Run], Loaded]

#: They begin with a trained autoencoder; those of equal data share one.
AUTOENCODED = (
    *("cae", "deep-svdd", "deep-svdd-soft", "deep-sad"),
    *("oc-svm-hybrid", "isolation-forest-hybrid", "ssad-hybrid"),
)
_TOGETHER = 16  # vector runs in memory at once


def make_chunks(runs: Sequence[Run]) -> list[list[Run]]:
    """Put together the runs that share an autoencoder, or that train as one; the others alone."""
    ordered = sorted(runs, key=lambda run: (_chunk(run), run.gamma_l, run.outlier_classes))
    chunks = [list(chunk) for _, chunk in groupby(ordered, key=_chunk)]
    return [
        chunk[start : start + size]
        for chunk in chunks
        for size in [_TOGETHER if chunk[0].method in ESAD else len(chunk)]
        for start in range(0, len(chunk), size)
    ]


def _chunk(run: Run) -> tuple[str, ...]:
    shared = (run.suite, run.data, f"{run.gamma_p:g}", run.normal)
    if run.method not in ESAD:
        return (*shared, "baselines", f"{run.seed}")
    if is_vector(run):
        return (*shared, run.method, run.variant, f"{run.gamma_l:g}")
    return (*shared, run.method, run.key)


def check_settings(runs: Sequence[Run], config: BenchmarkConfig) -> None:
    """Build the settings of the runs, so that a wrong one is found before anything runs.

    Raises:
        ConfigError: unknown keys, impossible values.
    """
    for run in {(run.data, run.method, run.variant): run for run in runs}.values():
        (esad_config if run.method in ESAD else baseline_settings)(run, config)


def run_chunk(
    runs: Sequence[Run], *, config: BenchmarkConfig, folder: Path, out: Path
) -> Iterator[Outcome]:
    """Train, test and measure the runs of a chunk.

    Args:
        runs: of one chunk of `make_chunks`.
        config: the settings of the benchmark.
        folder: where the samples are read from.
        out: its folder; ESAD's scores of a store's test samples go there.

    Raises:
        ConfigError: settings that no run can have.
    """
    data_of = partial(read_run, folder=folder, leaking=config.leaking)
    if runs[0].method in ESAD:
        yield from _run_esad(runs, config, data_of, out)
    else:
        yield from _run_baselines(runs, config, data_of)


def _run_esad(
    runs: Sequence[Run], config: BenchmarkConfig, data_of: DataOf, out: Path
) -> Iterator[Outcome]:
    started = perf_counter()
    modality = "table" if is_vector(runs[0]) else "image"
    try:
        loaded = [data_of(run) for run in runs]
        detectors = fit_detectors(
            [TrainingData(own.data.train, own.data.y, modality, own.train_rows) for own in loaded],
            [esad_config(run, config) for run in runs],
        )
    except ConfigError:
        raise  # the settings, not the run
    except EsadError as error:
        if len(runs) == 1:
            yield FailedRun.of(runs[0], error)
            return
        for run in runs:  # which of them was it?
            yield from _run_esad([run], config, data_of, out)
        return
    share = (perf_counter() - started) / len(runs)
    for run, own, detector in zip(runs, loaded, detectors, strict=True):
        yield _test_detector(run, own, detector, share, out)


def _test_detector(
    run: Run, own: Loaded, detector: Detector | ModelError, training_seconds: float, out: Path
) -> Outcome:
    if isinstance(detector, ModelError):
        return FailedRun.of(run, detector)
    started = perf_counter()
    try:
        scores = detector.score(own.data.test)
        found = _measure(run, own, training_seconds + perf_counter() - started, *scores)
    except ModelError as error:
        return FailedRun.of(run, error)
    if own.test_rows is not None:
        file = scores_file(out, run)
        ensure_folder(file.parent)
        write_scores(file, own.test_rows, detector, scores)
    return found


def esad_config(run: Run, config: BenchmarkConfig) -> TrainConfig:
    """The settings of a run of ESAD: its preset, the suite's, the user's, then its variant's.

    Raises:
        ConfigError: unknown keys, impossible values.
    """
    own: dict[str, object] = {
        "preset": run.method.removeprefix("esad-"),
        "network.width": config.width,
        "epochs": config.epochs,
        "members": config.members,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in own.items() if value is not None]
    settings = [*_flat(ESAD_SETTINGS[run.suite]), *_flat(config.esad)]
    given += [f"{key}={json.dumps(value)}" for key, value in settings]
    every = [*given, *run.settings, f"seed={run.seed}"]
    return load_config(TrainConfig, None, every, source="esad")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def baseline_settings(run: Run, config: BenchmarkConfig) -> BaselineSettings:
    """The settings of a run of a baseline: Deep SAD's network for the data, then the user's.

    Raises:
        ConfigError: unknown keys, impossible values.
    """
    if is_vector(run):
        hidden = default_hidden(TABLE_7[run.data].columns)
        network = {"hidden": hidden, "dgm_latent": hidden[-1], "dgm_hidden": hidden[:-1]}
    else:
        network = IMAGE_NETWORKS.get(run.suite, IMAGE_NETWORKS["cifar10"])
    epochs = {"epochs": config.epochs, "pretrain_epochs": config.epochs} if config.epochs else {}
    values = {**network, **epochs, **config.baselines, "seed": run.seed}
    return build_spec(BaselineSettings, values, source="baselines")


def _run_baselines(
    runs: Sequence[Run], config: BenchmarkConfig, data_of: DataOf
) -> Iterator[Outcome]:
    trained = _Shared()
    for run in runs:
        raise_if_interrupted()
        yield _run_baseline(run, config, data_of, trained)


class _Shared:
    """The last autoencoder, for the next run with the same unlabeled samples and settings."""

    def __init__(self) -> None:
        self._key = ""
        self._autoencoder: Autoencoder | None = None

    def autoencoder(
        self, samples: Floats, y: npt.NDArray[np.int8], settings: BaselineSettings
    ) -> Autoencoder:
        key = digest_bytes(samples[y > 0].tobytes(), settings.model_dump_json().encode())
        if self._autoencoder is None or key != self._key:
            self._autoencoder = Autoencoder(settings).fit(samples, y)
            self._key = key
        return self._autoencoder


def _run_baseline(run: Run, config: BenchmarkConfig, data_of: DataOf, trained: _Shared) -> Outcome:
    started = perf_counter()
    settings = baseline_settings(run, config)
    try:
        own = data_of(run)
        train, test = as_input(own.data)
        y, truth = own.data.y, own.data.truth
        shared = trained.autoencoder(train, y, settings) if run.method in AUTOENCODED else None
        if config.unfair_selection:
            settings = select_on_test(run.method, settings, train, y, test, truth, shared)
        scores = make_baseline(run.method, settings, shared).fit(train, y).score(test)
        return _measure(run, own, perf_counter() - started, scores)
    except ConfigError:
        raise  # the settings, not the run
    except EsadError as error:
        return FailedRun.of(run, error)


def _measure(
    run: Run,
    own: Loaded,
    seconds: float,
    score: npt.NDArray[Any],
    reconstruction: npt.NDArray[Any] | None = None,
    norm: npt.NDArray[Any] | None = None,
) -> Result:
    truth = own.data.truth
    if not np.isfinite(score).all():
        count = int((~np.isfinite(score)).sum())
        raise ModelError(f"{run.key}: {count} scores are not finite; the training diverged")
    return Result(
        run=run,
        auc_score=auc(truth, score),
        auc_reconstruction=None if reconstruction is None else auc(truth, reconstruction),
        auc_norm=None if norm is None else auc(truth, norm),
        normals=int((own.data.y > 0).sum()),
        outliers=int((own.data.y < 0).sum()),
        test_normals=int((truth == 0).sum()),
        test_anomalous=int((truth == 1).sum()),
        seconds=seconds,
        source=own.source,
    )
