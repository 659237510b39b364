"""`esad-med demo`: the whole path on composed slides, without a download or any data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.demo_slides import compose_demo_slides
from esad_med.base.cases import Case
from esad_med.base.config import build_spec
from esad_med.base.runs import Progress, Say, no_progress
from esad_med.base.store import SampleStore
from esad_med.method.config import TrainConfig
from esad_med.method.trainer import train
from pipelines.pathology import PathologyConfig, load_target
from pipelines.scoring import evaluate_scores
from pipelines.screening import screen_slides, screening_config
from pipelines.tiling import tile_slides

COMPOSED = (
    "The slides are composed: the texture is scikit-image's immunohistochemistry picture, colored"
    " like H&E, and the lesions are drawn. They show that every step works, not how well ESAD"
    " finds disease."
)
_TRAINING = {
    "network": {"width": 0.125},
    "members": 2,
    "epochs": 6,
    "keep_examples": 256,  # of composed slides: nobody's pictures
}


@dataclass(frozen=True)
class DemoResult:
    """What the demo found on its two held-out slides."""

    out: Path
    tile_auc: float
    slide_scores: dict[str, float]
    unreadable: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        reports = {name: str(self.report_of(name)) for name in self.slide_scores}
        return {
            "out": str(self.out),
            "tile_auc": self.tile_auc,
            "slide_scores": self.slide_scores,
            "reports": reports,
            "composed": COMPOSED,
        }

    def report_of(self, case_id: str) -> Path:
        """Where the report of a held-out slide lies."""
        return self.out / "screened" / case_id / "report.html"

    def __str__(self) -> str:
        lines = [f"tile AUC on the held-out slides: {self.tile_auc:.3f}"]
        for name, score in self.slide_scores.items():
            lines.append(f"slide score of {name}: {score:.3f}   report: {self.report_of(name)}")
        return "\n".join([*lines, COMPOSED])


def run_demo(out: Path, *, seed: int = 0, say: Say, progress: Progress = no_progress) -> DemoResult:
    """Compose slides, tile them, train a narrow detector, screen two held-out slides.

    Args:
        out: folder for everything; what an earlier demo left there is replaced.
        seed: decides the slides and the training.
        say: receives a line per step and slide.
        progress: called while tiles are read and networks trained.
    """
    settings = build_spec(TrainConfig, {**_TRAINING, "seed": seed}, source="the demo")
    say(COMPOSED)
    say("composing slides")
    cases = compose_demo_slides(out / "slides", seed=seed)
    training = [case for case in cases if case.split == "train"]
    held_out = [case for case in cases if case.split == "test"]

    say("tiling the training slides")
    config = PathologyConfig()
    store = tile_training_slides(training, out / "store", config, say=say, progress=progress)

    say("training a narrow detector")
    detector = train(store, settings, out / "detector", overwrite=True, progress=progress)

    say("screening the held-out slides")
    screened = out / "screened"
    chosen = screening_config(detector, None, [])
    summary = screen_slides(held_out, detector, screened, chosen, say=say, progress=progress)
    evaluation = evaluate_scores(screened, out / "evaluation", by="tile")
    return DemoResult(
        out=out,
        tile_auc=evaluation.measures["score"].auc,
        slide_scores={slide["case_id"]: slide["slide_score"] for slide in summary.slides},
        unreadable=len(summary.failures),
    )


def tile_training_slides(
    cases: list[Case], out: Path, config: PathologyConfig, *, say: Say, progress: Progress
) -> SampleStore:
    """The demo's store; an older one in its place is replaced."""
    target = load_target(None, config.stain)
    tile_slides(cases, out, config, target=target, overwrite=True, say=say, progress=progress)
    return SampleStore(out)
