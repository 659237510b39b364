"""Which runs each of the paper's tables consists of."""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from esad_med.base.errors import ConfigError
from pipelines.paper.runs import Run
from pipelines.paper.settings import (
    CLASSES,
    ESAD,
    MEDICAL,
    METHODS,
    NATURAL,
    NEEDS_LABELS,
    UNSUPERVISED,
    BenchmarkConfig,
    TableName,
)

_UNSUPERVISED_TABLE = ("oc-svm-hybrid", "isolation-forest-hybrid", *UNSUPERVISED[4:])
_SEMI_SUPERVISED_TABLE = ("ssad-hybrid", "ss-dgm-m2", "ss-dgm-m1m2", "deep-sad")
_FULL_TABLE = (*_UNSUPERVISED_TABLE, *_SEMI_SUPERVISED_TABLE, "supervised", *ESAD)
#: The methods of a table; Table 4 also has those that the paper leaves out of it.
TABLE_METHODS: dict[TableName, tuple[str, ...]] = {
    "table1": (*_SEMI_SUPERVISED_TABLE, *ESAD),
    "table2": (*_UNSUPERVISED_TABLE, *ESAD),
    "table3": ("deep-sad", *ESAD),
    "table4": METHODS,
    "table5": ESAD,
    "table8": _FULL_TABLE,
    "table9": _FULL_TABLE,
    "fig2": ESAD,
    "fig5": ESAD,
}
#: Table 5 from its first row to its last, which is ESAD itself.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "no second encoder": (
        *("network.second_encoder=false", "loss.lambda2=0"),
        *("target.noise=0", "target.permute=false"),
    ),
    "second encoder only": ("loss.lambda2=0", "target.noise=0", "target.permute=false"),
    "no wrong target": ("target.noise=0", "target.permute=false"),
    "noise only": ("target.permute=false",),
    "permutation only": ("target.noise=0",),
    "": (),
}
_ABLATED = ("satellite", "cardio")


@dataclass(frozen=True)
class Row:
    """One row of a table: a data set and a setting that every method of the row is run in.

    Attributes:
        data: the data set.
        label: what the row is called beside the data set; "" where that says all.
        gamma_l: γl.
        gamma_p: γp.
        k_l: classes of labeled outliers.
        variant: what is changed of ESAD, see `Run`.
        settings: the same as overrides.
        esad_only: whether the row is about ESAD alone.
    """

    data: str
    label: str
    gamma_l: float
    gamma_p: float = 0.0
    k_l: int = 1
    variant: str = ""
    settings: tuple[str, ...] = ()
    esad_only: bool = False

    def holds(self, run: Run) -> bool:
        """Whether a run belongs into this row."""
        if (run.data, run.gamma_p, run.variant) != (self.data, self.gamma_p, self.variant):
            return False
        if run.method not in ESAD and self.esad_only:
            return False
        serves_all = run.method in UNSUPERVISED and not run.gamma_l
        return serves_all or (run.gamma_l, run.k_l) == (self.gamma_l, self.k_l)


def rows(table: TableName, config: BenchmarkConfig) -> list[Row]:
    """The rows of a table for the data sets of a benchmark, from top to bottom."""
    return [row for data in config.data_sets for row in _rows(table, data, config)]


