"""`esad-med tile` and `esad-med import`: pictures become a SampleStore."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from esad_med.cli.app import app, finish, say
from esad_med.cli.options import (
    Annotations,
    ConfigFile,
    EncoderFile,
    Json,
    Mpp,
    Overwrite,
    Resources,
    Scheduler,
    Set,
    Slides,
    TrustEncoder,
    TrustScheduler,
    Workers,
    overrides,
)

Target = Annotated[
    Path | None,
    typer.Option("--target", help="Stain target: a picture, a stored target, or a store."),
]
Stain = Annotated[str | None, typer.Option(help="vahadane, staintools, macenko, reinhard or none.")]


@app.command("tile")
def tile(
    context: typer.Context,
    slides: Slides,
    out: Annotated[Path | None, typer.Option(help="Folder of the new SampleStore.")] = None,
    annotations: Annotations = None,
    mpp: Annotated[float | None, typer.Option(help="Tile resolution, µm per pixel.")] = None,
    size: Annotated[int | None, typer.Option(help="Tile edge in pixels.")] = None,
    stride: Annotated[int | None, typer.Option(help="Step between tiles in pixels.")] = None,
    stain: Stain = None,
    target: Target = None,
    min_tissue: Annotated[float | None, typer.Option(help="Least share of tissue.")] = None,
    slide_mpp: Mpp = None,
    protocol: Annotated[
        str, typer.Option(help="grid, or dpa for the published Camelyon16 cells.")
    ] = "grid",
    cells: Annotated[
        list[Path] | None, typer.Option(help="With dpa: a published list of cells; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count tiles, write nothing.")] = False,
    png: Annotated[bool, typer.Option("--png", help="Also write every tile as PNG.")] = False,
    hdf5: Annotated[
        bool, typer.Option("--hdf5", help="Also write CLAM / TRIDENT coordinates.")
    ] = False,
    encoder: EncoderFile = None,
    trust_encoder: TrustEncoder = False,
    features_h5: Annotated[
        bool, typer.Option("--features-h5", help="With --encoder: also TRIDENT feature files.")
    ] = False,
    workers: Workers = 1,
    scheduler: Scheduler = "",
    resources: Resources = None,
    trust_scheduler: TrustScheduler = False,
    config: ConfigFile = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cut slides into stain-normalized tiles: one SampleStore, a picture of the grid per slide."""
    from esad_med.base.config import load_config
    from esad_med.base.execution import Place
    from esad_med.cli.progress import ProgressBar
    from esad_med.method.encoder import load_encoder
    from pipelines.pathology import PathologyConfig, find_cases, load_target
    from pipelines.tiling import plan_slides, tile_slides

    if protocol == "dpa":
        grid_only: dict[str, object] = {"--annotations": annotations, "--mpp": mpp, "--size": size}
        grid_only |= {"--stride": stride, "--min-tissue": min_tissue, "--dry-run": dry_run}
        grid_only |= {
            "--png": png,
            "--hdf5": hdf5,
            "--encoder": encoder,
            "--features-h5": features_h5,
            "--workers": workers > 1 and not _is_from_environment(context, "workers"),
            "--scheduler": scheduler,
        }
        _refuse_given(grid_only, "protocol dpa")
        flags = overrides(settings, stain__method=stain, slide_mpp=slide_mpp)
        _tile_cells(slides, cells or [], out, target, config, flags, overwrite, as_json)
        return
    if cells:
        raise typer.BadParameter("needs --protocol dpa", param_hint="--cells")
    if features_h5 and encoder is None:
        raise typer.BadParameter("needs --encoder", param_hint="--features-h5")
    if protocol != "grid":
        raise typer.BadParameter(f"'{protocol}' is not one of grid, dpa", param_hint="--protocol")
    flags = overrides(
        settings,
        tiles__mpp=mpp,
        tiles__size_px=size,
        tiles__stride_px=size if stride is None else stride,
        tiles__min_tissue=min_tissue,
        stain__method=stain,
    )
    chosen = load_config(PathologyConfig, config, flags)
    cases = find_cases(slides, mpp=slide_mpp, annotations=annotations, limits=chosen.limits)
    colors = load_target(target, chosen.stain)
    embeds = None if dry_run else load_encoder(encoder, limits=chosen.limits, trusted=trust_encoder)
    with ProgressBar() as progress:
        if dry_run:
            summary = plan_slides(cases, chosen, say=say)
        else:
            summary = tile_slides(
                cases,
                _required(out),
                chosen,
                target=colors,
                png=png,
                coordinates=hdf5,
                encoder=embeds,
                features=features_h5,
                overwrite=overwrite,
                place=Place.of(workers, scheduler, resources, trust_scheduler),
                say=say,
                progress=progress,
            )
    finish(
        summary.to_dict(),
        [str(summary)],
        as_json=as_json,
        set_aside=len(summary.failures),
    )


