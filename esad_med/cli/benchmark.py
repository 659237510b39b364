"""`esad-med benchmark`: the paper's experiments again, with its competitors."""

from pathlib import Path
from typing import Annotated

import typer

from esad_med.base.errors import ConfigError
from esad_med.cli.app import app, finish, say
from esad_med.cli.options import (
    ConfigFile,
    Json,
    Resources,
    Scheduler,
    Set,
    TrustScheduler,
    Workers,
    overrides,
)


@app.command("benchmark")
def benchmark(
    suite: Annotated[str, typer.Argument(help="odds, mnist, fmnist, cifar10, camelyon16 or nih.")],
    out: Annotated[Path, typer.Option(help="Folder for results and tables; goes on with it.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set; else below $ESAD_DATA.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="esad-paper, esad-recommended or a baseline; repeatable."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-9 or 0,1,5.")] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Such as 4 or fig5, instead of all; repeatable.")
    ] = None,
    runs: Annotated[
        str | None,
        typer.Option(help="2/3 is the second third of the grid; else part of a name, /seed=1/."),
    ] = None,
    workers: Workers = 0,
    scheduler: Scheduler = "",
    resources: Resources = None,
    trust_scheduler: TrustScheduler = False,
    width: Annotated[
        float | None, typer.Option(help="Of ESAD's image network; 1 is Table 6.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of every method.")] = None,
    members: Annotated[int | None, typer.Option(help="Of ESAD.")] = None,
    unfair_selection: Annotated[
        bool, typer.Option("--unfair-selection", help="Choose kernels' settings on test labels.")
    ] = False,
    leaking: Annotated[
        bool, typer.Option("--leaking", help="Let odds' test rows be training rows too.")
    ] = False,
    tsne: Annotated[
        bool,
        typer.Option("--tsne", help="Train ESAD and Deep SAD once more, and draw their codes."),
    ] = False,
    only_plan: Annotated[
        bool, typer.Option("--only-plan", help="Say how many runs, and how long they may take.")
    ] = False,
    config: ConfigFile = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Run the paper's benchmarks again: a table with our values beside its own."""
    from esad_med.base.config import load_config
    from esad_med.base.execution import Place
    from esad_med.cli.progress import ProgressBar
    from pipelines.paper.embedding import choose_run, write_tsne
    from pipelines.paper.settings import BenchmarkConfig
    from pipelines.paper.suite import plan_suite, run_suite, samples_folder

    if tsne and suite == "odds":
        raise typer.BadParameter("is for images, odds holds tables", param_hint="--tsne")
    flags = overrides(
        settings,
        suite=suite,
        methods=methods or None,
        seeds=None if seeds is None else parse_seeds(seeds),
        tables=[f"table{name}" if name.isdigit() else name for name in table or []] or None,
        width=width,
        epochs=epochs,
        members=members,
        unfair_selection=unfair_selection or None,
        leaking=leaking or None,
    )
    chosen = load_config(BenchmarkConfig, config, flags)
    where = Place.of(workers, scheduler, resources, trust_scheduler)
    plan = plan_suite(chosen, out, selection=runs, place=where)
    shown = choose_run(plan.runs) if tsne else None  # before hours, not after
    if only_plan:
        finish(plan.to_dict(), [str(plan)], as_json=as_json)
        return
    say(str(plan))
    with ProgressBar() as progress:
        summary = run_suite(plan, data, say=say, progress=progress)
    drawn = summary.figures
    if shown:
        folder = samples_folder(plan, data)
        drawn = [*drawn, *write_tsne(out, shown, chosen, folder, say=say)]
    lines = [*summary.tables.values(), f"results and tables in {out} (results.csv)"]
    if drawn:
        lines.append(f"figures: {', '.join(path.name for path in drawn)}")
    if summary.failures:
        lines.append(f"{len(summary.failures)} runs failed (failures.csv)")
    if summary.set_aside:
        lines.append(
            f"{summary.set_aside} pictures or list entries set aside (stores/*/failures.csv)"
        )
    facts = {**summary.to_dict(), "figures": [path.name for path in drawn]}
    set_aside = len(summary.failures) + summary.set_aside
    finish(facts, lines, as_json=as_json, set_aside=set_aside)


def parse_seeds(text: str) -> list[int]:
    """Seeds from text such as "0-9", "200-209" or "0,1,5".

    Raises:
        ConfigError: anything else, or a range that falls.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or part.strip().endswith("-"):
            raise ConfigError(f"--seeds {text}: expected numbers and ranges, such as 0-9 or 0,1,5")
        if int(last or first) < int(first):
            raise ConfigError(f"--seeds {text}: {part.strip()} falls; write {last}-{first}")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))
