"""`esad-med xray` and `esad-med triage`: radiographs to a SampleStore, and to a ranked worklist."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from esad_med.cli.app import app, finish, say
from esad_med.cli.options import (
    ConfigFile,
    EncoderFile,
    Json,
    Overwrite,
    Resources,
    Scheduler,
    Set,
    TrustEncoder,
    TrustScheduler,
    Workers,
    overrides,
)

_SHOWN = 10
_STAGES = {"find": "not found", "read": "not readable", "table": "in no row of the table"}


@app.command("xray")
def xray(
    table: Annotated[Path, typer.Option(help="NIH's Data_Entry table, CSV or CSV.gz.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Folders of images, NIH's twelve among them.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new SampleStore.")] = None,
    view: Annotated[str | None, typer.Option(help="PA, AP or any.")] = None,
    split_list: Annotated[
        list[str] | None,
        typer.Option(help="A list of image names, FILE or train=FILE; repeatable."),
    ] = None,
    finding: Annotated[
        str | None, typer.Option(help="Of the labeled outliers, such as Infiltration, or any.")
    ] = None,
    match: Annotated[str | None, typer.Option(help="only: nothing else; contains.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Share of these that is labeled.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split and the drawn outliers.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count by table and lists.")] = False,
    encoder: EncoderFile = None,
    trust_encoder: TrustEncoder = False,
    workers: Workers = 1,
    config: ConfigFile = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read NIH chest X-rays by table and lists into a SampleStore."""
    from esad_med.base.config import load_config
    from esad_med.base.execution import Place
    from esad_med.cli.progress import ProgressBar
    from esad_med.method.encoder import load_encoder
    from pipelines.xray_store import XrayStoreConfig, make_xray_store, plan_xray_store

    flags = overrides(
        settings,
        view=view,
        outliers__finding=finding,
        outliers__match=match,
        outliers__fraction=fraction,
        seed=seed,
    )
    chosen = load_config(XrayStoreConfig, config, flags)
    lists = split_list or []
    if dry_run:
        _, summary = plan_xray_store(table, lists, chosen)
        finish(summary.to_dict(), [str(summary)], as_json=as_json, set_aside=len(summary.failures))
        return
    for value, name in ((images, "IMAGES"), (out, "--out")):
        if not value:
            raise typer.BadParameter("is missing; --dry-run does without", param_hint=name)
    assert images is not None
    assert out is not None
    with ProgressBar() as progress:
        summary = make_xray_store(
            images,
            table,
            out,
            chosen,
            lists=lists,
            encoder=load_encoder(encoder, limits=chosen.limits, trusted=trust_encoder),
            overwrite=overwrite,
            place=Place(workers),
            progress=progress,
        )
    for failure in summary.failures[:_SHOWN]:
        say(f"{failure.case_id}: {failure.message}")
    lines = [
        str(summary),
        f"complete already, in {out}" if summary.complete_already else f"in {out}",
    ]
    if summary.failures:
        counts = Counter(_STAGES[failure.stage] for failure in summary.failures)
        parts = ", ".join(f"{count} {what}" for what, count in counts.items())
        lines.append(f"set aside (failures.csv): {parts}")
    finish(summary.to_dict(), lines, as_json=as_json, set_aside=len(summary.failures))


@app.command("triage")
def triage(
    images: Annotated[
        list[Path], typer.Argument(help="Images, folders, a DICOM tree, or one manifest CSV.")
    ],
    detector: Annotated[
        list[Path], typer.Option("--detector", help="Made by `train`; one per view, repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the worklist and the residual maps.")],
    min_age: Annotated[float | None, typer.Option(help="Years; younger are set aside.")] = None,
    missing_age: Annotated[str | None, typer.Option(help="accept or set_aside.")] = None,
    missing_view: Annotated[
        str | None, typer.Option(help="set_aside, or taken as PA or AP.")
    ] = None,
    identifiers: Annotated[
        bool, typer.Option("--identifiers", help="Show patients and files in the worklist.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="Key of the case ids, to share it between runs.")
    ] = None,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Also write an SR and an SC per DICOM study.")
    ] = False,
    encoder: EncoderFile = None,
    trust_encoder: TrustEncoder = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Workers = 1,
    scheduler: Scheduler = "",
    resources: Resources = None,
    trust_scheduler: TrustScheduler = False,
    config: ConfigFile = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Rank chest X-ray studies: a worklist with residual overlays, for a person to read."""
    from esad_med.base.config import load_config
    from esad_med.base.execution import Place
    from esad_med.cli.progress import ProgressBar
    from esad_med.method.encoder import load_encoder
    from esad_med.outputs.pages import format_percentile
    from pipelines.triage import triage as run
    from pipelines.triage_intake import TriageConfig
    from pipelines.triage_scoring import load_detectors

    flags = overrides(
        settings,
        eligibility__min_age=min_age,
        eligibility__missing_age=missing_age,
        eligibility__missing_view=missing_view,
    )
    chosen = load_config(TriageConfig, config, flags)
    embeds = load_encoder(encoder, device=device, limits=chosen.limits, trusted=trust_encoder)
    by_view = load_detectors(detector, device=device, encoder=embeds)
    with ProgressBar() as progress:
        summary = run(
            images,
            by_view,
            out,
            chosen,
            key_file=key,
            identified=identifiers,
            dicom=dicom,
            place=Place.of(workers, scheduler, resources, trust_scheduler),
            say=say,
            progress=progress,
        )
    lines = [
        f"{row['rank']:>4}  {row['case_id']}  percentile {format_percentile(row['percentile'])}"
        f"  score {row['score']:.4g}  {row['view']}"
        for row in summary.studies[:_SHOWN]
    ]
    if len(summary.studies) > _SHOWN:
        lines.append(f"      and {len(summary.studies) - _SHOWN} more")
    lines.append(f"{len(summary.studies)} studies ranked, in {out} (worklist.html, worklist.csv)")
    if summary.failures:
        lines.append(f"{len(summary.failures)} images set aside (failures.csv)")
    if summary.passed_over:
        lines.append(f"{summary.passed_over} files that are no images were passed over")
    finish(summary.to_dict(), lines, as_json=as_json, set_aside=len(summary.failures))
