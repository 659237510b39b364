"""`esad-med calibrate`: from scores to decisions with known rates of error."""

from pathlib import Path
from typing import Annotated

import typer

from esad_med.cli.app import app, finish
from esad_med.cli.options import ConfigFile, Json, Precision, Set, overrides


@app.command("calibrate")
def calibrate(
    detector: Annotated[Path, typer.Argument(help="Folder made by `train`.")],
    store: Annotated[Path, typer.Argument(help="SampleStore with normals it never met.")],
    split: Annotated[
        str | None, typer.Option(help="Only rows of this split; else `calibration`, or all.")
    ] = None,
    false_alarms: Annotated[
        float | None, typer.Option(help="Share of normals that may give an alarm, such as 0.05.")
    ] = None,
    sensitivity: Annotated[
        float | None, typer.Option(help="Share of anomalous cases that must not be passed over.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Precision = "float32",
    config: ConfigFile = None,
    settings: Set = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier calibration.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find thresholds that keep a rate of false alarms or a sensitivity, and keep them."""
    from esad_med.base.config import load_config
    from esad_med.base.store import SampleStore
    from esad_med.cli.progress import ProgressBar
    from esad_med.method.detector import Detector
    from pipelines.calibrating import calibrate_folder
    from pipelines.calibration_levels import CalibrationConfig
    from pipelines.operating_points import operating_points, point_lines

    flags = overrides(settings, false_alarms=false_alarms, sensitivity=sensitivity)
    chosen = load_config(CalibrationConfig, config, flags)
    # to be replaced, decisions may be damaged or another detector's
    model = Detector.load(detector, device=device, decided=not overwrite)
    with ProgressBar() as progress:
        decisions = calibrate_folder(
            detector,
            model,
            SampleStore(store),
            chosen,
            split=split,
            precision=precision,
            overwrite=overwrite,
            progress=progress,
        )
    summary = {
        "detector": str(detector),
        "digest": model.score_digest,
        "normals": decisions.samples.normals.count,
        "units": decisions.samples.normals.units,
        "unit": decisions.samples.normals.unit,
        "no_cases": decisions.no_cases,
        "points": operating_points(decisions),
    }
    finish(summary, point_lines(decisions), as_json=as_json)
