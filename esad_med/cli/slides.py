"""`esad-med screen` and `esad-med demo`: from slides to slide scores, heat maps and reports."""

from pathlib import Path
from typing import Annotated

import typer

from esad_med.cli.app import app, finish, say
from esad_med.cli.options import (
    Annotations,
    ConfigFile,
    DetectorFolder,
    EncoderFile,
    Json,
    Mpp,
    Precision,
    Resources,
    Scheduler,
    Set,
    Slides,
    TrustEncoder,
    TrustScheduler,
    Workers,
    overrides,
)


@app.command("screen")
def screen(
    slides: Slides,
    detector: DetectorFolder,
    out: Annotated[Path, typer.Option(help="Folder for the results, one folder per slide in it.")],
    annotations: Annotations = None,
    slide_mpp: Mpp = None,
    write: Annotated[
        list[str] | None,
        typer.Option(help="geojson, asap, dicom, parquet; repeatable, geojson if none is named."),
    ] = None,
    encoder: EncoderFile = None,
    trust_encoder: TrustEncoder = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Precision = "float32",
    workers: Workers = 1,
    scheduler: Scheduler = "",
    resources: Resources = None,
    trust_scheduler: TrustScheduler = False,
    config: ConfigFile = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Score whole slides: a score, a heat map and a report each."""
    from esad_med.base.execution import Place
    from esad_med.cli.progress import ProgressBar
    from esad_med.method.detector import Detector
    from esad_med.method.encoder import load_encoder
    from pipelines.pathology import find_cases
    from pipelines.screening import screen_slides, screening_config

    model = Detector.load(detector, device=device)
    embeds = load_encoder(encoder, device=device, trusted=trust_encoder)
    changes = overrides(settings, exports__write=write)
    chosen = screening_config(model, config, changes, encoder=embeds)
    cases = find_cases(slides, mpp=slide_mpp, annotations=annotations, limits=chosen.limits)
    with ProgressBar() as progress:
        summary = screen_slides(
            cases,
            model,
            out,
            chosen,
            precision=precision,
            encoder=embeds,
            place=Place.of(workers, scheduler, resources, trust_scheduler),
            say=say,
            progress=progress,
        )
    lines = [f"{len(summary.slides)} slides screened, in {out} (slides.csv, CASE/report.html)"]
    if summary.failures:
        lines.append(f"{len(summary.failures)} slides, tiles or files set aside (failures.csv)")
    finish(summary.to_dict(), lines, as_json=as_json, set_aside=len(summary.failures))


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path(
        "demo-run"
    ),
    seed: Annotated[int, typer.Option(help="Decides the slides and the training.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the whole path on composed slides: compose, tile, train, screen, report."""
    from esad_med.cli.progress import ProgressBar
    from pipelines.demo import run_demo

    with ProgressBar() as progress:
        result = run_demo(out, seed=seed, say=say, progress=progress)
    finish(result.to_dict(), [str(result)], as_json=as_json)