def _is_from_environment(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def _tile_cells(
    folders: list[Path],
    lists: list[Path],
    out: Path | None,
    target: Path | None,
    config: Path | None,
    settings: list[str],
    overwrite: bool,
    as_json: bool,
) -> None:
    from esad_med.base.config import load_config
    from esad_med.cli.progress import ProgressBar
    from pipelines.cells import CellConfig, tile_cells
    from pipelines.pathology import load_target

    if len(folders) != 1:
        raise typer.BadParameter("protocol dpa takes one folder, Camelyon16's", param_hint="SLIDES")
    chosen = load_config(CellConfig, config, settings)
    with ProgressBar() as progress:
        summary = tile_cells(
            folders[0],
            lists,
            _required(out),
            chosen,
            target=load_target(target, chosen.stain) if target else None,
            overwrite=overwrite,
            say=say,
            progress=progress,
        )
    finish(summary.to_dict(), [str(summary)], as_json=as_json, set_aside=len(summary.failures))


@app.command("import")
def import_(
    out: Annotated[Path, typer.Option(help="Folder of the new SampleStore.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Folder that the table's paths start from.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="CSV with a row per picture; with --features per slide.")
    ] = None,
    features: Annotated[
        list[Path] | None,
        typer.Option("--features", help="CLAM / TRIDENT .h5 files, or folders; repeatable."),
    ] = None,
    encoder_name: Annotated[
        str | None, typer.Option(help="With --features: what made them, where they do not say.")
    ] = None,
    annotations: Annotations = None,
    encoder: EncoderFile = None,
    trust_encoder: TrustEncoder = False,
    path: Annotated[str | None, typer.Option(help="Column of the picture's path.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of 0 / 1, normal / tumor.")] = None,
    id: Annotated[str | None, typer.Option(help="Column of unique names.")] = None,
    group: Annotated[str | None, typer.Option(help="Column of the slide a tile is from.")] = None,
    patient: Annotated[str | None, typer.Option(help="Column of the patient.")] = None,
    split: Annotated[str | None, typer.Option(help="Column of train / val / test.")] = None,
    crop: Annotated[int | None, typer.Option(help="Edge of the central crop, pixels.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Resolution, µm per pixel.")] = None,
    stain: Stain = None,
    stain_by: Annotated[str | None, typer.Option(help="One matrix per group, or per set.")] = None,
    target: Target = None,
    workers: Workers = 1,
    config: ConfigFile = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read tile pictures and a table, or feature files, into a SampleStore."""
    columns = {"path": path, "label": label, "id": id, "group": group}
    columns |= {"patient": patient, "split": split}
    if features:
        others: dict[str, object] = {f"--{name}": value for name, value in columns.items()}
        others |= {"FOLDER": folder, "--encoder": encoder, "--crop": crop, "--stain": stain}
        _refuse_given({**others, "--stain-by": stain_by, "--target": target}, "--features")
        flags = overrides(settings, encoder_name=encoder_name, mpp=mpp)
        _import_features(
            features, table, annotations, out, config, flags, overwrite, workers, as_json
        )
        return
    _refuse_given({"--encoder-name": encoder_name, "--annotations": annotations}, "pictures")
    for value, name in ((folder, "FOLDER"), (table, "--table")):
        if value is None:
            raise typer.BadParameter("is missing; --features does without", param_hint=name)
    assert folder is not None
    assert table is not None
    from esad_med.base.config import load_config
    from esad_med.base.execution import Place
    from esad_med.cli.progress import ProgressBar
    from esad_med.method.encoder import load_encoder
    from pipelines.importing import ImportConfig, import_tiles
    from pipelines.pathology import load_target

    flags = overrides(
        settings,
        **{f"columns__{name}": column for name, column in columns.items()},
        size_px=crop,
        mpp=mpp,
        stain__method=stain,
        stain_by=stain_by,
    )
    chosen = load_config(ImportConfig, config, flags)
    with ProgressBar() as progress:
        summary = import_tiles(
            folder,
            table,
            out,
            chosen,
            target=load_target(target, chosen.stain),
            encoder=load_encoder(encoder, limits=chosen.limits, trusted=trust_encoder),
            overwrite=overwrite,
            place=Place(workers),
            progress=progress,
        )
    for failure in summary.failures:
        say(f"{failure.case_id}: set aside, {failure.message}")
    finish(
        summary.to_dict(),
        [f"{summary}, in {out}"],
        as_json=as_json,
        set_aside=len(summary.failures),
    )


def _import_features(
    features: list[Path],
    table: Path | None,
    annotations: Path | None,
    out: Path,
    config: Path | None,
    settings: list[str],
    overwrite: bool,
    workers: int,
    as_json: bool,
) -> None:
    from esad_med.base.config import load_config
    from esad_med.base.execution import Place
    from esad_med.cli.progress import ProgressBar
    from pipelines.features import FeatureConfig, find_feature_cases, import_features

    chosen = load_config(FeatureConfig, config, settings)
    cases, failures = find_feature_cases(
        features, table=table, annotations=annotations, limits=chosen.limits
    )
    with ProgressBar() as progress:
        summary = import_features(
            cases,
            out,
            chosen,
            failures=failures,
            overwrite=overwrite,
            place=Place(workers),
            say=say,
            progress=progress,
        )
    finish(summary.to_dict(), [str(summary)], as_json=as_json, set_aside=len(summary.failures))


def _refuse_given(options: Mapping[str, object], what: str) -> None:
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"does not apply to {what}", param_hint=name)


def _required(out: Path | None) -> Path:
    if out is None:
        raise typer.BadParameter("is missing: where should the store go?", param_hint="--out")
    return out
