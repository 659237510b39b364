"""The paper's tables of a benchmark: our mean ± sd, the paper's value, and what to keep in mind."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.odds import ODDS
from esad_med.base.runs import write_csv, write_text
from esad_med.baselines.catalog import LABELS
from pipelines.paper.grids import Row, rows
from pipelines.paper.notes import below_baselines, caveats
from pipelines.paper.published import QUOTED, Published, published
from pipelines.paper.runs import FailedRun, Outcome, Result
from pipelines.paper.settings import ESAD, METHODS, BenchmarkConfig, TableName

TITLES: dict[TableName, str] = {
    "table1": "Table 1: natural images, share γl of labeled outliers",
    "table2": "Table 2: natural images, unsupervised methods",
    "table3": "Table 3: medical images",
    "table4": "Table 4: classic benchmarks, γl = .01",
    "table5": "Table 5: designs of ESAD on classic benchmarks",
    "table8": "Table 8: natural images, pollution γp at γl = .05",
    "table9": "Table 9: natural images, classes k_l of labeled outliers at γl = .05, γp = .1",
    "fig2": "Figure 2: sensitivity to λ1 at γl = .05, γp = .1",
    "fig5": "Figure 5: sensitivity to λ2 at γl = .05, γp = .1",
}
METHOD_LABELS = {"esad-paper": "ESAD (paper)", "esad-recommended": "ESAD (recommended)", **LABELS}
#: The paper prints the better of two under one name.
_PRINTED = {
    **{"esad-paper": "esad", "esad-recommended": "esad", "deep-svdd-soft": "deep-svdd"},
    **{"ss-dgm-m2": "ss-dgm", "ss-dgm-m1m2": "ss-dgm"},
}
#: Its number in the paper, and what tells its rows apart beside the data set.
_IN_PAPER: dict[TableName, tuple[Literal[1, 2, 3, 4, 5, 8, 9], str]] = {
    "table1": (1, "gamma_l"),
    "table2": (2, ""),
    "table3": (3, ""),
    "table4": (4, ""),
    "table5": (5, "variant"),
    "table8": (8, "gamma_p"),
    "table9": (9, "k_l"),
}
_ODDS_GAMMA_L = 0.01  # of Tables 4 and 5
_COLUMNS = (
    *("table", "data", "row", "gamma_l", "gamma_p", "k_l", "variant", "method", "n", "failed"),
    *("mean", "sd", "reconstruction_mean", "reconstruction_sd", "norm_mean", "norm_sd"),
    *("published_mean", "published_sd", "difference"),
)


@dataclass(frozen=True)
class Cell:
    """What the runs of one method and row gave.

    Attributes:
        row: of the table.
        method: its column.
        results: of runs that gave one.
        failed: how many gave none.
        published: what the paper prints there.
    """

    row: Row
    method: str
    results: tuple[Result, ...]
    failed: int
    published: Published | None

    @property
    def mean(self) -> float:
        """Mean AUC in percent; NaN without results."""
        return mean_sd([result.auc_score for result in self.results])[0]

    def text(self, *, best: bool) -> str:
        """Such as "**92.4 ± 1.9** (10); paper 92.5 ± 0.7, -0.1"."""
        n = f"{len(self.results)}" + (f", {self.failed} failed" if self.failed else "")
        shown = _percent(*mean_sd([result.auc_score for result in self.results]))
        text = f"**{shown}** ({n})" if best else f"{shown} ({n})" if self.results else f"({n})"
        if self.published:
            text += f"; paper {_percent(self.published.mean, self.published.sd)}"
            text += f", {_signed(self.mean - self.published.mean)}" if self.results else ""
        return text


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1) in percent; no deviation of a single value.

    Args:
        values: AUCs, 0-1.
    """
    if not values:
        return float("nan"), None
    sd = 100 * float(np.std(values, ddof=1)) if len(values) > 1 else None
    return 100 * float(np.mean(values)), sd


def _percent(mean: float, sd: float | None) -> str:
    return f"{mean:.1f}" if sd is None else f"{mean:.1f} ± {sd:.1f}"


def _signed(difference: float) -> str:
    return f"{round(difference, 1) + 0.0:+.1f}"  # no -0.0


