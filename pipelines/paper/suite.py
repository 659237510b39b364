"""`esad-med benchmark`: plan the runs of a suite, do those that are missing, fill the tables."""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from esad_med.base.errors import ConfigError
from esad_med.base.execution import HERE, Place
from esad_med.base.locks import hold_folder
from esad_med.base.runs import Progress, Say, claim_run_folder, no_progress
from esad_med.base.store import SampleStore
from pipelines.paper.data import read_run
from pipelines.paper.estimates import (
    PUBLISHED_SIZES,
    Estimate,
    duration,
    estimate,
    guess_seconds,
)
from pipelines.paper.figures import write_plots
from pipelines.paper.folder import BenchmarkFolder, as_failure, join_earlier, read_outcomes
from pipelines.paper.gallery import write_galleries
from pipelines.paper.grids import plan_runs, select_runs
from pipelines.paper.jobs import run_chunks
from pipelines.paper.methods import check_settings, make_chunks, run_chunk
from pipelines.paper.runs import FailedRun, Outcome, Result, Run
from pipelines.paper.settings import MEDICAL, BenchmarkConfig
from pipelines.paper.stores import (
    Maker,
    count_set_aside,
    describe_store,
    find_makers,
    make_stores,
    missing_stores,
    store_sizes,
    stores_folder,
)
from pipelines.paper.tables import write_tables

_FOLDERS = {
    "odds": "odds",
    "mnist": "natural/mnist",
    "fmnist": "natural/fashion-mnist",
    "cifar10": "natural/cifar10",
    "camelyon16": "camelyon16",
    "nih": "nih_cxr",
}


@dataclass(frozen=True)
class Plan:
    """What a benchmark will do.

    Attributes:
        out: its folder.
        config: the settings asked for.
        whole: the same with the runs that earlier benchmarks into this folder had.
        runs: the selected runs.
        todo: the selected runs without a result; failed ones are tried again.
        unprepared: data sets whose stores must be made first.
        left: how long they may take.
        place: where they are done.
    """

    out: Path
    config: BenchmarkConfig
    whole: BenchmarkConfig
    runs: list[Run]
    todo: list[Run]
    unprepared: list[str]
    left: Estimate
    place: Place

    def __str__(self) -> str:
        """Such as "360 runs, 120 done, 240 to do: about 3 h 20 min (from finished runs)"."""
        runs = f"{len(self.runs)} run" + "s" * (len(self.runs) != 1)
        done = f"{runs}, {len(self.runs) - len(self.todo)} done"
        told = f"{done}, {len(self.todo)} to do" + (f": {self.left}" if self.todo else "")
        if self.unprepared:
            told += f"; before them the samples of {', '.join(self.unprepared)} are made, once"
        return told

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "out": str(self.out),
            "runs": len(self.runs),
            "done": len(self.runs) - len(self.todo),
            "todo": [run.key for run in self.todo],
            "unprepared": self.unprepared,
            "seconds_left": round(self.left.seconds, 1),
        }


@dataclass(frozen=True)
class BenchmarkSummary:
    """The outcome of a benchmark.

    Attributes:
        plan: what was to be done.
        results: of the selected runs.
        failures: selected runs that gave none.
        tables: in Markdown, by name.
        figures: the files of Figures 2, 4 and 5.
        set_aside: pictures that the samples lack, of the raw data that is listed.
    """

    plan: Plan
    results: list[Result]
    failures: list[FailedRun]
    tables: dict[str, str]
    figures: list[Path]
    set_aside: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "out": str(self.plan.out),
            "runs": len(self.plan.runs),
            "results": [{"key": r.run.key, "auc": r.auc_score} for r in self.results],
            "failures": [asdict(as_failure(failed)) for failed in self.failures],
            "tables": [f"{name}.md" for name in self.tables],
            "set_aside": self.set_aside,
        }


def data_folder(suite: str, given: Path | None) -> Path:
    """Where the data of a suite lies: what was given, else below ``ESAD_DATA``.

    Raises:
        ConfigError: neither, or no such folder.
    """
    root = os.environ.get("ESAD_DATA")
    if given is None and not root:
        raise ConfigError(
            f"data of {suite}: not given; pass --data FOLDER, or set ESAD_DATA to a folder that"
            f" holds {_FOLDERS[suite]}"
        )
    folder = given or Path(str(root)) / _FOLDERS[suite]
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; pass --data FOLDER with the data of {suite}")
    return folder


def samples_folder(plan: Plan, given: Path | None) -> Path:
    """Where runs read their samples: the data of the suite, or the stores made of it.

    Raises:
        ConfigError: see `data_folder`.
    """
    if plan.config.data_sets[0] in MEDICAL:
        return stores_folder(plan.out)
    return data_folder(plan.config.suite, given)


