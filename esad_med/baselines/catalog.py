"""All baselines by name."""

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from esad_med.base.errors import ConfigError
from esad_med.baselines.base import Baseline, BaselineSettings

if TYPE_CHECKING:
    from esad_med.baselines.autoencoder import Autoencoder

#: How a table prints each of them, in the paper's order.
LABELS: dict[str, str] = {
    "oc-svm": "OC-SVM",
    "isolation-forest": "Isolation forest",
    "ssad": "SSAD",
    "cae": "CAE",
    "deep-svdd": "Deep SVDD",
    "deep-svdd-soft": "Deep SVDD (soft boundary)",
    "ss-dgm-m2": "SS-DGM (M2)",
    "ss-dgm-m1m2": "SS-DGM (M1+M2)",
    "deep-sad": "Deep SAD",
    "supervised": "Supervised classifier",
    "oc-svm-hybrid": "OC-SVM hybrid",
    "isolation-forest-hybrid": "Isolation forest hybrid",
    "ssad-hybrid": "SSAD hybrid",
}
BASELINES: tuple[str, ...] = tuple(LABELS)


def make_baseline(
    name: str, settings: BaselineSettings, autoencoder: "Autoencoder | None" = None
) -> Baseline:
    """Make a baseline, not yet fitted.

    Args:
        name: one of `BASELINES`.
        settings: its settings, and those of all others.
        autoencoder: a fitted one to begin with or to encode by, for those that need one; they
            train their own otherwise.

    Raises:
        ConfigError: an unknown name.
    """
    check_name(name)
    from esad_med.baselines.autoencoder import Cae
    from esad_med.baselines.deep_sad import DeepSad
    from esad_med.baselines.deep_svdd import DeepSvdd
    from esad_med.baselines.hybrid import Hybrid
    from esad_med.baselines.isolation_forest import IsolationForest
    from esad_med.baselines.one_class_svm import OneClassSvm
    from esad_med.baselines.ss_dgm import SemiSupervisedVae
    from esad_med.baselines.ssad import Ssad
    from esad_med.baselines.supervised import SupervisedClassifier

    makers: dict[str, Callable[[], Baseline]] = {
        "oc-svm": lambda: OneClassSvm(settings),
        "isolation-forest": lambda: IsolationForest(settings),
        "ssad": lambda: Ssad(settings),
        "cae": lambda: Cae(settings, autoencoder),
        "deep-svdd": lambda: DeepSvdd(settings, autoencoder),
        "deep-svdd-soft": lambda: DeepSvdd(settings, autoencoder, soft=True),
        "ss-dgm-m2": lambda: SemiSupervisedVae(settings, kind="m2"),
        "ss-dgm-m1m2": lambda: SemiSupervisedVae(settings, kind="m1m2"),
        "deep-sad": lambda: DeepSad(settings, autoencoder),
        "supervised": lambda: SupervisedClassifier(settings),
        "oc-svm-hybrid": lambda: Hybrid(OneClassSvm(settings), settings, autoencoder),
        "isolation-forest-hybrid": lambda: Hybrid(IsolationForest(settings), settings, autoencoder),
        "ssad-hybrid": lambda: Hybrid(Ssad(settings), settings, autoencoder),
    }
    return makers[name]()


def check_name(name: str) -> None:
    """Refuse a name that is no baseline's.

    Raises:
        ConfigError: naming the nearest known one.
    """
    if name in BASELINES:
        return
    near = difflib.get_close_matches(name, BASELINES, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(BASELINES)}"
    raise ConfigError(f"baseline '{name}' is unknown; {hint}")
