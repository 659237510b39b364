"""`esad-med tile`: slides become a SampleStore, with a picture of the grid per slide."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.slide_header import fingerprint_file
from data_prep.stain import StainTarget
from data_prep.tiles import plan_tiles
from data_prep.tissue import find_tissue
from esad_med.base.cases import Case
from esad_med.base.errors import CaseError, ConfigError, EsadError, StoreError
from esad_med.base.execution import HERE, Place, in_order, open_executor
from esad_med.base.limits import Limits
from esad_med.base.locks import sweep_folder
from esad_med.base.runs import (
    Failure,
    Progress,
    Say,
    digest_bytes,
    digest_file,
    ensure_folder,
    no_progress,
    versions,
    write_failures,
    write_json,
)
from esad_med.base.store import SampleStore, open_if_store, read_failures, refuse_other_folder
from esad_med.base.store_writing import StoreWriter
from esad_med.base.timing import RunClock
from esad_med.method.encoder import Encoder
from pipelines.embedding import embedding_facts, sample_form
from pipelines.pathology import (
    PathologyConfig,
    case_annotation,
    open_case,
    preparation,
    tumor_fractions,
)
from pipelines.tiling_slide import (
    PARTS,
    CaseTiler,
    SlideSummary,
    SlideTiler,
    TiledSlide,
    facts_of,
    label_tiles,
    outcome_of,
    summarize,
)


@dataclass
class TilingSummary:
    """The outcome of a tiling run."""

    out: Path
    slides: list[SlideSummary] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    reused: bool = False

    def __str__(self) -> str:
        tiles = sum(slide.tiles for slide in self.slides)
        if not self.slides and self.out != Path():
            return f"no slide could be tiled, all were set aside; {self.out}/failures.csv says why"
        text = f"{tiles} tiles of {len(self.slides)} slides"
        if self.failures:
            text += f"; {len(self.failures)} slides or tiles set aside"
            text += "" if self.out == Path() else " (failures.csv)"
        if self.reused:
            text += "; complete already"
        if self.out == Path():
            return f"{text}; nothing was written, and whether stains can be fitted was not tried"
        return f"{text}, in {self.out}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "out": str(self.out),
            "reused": self.reused,
            "tiles": sum(slide.tiles for slide in self.slides),
            "slides": [asdict(slide) for slide in self.slides],
            "failures": [asdict(failure) for failure in self.failures],
        }


def plan_slides(cases: Sequence[Case], config: PathologyConfig, *, say: Say) -> TilingSummary:
    """The dry run: open, find tissue, count tiles; read and write nothing."""
    summary = TilingSummary(out=Path())
    for case in cases:
        try:
            with open_case(case, config.limits) as slide:
                annotation = case_annotation(case, slide)
                tissue = find_tissue(slide, config.tissue)
                grid = plan_tiles(slide, tissue, config.tiles)
                fractions = tumor_fractions(case, annotation, grid)
                _, truth = label_tiles(case, fractions, len(grid), config)
                summary.slides.append(summarize(case, slide, tissue, grid, truth, unreadable=0))
            say(str(summary.slides[-1]))
        except EsadError as error:
            _set_aside(summary, Failure.of(case.case_id, "plan", error), say)
    return summary


def tile_slides(
    cases: Sequence[Case],
    out: Path,
    config: PathologyConfig,
    *,
    target: StainTarget,
    png: bool = False,
    coordinates: bool = False,
    overwrite: bool = False,
    encoder: Encoder | None = None,
    features: bool = False,
    place: Place = HERE,
    say: Say,
    progress: Progress = no_progress,
) -> TilingSummary:
    """Tile slides into one SampleStore; bad slides and tiles are set aside, the others go on.

    A run that was killed is gone on with by the same request: finished slides are kept beside
    ``out`` until it is complete.

    Args:
        cases: the slides; their order is the order of the rows.
        out: the store's folder.
        config: tissue, grid, stain and label settings.
        target: the stain that all slides are normalized to.
        png: also write every tile as ``tiles/CASE/X_Y.png``.
        coordinates: also write ``coordinates/CASE.h5`` as CLAM and TRIDENT do.
        overwrite: replace a store that was made with other slides or settings.
        encoder: store embeddings of the tiles instead of their pixels.
        features: with an encoder, also write them as ``features/CASE.h5``, as TRIDENT does.
        place: where slides are tiled; the store has the same bytes everywhere.
        say: receives one line per slide.
        progress: called while tiles are read; with several workers, after each slide.

    Raises:
        ConfigError: ``out`` holds something else or cannot be written, another run makes it, or the
            place cannot be used.
        StoreError: ``out`` holds a damaged store.
    """
    extras: tuple[object, ...] = (png, coordinates)
    if encoder is not None:
        extras += (encoder.identity.digest, features)
    size = config.tiles.size_px
    plan = StorePlan(
        command="tile",
        request=request_digest(
            cases,
            [preparation(config, target), config.labels.model_dump(mode="json"), extras],
        ),
        limits=config.limits,
        **sample_form((size, size, 3), encoder),
        contract={
            "kind": "tiles",
            "modality": "histology",
            "value_range": [0, 255],
            "mpp": config.tiles.mpp,
            "preparation": preparation(config, target),
            "labels": config.labels.model_dump(mode="json"),
            **embedding_facts(encoder.identity if encoder else None),
        },
    )

    def tiler(folder: Path) -> SlideTiler:
        return SlideTiler(config, target, folder, png, coordinates, encoder, features)

    return fill_store(
        cases, out, plan, tiler, overwrite=overwrite, place=place, say=say, progress=progress
    )


@dataclass(frozen=True)
class StorePlan:
    """A store that is to be made of slides.

    Attributes:
        command: that makes it.
        request: digest of what was asked for.
        limits: not of the store, but of what is gone on with: others set other slides aside.
        sample_shape: of a sample.
        dtype: of the samples.
        contract: for ``store.json``; slides, stains and the request come to it.
        failures: of slides that cannot be tried at all.
    """

    command: str
    request: str
    limits: Limits
    sample_shape: tuple[int, ...]
    dtype: str
    contract: Mapping[str, Any]
    failures: tuple[Failure, ...] = ()


def fill_store(
    cases: Sequence[Case],
    out: Path,
    plan: StorePlan,
    tiler_for: Callable[[Path], CaseTiler],
    *,
    overwrite: bool,
    place: Place,
    say: Say,
    progress: Progress,
) -> TilingSummary:
    """Make a store of slides, or find it complete; see `tile_slides`.

    Args:
        cases: the slides; their order is the order of the rows.
        out: the store's folder.
        plan: what is made.
        tiler_for: gives what puts a slide into the store that is made in a folder.
        overwrite: replace a store that was made by another request.
        place: where slides are worked on.
        say: receives one line per slide.
        progress: called meanwhile.
    """
    refuse_other_folder(out)
    existing = None if overwrite else open_if_store(out)
    if existing is not None:
        if existing.contract.get("request") != plan.request:
            raise ConfigError(
                f"{out}: holds a store of other slides or settings; choose another --out, or pass"
                " --overwrite"
            )
        return _reuse(out, existing)

    summary, clock = TilingSummary(out), RunClock()
    for failure in plan.failures:
        _set_aside(summary, failure, say)
    stains: dict[str, Any] = {}
    asked = plan.request + plan.limits.model_dump_json()
    try:
        with StoreWriter(
            out, sample_shape=plan.sample_shape, dtype=plan.dtype, request=asked
        ) as writer:
            tiler = tiler_for(writer.folder)
            for case, tiled in _tile_each(cases, tiler, writer, place, progress):
                if isinstance(tiled, Failure):
                    _set_aside(summary, tiled, say)
                    continue
                summary.slides.append(tiled.summary)
                summary.failures += tiled.lost
                if tiled.stain:
                    stains[case.case_id] = tiled.stain
                _count(clock, tiled)
                say(str(tiled.summary))
            if not summary.slides:
                writer.abandon()
                raise _NothingLeftError
            writer.contract.update(
                plan.contract,
                slides=[asdict(slide) for slide in summary.slides],
                stains=stains,
                request=plan.request,
            )
            write_failures(writer.folder / "failures.csv", summary.failures)
            clock.counts["slides set aside"] = len(cases) - len(summary.slides)
            facts = {"command": plan.command, "request": plan.request, "versions": versions()}
            write_json(writer.folder / "run.json", {**facts, **clock.to_dict()})
    except _NothingLeftError:
        if not (out / "store.json").exists():  # an older store keeps its own
            write_failures(ensure_folder(out) / "failures.csv", summary.failures)
    return summary


def _count(clock: RunClock, tiled: TiledSlide) -> None:
    clock.stages.add(tiled.seconds)
    clock.counts["slides tiled" if tiled.seconds else "slides kept"] += 1
    clock.counts["tiles stored"] += tiled.summary.tiles
    clock.counts["tiles set aside"] += tiled.summary.unreadable


def _tile_each(
    cases: Sequence[Case],
    tiler: CaseTiler,
    writer: StoreWriter,
    place: Place,
    progress: Progress,
) -> Iterator[tuple[Case, TiledSlide | Failure]]:
    """Tile slides into a store; what one left that is then set aside is taken back."""
    known = [writer.recorded(case.case_id) for case in cases]
    done = next((index for index, facts in enumerate(known) if facts is None), len(cases))
    for case, facts in zip(cases[:done], known, strict=False):
        yield case, outcome_of(facts or {})
    shutil.rmtree(tiler.folder / PARTS, ignore_errors=True)
    for case in cases[done:]:
        tiler.remove(case)

    def here(case: Case) -> TiledSlide | Failure:
        return tiler.tile(case, writer)

    work = here if place == HERE else tiler.tile_part
    with open_executor(place, progress=progress, shared=tiler.folder) as executor:
        tiled = in_order(executor, work, cases[done:], ahead=place.ahead, limits=tiler.limits)
        mark = writer.count
        for count, (case, outcome) in enumerate(tiled, done + 1):
            if isinstance(outcome, CaseError):
                outcome = Failure.of(case.case_id, "tile", outcome)
            if isinstance(outcome, Failure):
                writer.rollback(mark)
                tiler.remove(case)
            elif outcome.rows is not None:
                writer.append_part(tiler.part_path(case), outcome.rows)
            if place.silent:
                progress("tiling", count, len(cases))
            mark = writer.count
            writer.record(case.case_id, facts_of(outcome))
            yield case, outcome
    shutil.rmtree(tiler.folder / PARTS, ignore_errors=True)
    sweep_folder(tiler.folder)  # what killed workers left


def _reuse(out: Path, store: SampleStore) -> TilingSummary:
    """What the run that made a complete store found, so that both end alike."""
    store.verify()
    try:
        slides = [SlideSummary(**value) for value in store.contract["slides"]]
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{out}: store.json was edited or damaged ({error}); pass --overwrite"
        ) from error
    return TilingSummary(out, slides, read_failures(out), reused=True)


class _NothingLeftError(Exception):
    """Every slide was set aside: there is no store to write."""


def _set_aside(summary: TilingSummary, failure: Failure, say: Say) -> None:
    summary.failures.append(failure)
    say(f"{failure.case_id}: set aside, {failure.message}")


def request_digest(cases: Sequence[Case], settings: Sequence[object]) -> str:
    """What was asked for: equal requests over unchanged files give the same store."""
    slides = [
        (
            case.case_id,
            case.patient_id,
            case.split,
            case.truth,
            case.mpp,
            case.mpp_otherwise,
            identity(case.annotation, digest_file),
            identity(case.path, fingerprint_file),
        )
        for case in cases
    ]
    return digest_bytes(json.dumps([slides, settings], sort_keys=True).encode())


def identity(path: Path | None, digest: Callable[[Path], str]) -> str:
    """The digest of a file, empty where it cannot be read: that case is set aside when opened."""
    try:
        return digest(path) if path and path.is_file() else ""
    except OSError:
        return ""
