"""`esad-med train`, `score` and `evaluate`: from a SampleStore to a Detector to its worth."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from esad_med.cli.app import app, finish, say
from esad_med.cli.options import (
    ConfigFile,
    DetectorFolder,
    Json,
    Overwrite,
    Precision,
    Set,
    overrides,
)


@app.command("train")
def train(
    store: Annotated[Path, typer.Argument(help="SampleStore made by `tile` or `import`.")],
    out: Annotated[Path, typer.Option(help="Folder of the new Detector.")],
    preset: Annotated[str | None, typer.Option(help="recommended, or paper.")] = None,
    width: Annotated[float | None, typer.Option(help="Scales the channels; 1 is Table 6.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the normals.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every random choice.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    config: ConfigFile = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last epoch.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a detector on unlabeled samples and a few labeled outliers."""
    from esad_med.base.config import load_config
    from esad_med.base.store import SampleStore
    from esad_med.cli.progress import ProgressBar
    from esad_med.method.config import TrainConfig
    from esad_med.method.distributed import is_first_process
    from esad_med.method.trainer import train as run

    samples = SampleStore(store)
    flags = overrides(
        settings,
        kind=None if samples.samples.ndim == 4 else "vector",
        preset=preset,
        network__width=width,
        epochs=epochs,
        seed=seed,
        device=device,
    )
    chosen = load_config(TrainConfig, config, flags)
    with ProgressBar() as progress:
        detector = run(
            samples,
            chosen,
            out,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            say=say,
        )
    if not is_first_process():
        return
    finish(
        detector.summary(),
        [f"detector in {out}", *(f"  {k}: {_fact(k, v)}" for k, v in detector.summary().items())],
        as_json=as_json,
    )


def _fact(name: str, value: object) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "held-out AUC" and isinstance(value, float):
        return f"{100 * value:.1f} %, mean over single members"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command("score")
def score(
    store: Annotated[Path, typer.Argument(help="SampleStore to score.")],
    detector: DetectorFolder,
    out: Annotated[Path, typer.Option(help="CSV to write; Parquet where it ends so.")],
    split: Annotated[str | None, typer.Option(help="Only train, val or test.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Precision = "float32",
    as_json: Json = False,
) -> None:
    """Score every sample of a store: the score, its percentile and both terms."""
    from esad_med.base.store import SampleStore
    from esad_med.cli.progress import ProgressBar
    from esad_med.method.detector import Detector
    from pipelines.scoring import score_store

    model = Detector.load(detector, device=device)
    with ProgressBar() as progress:
        table = score_store(
            SampleStore(store), model, out, split=split, precision=precision, progress=progress
        )
    summary = {"samples": len(table), "out": str(out), "detector": model.digest}
    finish(summary, [f"{len(table)} scores, in {out}"], as_json=as_json)


@app.command("evaluate")
def evaluate(
    scores: Annotated[
        Path, typer.Argument(help="CSV or Parquet of `score` or `screen` with truth, or a folder.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, CSV and figures.")] = None,
    by: Annotated[
        Literal["auto", "patient", "slide", "tile"],
        typer.Option(help="What the intervals are resampled by."),
    ] = "auto",
    group: Annotated[
        list[str] | None, typer.Option(help="Column to break results down by; repeatable.")
    ] = None,
    bands: Annotated[
        list[str] | None,
        typer.Option(help="Edges that cut a column of numbers, age=18,40,60,80; repeatable."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Alarm above this score, for sensitivity and specificity.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Column of outlier kinds, such as findings.")
    ] = None,
    seen: Annotated[
        list[str] | None, typer.Option(help="Kind that was labeled in training; repeatable.")
    ] = None,
    columns: Annotated[
        Path | None,
        typer.Option(help="CSV of more columns, joined by sample_id, case_id or patient_id."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what scores are worth: AUC with its interval, by group, by kind of outlier."""
    from esad_med.assess.breakdown import Breakdown, read_bands
    from pipelines.scoring import evaluate_scores

    breakdown = Breakdown(
        groups=tuple(group or ()),
        bands=read_bands(bands or ()),
        threshold=threshold,
        kind=kind,
        seen=tuple(seen or ()),
    )
    result = evaluate_scores(scores, out, by=by, breakdown=breakdown, columns=columns)
    lines = [str(result)]
    if out is not None:
        lines.append(f"evaluation.json, tables and figures in {out}")
    finish(result.to_dict(), lines, as_json=as_json)
