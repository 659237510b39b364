"""`esad-med view --files`: viewers as files in a screened folder, for browsers without a server."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.deep_zoom import DeepZoom
from esad_med.base.errors import CaseError, ConfigError, EsadError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.locks import hold_folder
from esad_med.base.runs import (
    Progress,
    Say,
    atomic_file,
    atomic_folder,
    digest_bytes,
    no_progress,
    read_json,
    write_json,
    write_text,
)
from esad_med.outputs.batch_index import write_batch_index
from esad_med.outputs.openseadragon import read_openseadragon
from esad_med.outputs.viewer_page import encode_heat, encode_tile
from pipelines.viewing import (
    INDEX,
    VIEWER,
    ScreenedFolder,
    SlideFacts,
    ViewSpec,
    make_batch,
    make_viewer,
)
from pipelines.viewing_slides import SlideFiles

_GIB = 1 << 30
_NOTE = "tiles.json"  # in the folder of tiles: which they are
_LOOK_EVERY = 100  # tiles between two looks at the disk


@dataclass
class WrittenViewers:
    """The outcome: which slides have a viewer now, and why others have none."""

    out: Path
    slides: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {"out": str(self.out), "slides": self.slides, "failures": self.failures}


def write_viewers(
    folder: ScreenedFolder,
    files: SlideFiles,
    spec: ViewSpec,
    *,
    say: Say,
    progress: Progress = no_progress,
) -> WrittenViewers:
    """Write ``CASE/viewer/`` for every slide, then the index; complete tiles are kept.

    `screen` replaces a slide's folder as a whole, so no viewer outlives its scores.

    Args:
        folder: what was screened.
        files: where the slides lie.
        spec: how they are shown.
        say: receives a line per slide.
        progress: called while tiles are cut.

    Raises:
        ConfigError: OpenSeadragon is not installed, the folder cannot be written, another run works
            in it, or its disk is nearly full.
    """
    library = read_openseadragon()
    outcome = WrittenViewers(folder.path)
    with hold_folder(folder.path):
        for name, data in library.items():
            _write_bytes(folder.path / name, data)
        for facts in folder.slides.values():
            try:
                _write_viewer(folder, facts, files, spec, progress)
            except ConfigError:
                raise  # the output folder, not the slide
            except EsadError as error:
                outcome.failures[facts.case_id] = str(error)
                say(f"{facts.case_id}: no viewer, {error}")
            else:
                outcome.slides.append(facts.case_id)
                say(f"{facts.case_id}: {facts.case_id}/{VIEWER}/{INDEX}")
        write_batch_index(folder.path / INDEX, make_batch(folder))
    return outcome


def _write_viewer(
    folder: ScreenedFolder,
    facts: SlideFacts,
    files: SlideFiles,
    spec: ViewSpec,
    progress: Progress,
) -> None:
    """The tiles, which take long, then the heat map, and the page last."""
    page, heat = make_viewer(folder, facts, spec)
    place = folder.file(facts.case_id, VIEWER)
    settings = spec.model_dump_json(include={"tile_px", "quality"})
    fingerprint = facts.provenance.get("Slide fingerprint", "")
    key = digest_bytes(settings.encode(), fingerprint.encode())
    if not _is_complete(place / "tiles", key):
        (place / INDEX).unlink(missing_ok=True)  # it speaks of other tiles
        zoom = files.open(facts, spec)
        with closing(zoom.slide), atomic_folder(place / "tiles") as tiles:
            label = f"cutting {facts.case_id}"
            for done, total in _write_tiles(tiles, zoom, spec):
                progress(label, done, total)
            write_json(tiles / _NOTE, {"key": key})
    _write_bytes(place / "heat.png", encode_heat(heat))
    write_text(place / INDEX, page)


def _is_complete(tiles: Path, key: str) -> bool:
    try:
        return bool(read_json(tiles / _NOTE, CaseError).get("key") == key)
    except CaseError:
        return False


def _write_tiles(folder: Path, zoom: DeepZoom, spec: ViewSpec) -> Iterator[tuple[int, int]]:
    """Cut every tile; how many are done, and how many there are."""
    levels = range(zoom.grid.first_level, len(zoom.grid.sizes))
    counts = [across * down for across, down in map(zoom.grid.counts, levels)]
    for level in levels:
        (folder / str(level)).mkdir()
    for done, (level, column, row) in enumerate(zoom.grid.addresses(), 1):
        raise_if_interrupted()
        if done % _LOOK_EVERY == 1:
            _leave_space(folder, spec)
        data = encode_tile(zoom.tile(level, column, row), quality=spec.quality)
        (folder / str(level) / f"{column}_{row}.jpg").write_bytes(data)
        yield done, sum(counts)


def _leave_space(folder: Path, spec: ViewSpec) -> None:
    free = shutil.disk_usage(folder).free / _GIB
    if free < spec.free_gib:
        raise ConfigError(
            f"{folder}: {free:.1f} GiB are free, expected {spec.free_gib:g} to be left (free_gib);"
            " free some space, or view the slides without --files"
        )


def _write_bytes(path: Path, data: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
