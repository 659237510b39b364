"""The folder of a benchmark: its journal, settings and versions, and the tables of its runs."""

import json
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, get_args

from esad_med.base.config import dump_yaml, load_config
from esad_med.base.errors import ConfigError
from esad_med.base.runs import (
    JOURNAL,
    Failure,
    Journal,
    Say,
    claim_run_folder,
    digest_bytes,
    output_error,
    read_json,
    versions,
    write_csv,
    write_failures,
    write_json,
    write_text,
)
from esad_med.baselines.base import BaselineSettings
from esad_med.method.config import Kind, PresetName, TrainConfig
from pipelines.paper.runs import (
    RESULT_COLUMNS,
    FailedRun,
    Outcome,
    Result,
    outcome_facts,
    read_outcome,
    result_row,
)
from pipelines.paper.settings import ESAD_SETTINGS, BenchmarkConfig
from pipelines.paper.stores import stores_folder

_COMMAND = "benchmark"
#: Settings that say which runs there are; all others change what a run gives.
_SELECTING = (
    *("tables", "data_sets", "methods", "seeds", "drawn_seeds", "normal_classes"),
    *("outlier_classes", "gamma_l", "gamma_p", "k_l", "lambda1", "lambda2"),
)


class BenchmarkFolder:
    """Takes down every outcome: first in the journal, then in the tables made of it."""

    def __init__(self, out: Path, whole: BenchmarkConfig, say: Say) -> None:
        """Begin the folder, or go on with it.

        Raises:
            ConfigError: it cannot be written, or holds something else than a benchmark.
        """
        claim_run_folder(out, _COMMAND)
        self.out = out
        self._versions = _write_versions(out, whole, say)
        write_text(out / "config.yaml", dump_yaml(whole))
        _drop_torn_line(out / JOURNAL)
        self._journal = Journal(out / JOURNAL)
        self.outcomes = read_outcomes(out)
        self._write()

    def record(self, outcome: Outcome) -> None:
        """Take down what came of a run."""
        kind = "done" if isinstance(outcome, Result) else "failed"
        facts = {"versions": self._versions, **outcome_facts(outcome)}
        self._journal.record(outcome.run.key, kind, facts)
        self.outcomes[outcome.run.key] = outcome
        self._write()

    def _write(self) -> None:
        """Rewrite ``results.csv`` and ``failures.csv``, in an order no interruption changes."""
        ordered = sorted(self.outcomes.values(), key=lambda found: astuple(found.run))
        results = [result_row(found) for found in ordered if isinstance(found, Result)]
        write_csv(self.out / "results.csv", RESULT_COLUMNS, results)
        failed = [as_failure(found) for found in ordered if isinstance(found, FailedRun)]
        write_failures(self.out / "failures.csv", failed)


def join_earlier(out: Path, config: BenchmarkConfig) -> BenchmarkConfig:
    """The settings with the runs that the folder has already.

    Raises:
        ConfigError: it has runs, or samples for them, with other settings or of other presets.
    """
    begun = (out / "run.json").exists() and (out / "config.yaml").exists()
    holds = read_outcomes(out) or any(stores_folder(out).glob("[!.]*/store.json"))
    facts = read_json(out / "run.json", ConfigError) if begun and holds else {}
    if facts.get("command") != _COMMAND:
        return config  # new, or refused when it is claimed
    if facts.get("recipes") != _recipes(config):
        raise ConfigError(
            f"{out}: holds runs of another version, whose presets differ from this one's; choose"
            " another --out"
        )
    earlier = load_config(BenchmarkConfig, out / "config.yaml")
    old, new = earlier.model_dump(), config.model_dump()
    changed = [
        f"{name} was {old[name]}, now {new[name]}"
        for name in new
        if name not in _SELECTING and new[name] != old[name]
    ]
    if changed:
        raise ConfigError(
            f"{out}: holds runs with other settings ({'; '.join(changed)}); choose another --out"
        )
    joined = {name: _union(old[name], new[name]) for name in _SELECTING if name != "methods"}
    if not (old["methods"] and new["methods"]):  # none stands for those of each table
        return config.model_copy(update={**joined, "methods": ()})
    return config.model_copy(update={**joined, "methods": _union(old["methods"], new["methods"])})


def _union(old: Any, new: Any) -> Any:
    if isinstance(new, str):
        return old if old == new else "all"
    both = dict.fromkeys([*old, *new])
    return tuple(both if any(isinstance(value, str) for value in both) else sorted(both))


def read_outcomes(out: Path) -> dict[str, Outcome]:
    """The latest outcome of every run by its key; a line cut off by a crash is as good as none."""
    found: dict[str, Outcome] = {}
    path = out / JOURNAL
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            outcome = read_outcome(json.loads(line))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            continue
        found[outcome.run.key] = outcome
    return found


def _drop_torn_line(path: Path) -> None:
    """A line that a crash cut off would spoil the one that is appended to it."""
    try:
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    except OSError as error:
        raise output_error(path, error) from error


def _write_versions(out: Path, config: BenchmarkConfig, say: Say) -> str:
    """Note in ``run.json`` with which versions runs are made; a stamp for their lines."""
    now = versions()
    stamp = digest_bytes(json.dumps(now).encode())[:12]
    file = out / "run.json"
    facts = read_json(file, ConfigError) if file.exists() else {}
    earlier: Mapping[str, Any] = facts.get("versions", {})
    if earlier and stamp not in earlier:
        say(f"{out}: earlier runs were made with other versions, see run.json")
    facts = {"command": _COMMAND, "suite": config.suite, "recipes": _recipes(config)}
    write_json(file, {**facts, "versions": {**earlier, stamp: now}})
    return stamp


def _recipes(config: BenchmarkConfig) -> str:
    """A digest of what every method starts from, which a new version may change."""
    presets = [
        TrainConfig.model_validate({"preset": name, "kind": kind}).model_dump(mode="json")
        for name in get_args(PresetName)
        for kind in get_args(Kind)
    ]
    start = [presets, ESAD_SETTINGS[config.suite], BaselineSettings().model_dump(mode="json")]
    return digest_bytes(json.dumps(start, sort_keys=True).encode())[:12]


def as_failure(failed: FailedRun) -> Failure:
    """A failed run as a line of ``failures.csv``."""
    return Failure(failed.run.key, "run", failed.error, failed.message)
