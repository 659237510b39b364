"""Options that several commands share, declared once."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file of differences from the defaults.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, GROUP.KEY=VALUE, as in --config; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")]
DetectorFolder = Annotated[Path, typer.Option("--detector", help="Folder made by `train`.")]
Slides = Annotated[
    list[Path], typer.Argument(help="Slides, folders of slides, or one manifest CSV.")
]
Mpp = Annotated[
    float | None,
    typer.Option("--slide-mpp", help="Level-0 µm per pixel, for slides that do not say it."),
]
Annotations = Annotated[
    Path | None,
    typer.Option(help="Folder of outlines named like the slides: ASAP XML, GeoJSON, mask image."),
]

Precision = Annotated[
    Literal["float32", "bfloat16", "int8"],
    typer.Option(help="Of scoring; bfloat16, and int8 on a CPU, are faster and less exact."),
]

EncoderFile = Annotated[
    Path | None,
    typer.Option("--encoder", help="ONNX model or .pt2 that turns pictures into embeddings."),
]
TrustEncoder = Annotated[
    bool,
    typer.Option("--trust-encoder", help="The encoder is a .pt2, which may run programs: let it."),
]

Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=0,
        envvar="ESAD_WORKERS",
        help="0: in this process; 1: beside it, where a crash costs one case; more need Dask.",
    ),
]
Scheduler = Annotated[
    str, typer.Option("--scheduler", help="Dask scheduler to work on, such as tls://host:8786.")
]
Resources = Annotated[
    list[str] | None,
    typer.Option("--resource", help="What a task needs of a cluster's worker, GPU=1; repeatable."),
]
TrustScheduler = Annotated[
    bool,
    typer.Option("--trust-scheduler", help="Connect without TLS: the network is closed to others."),
]


def overrides(settings: list[str] | None, **flags: object) -> list[str]:
    """``--set`` strings of the flags that were given, then the user's own; the last one wins."""
    given = [
        f"{key.replace('__', '.')}={_as_yaml(value)}"
        for key, value in flags.items()
        if value is not None
    ]
    return [*given, *(settings or [])]


def _as_yaml(value: object) -> str:
    """A text in quotes: a column may be called ``1``, ``no`` or ``a: b``."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