def _rows(table: TableName, data: str, config: BenchmarkConfig) -> list[Row]:
    if table == "table3":
        return [Row(data, "", MEDICAL[data])]
    if table == "table4":
        return [
            Row(data, "" if len(config.gamma_l) == 1 else f"γl {g:g}", g, k_l=int(g > 0))
            for g in config.gamma_l
        ]
    if table == "table5":
        gamma_l = next((g for g in config.gamma_l if g), 0.0)
        return [
            Row(
                *(data, name or "ESAD itself", gamma_l, 0.0, int(gamma_l > 0), name),
                settings=own,
                esad_only=True,
            )
            for name, own in ABLATIONS.items()
            if data in _ABLATED
        ]
    if table == "table1":
        return [Row(data, f"γl {g:g}", g, k_l=int(g > 0)) for g in config.gamma_l]
    if table == "table2":
        most = max(config.gamma_l)
        full = Row(data, f"ESAD (full), γl {most:g}", most, esad_only=True)
        return [Row(data, "unsupervised", 0.0, k_l=0), *([full] if most else [])]
    if table == "table8":
        return [Row(data, f"γp {g:g}", 0.05, gamma_p=g) for g in config.gamma_p]
    if table == "table9":
        return [Row(data, f"k_l {k}", 0.05 if k else 0.0, gamma_p=0.1, k_l=k) for k in config.k_l]
    name, values = ("λ1", config.lambda1) if table == "fig2" else ("λ2", config.lambda2)
    key = name.replace("λ", "lambda")
    return [
        Row(
            *(data, f"{name} {value:g}", 0.05, 0.1, 1, f"{key}={value:g}"),
            settings=(f"loss.{key}={value:g}",),
            esad_only=True,
        )
        for value in values
    ]


def plan_runs(config: BenchmarkConfig) -> list[Run]:
    """All runs that the tables need, each once."""
    found: dict[Run, None] = {}
    for table in config.tables:
        for row in rows(table, config):
            for method in config.methods or TABLE_METHODS[table]:
                if method in ESAD or not row.esad_only:
                    found.update(dict.fromkeys(_runs(row, method, config)))
    return list(found)


def _runs(row: Row, method: str, config: BenchmarkConfig) -> Iterator[Run]:
    if method in NEEDS_LABELS and not row.gamma_l:
        return
    gamma_l, k_l = row.gamma_l, row.k_l
    if config.suite != "odds" and method in UNSUPERVISED:
        gamma_l, k_l = 0.0, 0
    run = Run(
        *(config.suite, row.data, method, 0, gamma_l, row.gamma_p, k_l),
        variant=row.variant,
        settings=row.settings,
    )
    for seed in config.drawn_seeds if k_l > 1 else config.seeds:
        if config.suite not in NATURAL:
            yield replace(run, seed=seed)
            continue
        for normal in config.normal_classes:
            for chosen in _outlier_classes(normal, k_l, seed, config):
                yield replace(
                    run,
                    seed=seed,
                    normal=str(normal),
                    outlier_classes=tuple(str(c) for c in chosen),
                )


def _outlier_classes(
    normal: int, k_l: int, seed: int, config: BenchmarkConfig
) -> Sequence[Sequence[int]]:
    others = [c for c in CLASSES if c != normal]
    if k_l == 0:
        return [()]
    if k_l == 1:
        one = config.outlier_classes == "one"
        return [((normal + 1) % len(CLASSES),)] if one else [(c,) for c in others]
    random = np.random.default_rng((seed, normal, k_l))
    return [sorted(int(c) for c in random.choice(others, k_l, replace=False))]


def select_runs(runs: Sequence[Run], selection: str | None) -> list[Run]:
    """Some of the runs: of ``i/n`` the i-th of n equal parts, else those whose key has the text.

    Args:
        runs: the grid, in the order in which it is divided.
        selection: such as "2/3", "cardio/deep-*", "/seed=1/" (not 10); None for all.

    Raises:
        ConfigError: no such part, or nothing selected.
    """
    if selection is None:
        return list(runs)
    if part := re.fullmatch(r"(\d+)/(\d+)", selection):
        i, n = int(part[1]), int(part[2])
        if not 1 <= i <= n <= len(runs):
            raise ConfigError(
                f"--runs {selection}: expected i/n with 1 ≤ i ≤ n, n at most the {len(runs)} runs,"
                " such as 1/3"
            )
        return list(runs[len(runs) * (i - 1) // n : len(runs) * i // n])
    found = [run for run in runs if fnmatch.fnmatchcase(f"/{run.key}/", f"*{selection}*")]
    if not found:
        few = ", ".join(run.key for run in runs[:: max(1, len(runs) // 3)][:3])
        raise ConfigError(f"--runs {selection}: fits none of {len(runs)} runs, such as {few}")
    return found
