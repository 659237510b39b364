"""`esad-med benchmark`: plan the runs of a suite, do those that are missing, fill the tables."""

import os
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from esad_med.base.errors import ConfigError
from esad_med.base.runs import Progress, Say, no_progress
from pipelines.paper.data import read_run
from pipelines.paper.estimates import Estimate, duration, estimate
from pipelines.paper.figures import write_plots
from pipelines.paper.folder import BenchmarkFolder, as_failure, join_earlier, read_outcomes
from pipelines.paper.grids import plan_runs, select_runs
from pipelines.paper.jobs import run_chunks
from pipelines.paper.methods import check_settings, make_chunks, run_chunk
from pipelines.paper.runs import FailedRun, Outcome, Result, Run
from pipelines.paper.settings import BenchmarkConfig
from pipelines.paper.tables import write_tables

_FOLDERS = {
    "odds": "odds",
    "mnist": "natural/mnist",
    "fmnist": "natural/fashion-mnist",
    "cifar10": "natural/cifar10",
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
        left: how long they may take.
        jobs: worker processes.
    """

    out: Path
    config: BenchmarkConfig
    whole: BenchmarkConfig
    runs: list[Run]
    todo: list[Run]
    left: Estimate
    jobs: int

    def __str__(self) -> str:
        """Such as "360 runs, 120 done, 240 to do: about 3 h 20 min (from finished runs)"."""
        runs = f"{len(self.runs)} run" + "s" * (len(self.runs) != 1)
        done = f"{runs}, {len(self.runs) - len(self.todo)} done"
        return f"{done}, {len(self.todo)} to do" + (f": {self.left}" if self.todo else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "out": str(self.out),
            "runs": len(self.runs),
            "done": len(self.runs) - len(self.todo),
            "todo": [run.key for run in self.todo],
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
        figures: the files of Figures 2 and 5.
    """

    plan: Plan
    results: list[Result]
    failures: list[FailedRun]
    tables: dict[str, str]
    figures: list[Path]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "out": str(self.plan.out),
            "runs": len(self.plan.runs),
            "results": [{"key": r.run.key, "auc": r.auc_score} for r in self.results],
            "failures": [asdict(as_failure(failed)) for failed in self.failures],
            "tables": [f"{name}.md" for name in self.tables],
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


def plan_suite(
    config: BenchmarkConfig, out: Path, *, selection: str | None = None, jobs: int = 1
) -> Plan:
    """Plan a benchmark; nothing is written.

    Args:
        config: which runs, and with which settings.
        out: the folder of the benchmark, new or begun.
        selection: only these of the runs, see `select_runs`.
        jobs: worker processes.

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
    left = estimate(todo, results, config, jobs=jobs)
    return Plan(out, config, whole, runs, todo, left, jobs)


def run_suite(
    plan: Plan, folder: Path, *, say: Say, progress: Progress = no_progress
) -> BenchmarkSummary:
    """Do the runs that are left, and fill the tables with all that the folder holds.

    Writes ``journal.jsonl`` and ``results.csv`` after every run, ``failures.csv``,
    ``config.yaml``, ``run.json``, ``TABLE.md`` and ``TABLE.csv``, and the plots of Figures 2 and 5.
    An interrupted benchmark is gone on with: only runs in flight are lost.

    Args:
        plan: of `plan_suite`.
        folder: the data of the suite.
        say: called with a line per run.
        progress: called with the number of runs done.

    Raises:
        ConfigError: the folder cannot be written, or holds something else than a benchmark.
        CaseError: the data is missing or damaged.
    """
    for data in sorted({run.data for run in plan.todo}):  # before hours, not after
        first = next(run for run in plan.todo if run.data == data)
        read_run(first, folder=folder, leaking=plan.config.leaking)
    taken = BenchmarkFolder(plan.out, plan.whole, say)
    work = partial(run_chunk, config=plan.config, folder=folder)
    with closing(run_chunks(make_chunks(plan.todo), work, jobs=plan.jobs)) as found:
        for count, outcome in enumerate(found, start=1):
            taken.record(outcome)
            say(_line(outcome))
            progress("runs", count, len(plan.todo))
    outcomes = list(taken.outcomes.values())
    tables = write_tables(plan.out, plan.whole, outcomes)
    figures = write_plots(plan.out, plan.whole, outcomes)
    selected = [taken.outcomes[run.key] for run in plan.runs]
    return BenchmarkSummary(
        plan,
        [found for found in selected if isinstance(found, Result)],
        [found for found in selected if isinstance(found, FailedRun)],
        tables,
        figures,
    )


def _line(outcome: Outcome) -> str:
    if isinstance(outcome, Result):
        auc, time = f"AUC {100 * outcome.auc_score:.1f} %", duration(outcome.seconds)
        return f"{outcome.run.key}: {auc}, {time}"
    return f"{outcome.run.key}: failed, {outcome.message}"
