"""One run of the benchmark and what came of it: plain values, a line of the journal each."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from esad_med.base.errors import EsadError


@dataclass(frozen=True)
class Run:
    """One training and one test: all that tells it from the others of its suite.

    Attributes:
        suite: such as "odds"; its data sets have one protocol.
        data: the data set; the suite's name where it has one.
        method: "esad-paper", "esad-recommended" or a baseline.
        seed: decides every random choice.
        gamma_l: γl, labeled outliers' share of the training set; 0 for none.
        gamma_p: γp, hidden anomalies' share of the unlabeled samples.
        k_l: how many classes labeled outliers come from.
        normal: the normal class; "" where the data has but normal and anomalous.
        outlier_classes: where labeled outliers come from; () for all, or for none.
        variant: what an ablation changes; "" for the method itself.
        settings: the same as KEY=VALUE overrides of ESAD's settings.
    """

    suite: str
    data: str
    method: str
    seed: int
    gamma_l: float = 0.0
    gamma_p: float = 0.0
    k_l: int = 0
    normal: str = ""
    outlier_classes: tuple[str, ...] = ()
    variant: str = ""
    settings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name: readable, and the same whenever and wherever it is planned."""
        parts = [self.suite, *([self.data] if self.data != self.suite else []), self.method]
        if self.variant:
            parts.append(self.variant.replace(" ", "-"))
        if self.normal:
            parts.append(f"normal={self.normal}")
        if self.outlier_classes:
            parts.append(f"outliers={'+'.join(self.outlier_classes)}")
        parts.append(f"gamma_l={self.gamma_l:g}")
        if self.gamma_p:
            parts.append(f"gamma_p={self.gamma_p:g}")
        return "/".join([*parts, f"seed={self.seed}"])


@dataclass(frozen=True)
class Result:
    """What a finished run measured on its test set.

    Attributes:
        run: which.
        auc_score: AUC, 0-1.
        auc_reconstruction: AUC of ESAD's first term alone; None for baselines.
        auc_norm: AUC of its second term alone; None for baselines.
        normals: unlabeled training samples, pollution among them.
        outliers: labeled training outliers.
        test_normals: normal test samples.
        test_anomalous: anomalous test samples.
        seconds: its share of the time; of runs that trained together, an equal part.
        source: what the data was read from; "" where there is but one form of it.
    """

    run: Run
    auc_score: float
    auc_reconstruction: float | None
    auc_norm: float | None
    normals: int
    outliers: int
    test_normals: int
    test_anomalous: int
    seconds: float
    source: str = ""


@dataclass(frozen=True)
class FailedRun:
    """A run that gave no score, and why."""

    run: Run
    error: str
    message: str

    @classmethod
    def of(cls, run: Run, error: EsadError) -> "FailedRun":
        """The failure that an error during a run is."""
        return cls(run, type(error).__name__, str(error))


Outcome = Result | FailedRun

_RUN = tuple(field.name for field in fields(Run))
_MEASURED = tuple(field.name for field in fields(Result) if field.name != "run")
RESULT_COLUMNS = ("key", *_RUN, *_MEASURED)


def outcome_facts(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain values, for the journal."""
    return {"result" if isinstance(outcome, Result) else "failure": asdict(outcome)}


def read_outcome(facts: Mapping[str, Any]) -> Outcome:
    """The outcome that a line of the journal holds.

    Raises:
        KeyError: the line holds none.
        TypeError: it holds other fields than those of today.
    """
    kind: type[Outcome] = Result if "result" in facts else FailedRun
    values = dict(facts["result" if kind is Result else "failure"])
    run: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.pop("run").items()
    }
    return kind(run=Run(**run), **values)


def result_row(result: Result) -> list[object]:
    """A line of ``results.csv``, in the order of `RESULT_COLUMNS`."""
    run = [
        " ".join(value) if isinstance(value, tuple) else value
        for value in (getattr(result.run, name) for name in _RUN)
    ]
    measured = [_shown(getattr(result, name)) for name in _MEASURED]
    return [result.run.key, *run, *measured]


def _shown(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
