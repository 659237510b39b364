"""`esad-med view`: a screened folder in a browser, served on this computer or written as files."""

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from esad_med.cli.app import app, finish, say
from esad_med.cli.options import ConfigFile, Json, Set


@app.command("view")
def view(
    folder: Annotated[Path, typer.Argument(help="Folder that `screen` wrote (its --out).")],
    slides: Annotated[
        list[Path] | None,
        typer.Option("--slides", help="Folder that holds the slides' files; repeatable."),
    ] = None,
    files: Annotated[
        bool,
        typer.Option("--files", help="Write pages and tiles into DIR instead of serving them."),
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on 127.0.0.1; 0 any free one.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
    config: ConfigFile = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Look at screened slides: an index, and a deep-zoom page with the heat map for each."""
    from esad_med.base.config import load_config
    from esad_med.cli.progress import ProgressBar
    from pipelines.viewing import ScreenedFolder, ViewSpec
    from pipelines.viewing_files import write_viewers
    from pipelines.viewing_server import Site, serve_folder
    from pipelines.viewing_slides import SlideFiles

    spec = load_config(ViewSpec, config, settings or [])
    screened = ScreenedFolder.read(folder)
    found = SlideFiles(slides or [])
    if files:
        with ProgressBar() as progress:
            written = write_viewers(screened, found, spec, say=say, progress=progress)
        lines = [f"{len(written.slides)} viewers written; open {folder / 'index.html'}"]
        if written.failures:
            lines.append(f"{len(written.failures)} slides without a viewer")
        finish(written.to_dict(), lines, as_json=as_json, set_aside=len(written.failures))
        return

    def started(url: str) -> None:
        finish({"url": url, "slides": len(screened.slides)}, [url], as_json=as_json)
        say("served on this computer only, until Ctrl-C; research use only, not for diagnosis")
        if browser and _has_display():
            webbrowser.open(url)

    serve_folder(Site(screened, found, spec), port, started)


def _has_display() -> bool:
    """Whether a browser would open a window rather than take over the terminal."""
    wanted = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in {"darwin", "win32"} or any(os.environ.get(name) for name in wanted)
