"""`esad-med camelyon16`: detections scored as the challenge scores them."""

from pathlib import Path
from typing import Annotated

import typer

from esad_med.cli.app import app, finish
from esad_med.cli.options import ConfigFile, Json, Set


@app.command("camelyon16")
def camelyon16(
    results: Annotated[
        Path, typer.Argument(help="Folder of `screen`, or of CSVs probability,x,y, one per slide.")
    ],
    masks: Annotated[
        Path, typer.Option(help="Folder of masks (TIFF) or outlines (XML) of the tumor slides.")
    ],
    reference: Annotated[Path, typer.Option(help="CSV of the key: name, Tumor or Normal.")],
    out: Annotated[Path, typer.Option(help="Folder for the challenge's files and the result.")],
    slide_scores: Annotated[
        Path | None, typer.Option(help="CSV name,probability, instead of the results' own.")
    ] = None,
    config: ConfigFile = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Score detections as Camelyon16 does: FROC by lesion, AUC by slide."""
    from esad_med.base.config import load_config
    from esad_med.cli.progress import ProgressBar
    from pipelines.camelyon16_scoring import Camelyon16Config, score_camelyon16

    chosen = load_config(Camelyon16Config, config, settings or [])
    with ProgressBar() as progress:
        result = score_camelyon16(
            results,
            masks,
            reference,
            out,
            chosen,
            slide_scores=slide_scores,
            progress=progress,
        )
    finish(result.to_dict(), [*result.lines(), f"tables and curve in {out}"], as_json=as_json)