def write_tables(out: Path, config: BenchmarkConfig, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Write every table that has outcomes as ``NAME.md`` and ``NAME.csv``.

    Args:
        out: the folder of the benchmark.
        config: its settings, which say which tables and rows there are.
        outcomes: all that it holds.

    Returns:
        The Markdown by the tables' names.
    """
    found: dict[str, str] = {}
    for table in config.tables:
        cells = fill_table(table, config, outcomes)
        if not cells:
            continue
        write_csv(out / f"{table}.csv", _COLUMNS, [_csv_row(table, cell) for cell in cells])
        found[table] = to_markdown(table, config, cells)
        write_text(out / f"{table}.md", found[table])
    return found


def fill_table(
    table: TableName, config: BenchmarkConfig, outcomes: Sequence[Outcome]
) -> list[Cell]:
    """The cells of a table that have outcomes, row by row, methods in the paper's order."""
    cells = []
    for row in rows(table, config):
        for method in METHODS:
            own = [o for o in outcomes if o.run.method == method and row.holds(o.run)]
            results = tuple(outcome for outcome in own if isinstance(outcome, Result))
            failed = sum(isinstance(outcome, FailedRun) for outcome in own)
            if own:
                cells.append(Cell(row, method, results, failed, _published(table, row, method)))
    return cells


def _published(table: TableName, row: Row, method: str) -> Published | None:
    if table not in _IN_PAPER or (row.data in ODDS and row.gamma_l != _ODDS_GAMMA_L):
        return None
    number, key = _IN_PAPER[table]
    if table == "table2" and method in ESAD:  # printed twice, unsupervised and full
        key = "gamma_l"
    setting = {key: getattr(row, key)} if key else {}
    return published(number, row.data, _PRINTED.get(method, method), **setting)


def _quoted_lines(table: TableName, cells: Sequence[Cell]) -> Iterator[str]:
    """What the paper quotes of methods that are not run again."""
    if table not in _IN_PAPER:
        return
    for data in dict.fromkeys(cell.row.data for cell in cells):
        found = {name: published(_IN_PAPER[table][0], data, name) for name in QUOTED}
        if texts := [f"{name} {_percent(p.mean, p.sd)}" for name, p in found.items() if p]:
            yield f"Not run again, quoted by the paper for {data}: {', '.join(texts)}."


def to_markdown(table: TableName, config: BenchmarkConfig, cells: Sequence[Cell]) -> str:
    """A table with its notes; AUC in percent, the best of a row in bold."""
    methods = [method for method in METHODS if any(cell.method == method for cell in cells)]
    lines = [
        f"# {TITLES[table]}",
        "",
        "AUC in %, mean ± sd (runs); then the paper's value and the difference.",
        "",
        "| " + " | ".join(["data", *(METHOD_LABELS[method] for method in methods)]) + " |",
        "|---" * (1 + len(methods)) + "|",
    ]
    for row in dict.fromkeys(cell.row for cell in cells):
        own = {cell.method: cell for cell in cells if cell.row == row}
        best = max((round(c.mean, 1) for c in own.values() if c.results), default=0.0)
        texts = [
            own[m].text(best=bool(own[m].results) and round(own[m].mean, 1) == best)
            if m in own
            else ""
            for m in methods
        ]
        lines.append("| " + " | ".join([" ".join([row.data, row.label]).strip(), *texts]) + " |")
    terms = list(_term_lines(cells))
    if terms:
        lines += ["", "## ESAD's terms alone", "", *terms]
    results = list(dict.fromkeys(result for cell in cells for result in cell.results))
    notes = [
        *below_baselines({(cell.row, cell.method): cell.results for cell in cells}),
        *_quoted_lines(table, cells),
        *caveats(config, results, sum(cell.failed for cell in cells)),
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def _term_lines(cells: Sequence[Cell]) -> Iterator[str]:
    own = [cell for cell in cells if cell.method in ESAD and cell.results]
    if own:
        yield "| data | method | score | reconstruction | norm |"
        yield "|---|---|---|---|---|"
    for cell in own:
        texts = [_percent(*mean_sd(values)) for values in _terms(cell)]
        name = " ".join([cell.row.data, cell.row.label]).strip()
        yield "| " + " | ".join([name, METHOD_LABELS[cell.method], *texts]) + " |"


def _terms(cell: Cell) -> list[list[float]]:
    """AUCs of score, reconstruction and norm; empty where a method has no terms."""
    names = ("auc_score", "auc_reconstruction", "auc_norm")
    columns = [[getattr(result, name) for result in cell.results] for name in names]
    return [[value for value in column if value is not None] for column in columns]


def _csv_row(table: TableName, cell: Cell) -> list[object]:
    row, known = cell.row, cell.published
    numbers = [number for values in _terms(cell) for number in mean_sd(values)]
    numbers += [known.mean, known.sd, cell.mean - known.mean] if known else [None] * 3
    shown = ["" if n is None or np.isnan(n) else f"{n:.4f}" for n in numbers]
    place = [table, row.data, row.label, f"{row.gamma_l:g}", f"{row.gamma_p:g}", row.k_l]
    return [*place, row.variant, cell.method, len(cell.results), cell.failed, *shown]
