"""`esad-med export`: a detector for ONNX Runtime, PyTorch or MONAI."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from esad_med.cli.app import app, finish
from esad_med.cli.options import Json, Overwrite


@app.command("export")
def export(
    detector: Annotated[Path, typer.Argument(help="Folder made by `train`.")],
    format: Annotated[
        Literal["monai-bundle", "onnx", "torch-export"], typer.Option(help="For which runtime.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the export.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="SampleStore to compare scores on; composed samples without it."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Hand a detector over to another runtime, if it scores there as it does here."""
    from dataclasses import asdict

    from pipelines.exporting import export as run

    found = run(detector, out, format=format, reference=reference, overwrite=overwrite)
    lines = [
        f"{format} in {out}; how to run it: "
        f"{out / ('docs/README.md' if format == 'monai-bundle' else 'README.md')}",
        f"  scores of {found.samples} reference samples ({found.reference}) differ by at most"
        f" {found.largest_difference:.2g}",
    ]
    finish({"out": str(out), **asdict(found)}, lines, as_json=as_json)
