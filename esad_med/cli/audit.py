"""`esad-med audit`: what is wrong with a SampleStore before a detector is trained on it."""

from pathlib import Path
from typing import Annotated

import typer

from esad_med.cli.app import app, finish
from esad_med.cli.options import ConfigFile, Json, Set


@app.command("audit")
def audit(
    store: Annotated[Path, typer.Argument(help="SampleStore to look through.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page, audit.json and tables.")
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(help="Let this detector's scores count in the ranking, too.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit with 3 if a patient, case or sample stands in two splits."
        ),
    ] = False,
    config: ConfigFile = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Look for leaks, copies, blank or blurred tiles, pollution, and what to label next."""
    from esad_med.base.config import load_config
    from esad_med.base.store import SampleStore
    from esad_med.cli.progress import ProgressBar
    from pipelines.audit_results import lines_of, refuse_other_content, summarize, write_audit
    from pipelines.auditing import AuditConfig, audit_store

    chosen = load_config(AuditConfig, config, settings or [])
    samples = SampleStore(store)
    if out is not None:
        refuse_other_content(out)  # before minutes, not after
    with ProgressBar() as progress:
        found = audit_store(samples, chosen, detector=detector, progress=progress)
        if out is not None:
            write_audit(out, found, chosen)
    lines = lines_of(found)
    if out is not None:
        lines.append(f"audit.html, audit.json and tables in {out}")
    leaks = found.certain_leaks if strict else 0
    finish(summarize(found), lines, as_json=as_json, set_aside=leaks)