def plan_suite(
    config: BenchmarkConfig, out: Path, *, selection: str | None = None, place: Place = HERE
) -> Plan:
    """Plan a benchmark; nothing is written.

    Args:
        config: which runs, and with which settings.
        out: the folder of the benchmark, new or begun.
        selection: only these of the runs, see `select_runs`.
        place: where runs are done.

    Raises:
        ConfigError: impossible settings, others than the folder was begun with, or no run.
    """
    chunks = make_chunks(plan_runs(config))  # a part of the grid should share its autoencoders
    runs = select_runs([run for chunk in chunks for run in chunk], selection)
    if not runs:
        raise ConfigError(
            f"{', '.join(config.methods)}: no run in {', '.join(config.tables)} with these"
            " settings; choose other methods or tables"
        )
    check_settings(runs, config)
    whole = join_earlier(out, config)
    results = [found for found in read_outcomes(out).values() if isinstance(found, Result)]
    done = {result.run for result in results}
    todo = [run for run in runs if run not in done]
    guess = partial(guess_seconds, sizes={**PUBLISHED_SIZES, **store_sizes(out)})
    left = estimate(todo, results, config, jobs=max(1, place.workers), guess=guess)
    unprepared = missing_stores(out, (run.data for run in todo))
    return Plan(out, config, whole, runs, todo, unprepared, left, place)


def run_suite(
    plan: Plan, given: Path | None, *, say: Say, progress: Progress = no_progress
) -> BenchmarkSummary:
    """Do the runs that are left, and fill the tables with all that the folder holds.

    Medical images are made samples first, below ``stores/``. Writes ``journal.jsonl`` and
    ``results.csv`` after every run, ``scores/`` of ESAD on medical images, ``failures.csv``,
    ``config.yaml``, ``run.json``, ``TABLE.md`` and ``TABLE.csv``, and Figures 2, 4 and 5. An
    interrupted benchmark is gone on with: only runs in flight are lost, or a store half made.

    Args:
        plan: of `plan_suite`.
        given: the folder of the suite's data; None for that below ``ESAD_DATA``.
        say: called with a line per run.
        progress: called with the number of runs done.

    Raises:
        ConfigError: the folder cannot be written, holds something else than a benchmark, or another
            benchmark is at work there.
        CaseError: the data is missing or damaged.
    """
    folder, makers = samples_folder(plan, given), dict[str, Maker]()
    if plan.unprepared or given is not None:
        root = data_folder(plan.config.suite, given)
        makers = find_makers(plan.unprepared, root, plan.config)
    _check_samples([run for run in plan.todo if run.data not in makers], plan.config, folder)
    claim_run_folder(plan.out, "benchmark")
    with hold_folder(plan.out):
        taken = BenchmarkFolder(plan.out, plan.whole, say)
        make_stores(makers, folder, say=say, progress=progress)
        _check_samples([run for run in plan.todo if run.data in makers], plan.config, folder)
        _check_sources(list(taken.outcomes.values()), stores_folder(plan.out))
        elsewhere, shared = folder.resolve(), plan.out.resolve()
        work = partial(run_chunk, config=plan.config, folder=elsewhere, out=shared)
        chunks = make_chunks(plan.todo)
        with closing(run_chunks(chunks, work, place=plan.place, shared=shared)) as found:
            for count, outcome in enumerate(found, start=1):
                taken.record(outcome)
                say(_line(outcome))
                progress("runs", count, len(plan.todo))
        outcomes = list(taken.outcomes.values())
        tables = write_tables(plan.out, plan.whole, outcomes)
        figures = write_plots(plan.out, plan.whole, outcomes)
        figures += write_galleries(plan.out, stores_folder(plan.out), outcomes)
        selected = [taken.outcomes[run.key] for run in plan.runs]
        return BenchmarkSummary(
            plan,
            [found for found in selected if isinstance(found, Result)],
            [found for found in selected if isinstance(found, FailedRun)],
            tables,
            figures,
            sum(count_set_aside(folder / data).total() for data in {run.data for run in plan.runs}),
        )


def _check_samples(runs: Sequence[Run], config: BenchmarkConfig, folder: Path) -> None:
    """Read every data set once: what is wrong with it should be found before hours, not after."""
    for run in {run.data: run for run in runs}.values():
        read_run(run, folder=folder, leaking=config.leaking)


def _check_sources(outcomes: Sequence[Outcome], stores: Path) -> None:
    """Results of other samples than those of today must not enter one mean, or one figure."""
    for file in sorted(stores.glob("[!.]*/store.json")):
        store = SampleStore(file.parent)
        now = describe_store(store)
        other = [
            found.run.key
            for found in outcomes
            if isinstance(found, Result)
            and found.run.data == store.path.name
            and found.source != now
        ]
        if other:
            raise ConfigError(
                f"{store.path}: holds other samples than {len(other)} finished runs had, such as"
                f" {other[0]}; choose another --out"
            )


def _line(outcome: Outcome) -> str:
    if isinstance(outcome, Result):
        auc, time = f"AUC {100 * outcome.auc_score:.1f} %", duration(outcome.seconds)
        return f"{outcome.run.key}: {auc}, {time}"
    return f"{outcome.run.key}: failed, {outcome.message}"
