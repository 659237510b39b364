"""What stands below a table: is ESAD beaten by a baseline, and what makes it unlike the paper's."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from esad_med.baselines.base import BaselineSettings
from esad_med.baselines.catalog import BASELINES, LABELS
from pipelines.paper.grids import Row
from pipelines.paper.runs import Result, Run
from pipelines.paper.settings import NATURAL, BenchmarkConfig, PaperCells

_OURS = "esad-recommended"
_KERNEL = ("oc-svm", "ssad")


def below_baselines(found: Mapping[tuple[Row, str], Sequence[Result]]) -> Iterator[str]:
    """Say whether `esad-recommended` is below any baseline by more than chance explains.

    Runs are paired by seed and classes. Below means: by more than one standard error of the mean
    paired difference.

    Args:
        found: the results of every row and method.
    """
    compared, below = 0, []
    for (row, method), theirs in found.items():
        if method not in BASELINES:
            continue
        differences = paired_differences(found.get((row, _OURS), ()), theirs)
        if len(differences) < 2:
            continue
        compared += 1
        mean = float(np.mean(differences))
        error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
        if mean < -error:
            name = f"{LABELS[method]} on {row.data} {row.label}".strip()
            below.append(f"{name} by {-mean:.1f} ± {error:.1f} ({len(differences)} pairs)")
    if compared:
        told = f"below {'; '.join(below)}" if below else "below none"
        yield (
            f"`{_OURS}` against baselines, by more than one standard error of the paired"
            f" difference: {told} ({compared} comparisons)."
        )


def paired_differences(ours: Sequence[Result], theirs: Sequence[Result]) -> list[float]:
    """Our AUC minus theirs in percent points, one for each run of theirs that has a partner.

    A run of theirs that knows no outlier classes is the partner of ours with any: their mean.
    """
    differences = []
    for other in theirs:
        partners = [own.auc_score for own in ours if _are_partners(own.run, other.run)]
        if partners:
            differences.append(100 * (float(np.mean(partners)) - other.auc_score))
    return differences


def _are_partners(own: Run, other: Run) -> bool:
    same = (own.seed, own.normal) == (other.seed, other.normal)
    return same and other.outlier_classes in ((), own.outlier_classes)


def caveats(config: BenchmarkConfig, results: Sequence[Result], failed: int) -> Iterator[str]:
    """What to keep in mind when these results are held against the paper's.

    Args:
        config: the settings of the benchmark.
        results: all of a table.
        failed: how many of its runs gave none.
    """
    if failed:
        total = failed + len(results)
        yield f"{failed} of {total} runs failed (failures.csv); means are of the others."
    kernel = [r for r in results if r.run.method.removesuffix("-hybrid") in _KERNEL]
    if kernel and config.unfair_selection:
        yield (
            "UNFAIR: γ and ν of OC-SVM and SSAD were chosen by the AUC on a tenth of the test set,"
            " as the paper does."
        )
    elif kernel:
        yield (
            "γ and ν of OC-SVM and SSAD are fixed; the paper chose them on a tenth of the test set."
        )
    most = config.baselines.get("kernel_rows", BaselineSettings.model_fields["kernel_rows"].default)
    if capped := sorted({r.run.data for r in kernel if _kernel_rows(r) > most}):
        yield f"Kernel methods trained on {most} rows, drawn at random, of {', '.join(capped)}."
    if config.leaking:
        yield (
            "LEAKING: training and test rows were drawn apart, as in Deep SAD's code, so about"
            " 60 % of the test rows were trained on."
        )
    yield from _changed(config)
    if sources := sorted({result.source for result in results if result.source}):
        yield f"Data read from: {', '.join(sources)}."
    yield (
        "The paper prints the better of the two variants of Deep SVDD and of SS-DGM; versions in"
        " run.json. For research, not for diagnosis."
    )


def _changed(config: BenchmarkConfig) -> Iterator[str]:
    if config.width is not None:
        yield f"Width {config.width:g} of ESAD's image network (1 in the paper)."
    if config.epochs is not None:
        yield f"Epochs of every method: {config.epochs}, instead of each method's own."
    if config.members is not None:
        yield f"Members of ESAD: {config.members}, whatever the preset says."
    for name, settings in (("esad", config.esad), ("baselines", config.baselines)):
        if settings:
            yield f"Settings changed for {name}: {settings}."
    if config.cells != PaperCells():
        yield f"Settings changed for cells: {config.cells.model_dump(exclude_defaults=True)}."
    if config.target:
        yield f"Stains shown as in {config.target.name}, instead of DPA's crop of normal_056."
    if config.outlier_classes == "one" and config.suite in NATURAL:
        yield "One outlier class per normal class, the next one, instead of each of nine."


def _kernel_rows(result: Result) -> int:
    """Rows that a kernel method would train on; OC-SVM takes no labeled ones."""
    return result.normals + result.outliers * result.run.method.startswith("ssad")
