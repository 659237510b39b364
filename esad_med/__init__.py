"""Screening of slides and X-rays with end-to-end deep semi-supervised anomaly detection.

The library's face, loaded when first used: `SampleStore`, `Detector`, `Scores`, `TrainConfig`,
`train`; `ESADDetector` for scikit-learn. Research use only, not for diagnosis.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esad_med.base.store import SampleStore
    from esad_med.method.config import TrainConfig
    from esad_med.method.detector import Detector
    from esad_med.method.estimator import ESADDetector
    from esad_med.method.scores import Scores
    from esad_med.method.trainer import train

__all__ = ["Detector", "ESADDetector", "SampleStore", "Scores", "TrainConfig", "train"]

_HOMES = {
    "Detector": "esad_med.method.detector",
    "ESADDetector": "esad_med.method.estimator",
    "SampleStore": "esad_med.base.store",
    "Scores": "esad_med.method.scores",
    "TrainConfig": "esad_med.method.config",
    "train": "esad_med.method.trainer",
}


def __getattr__(name: str) -> Any:
    """Import a name of the library's face on first use; `esad-med --help` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'esad_med' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
