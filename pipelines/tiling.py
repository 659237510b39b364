"""`esad-med tile`: slides become a SampleStore, with a picture of the grid per slide."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from data_prep.slide_header import fingerprint_file
from data_prep.slides import Slide
from data_prep.stain import StainTarget
from data_prep.tiles import TileGrid, plan_tiles
from data_prep.tissue import TissueMask, find_tissue
from esad_med.base.cases import Case, read_table
from esad_med.base.errors import CaseError, ConfigError, EsadError, StoreError
from esad_med.base.runs import (
    Failure,
    Progress,
    Say,
    digest_bytes,
    digest_file,
    ensure_folder,
    no_progress,
    write_failures,
)
from esad_med.base.store import SampleStore, StoreWriter, open_if_store, refuse_other_folder
from esad_med.outputs.exchange import write_coordinates_h5
from esad_med.outputs.quality import write_tiling_picture
from pipelines.pathology import (
    LostTiles,
    PathologyConfig,
    PreparedSlide,
    case_annotation,
    normalized_tiles,
    open_case,
    preparation,
    prepare_slide,
    tumor_fractions,
)


@dataclass(frozen=True)
class SlideSummary:
    """What tiling found in one slide; the line it prints and its entry in ``store.json``."""

    case_id: str
    fingerprint: str
    mpp_level0: float
    mpp: float
    level: int
    tiles: int
    tumor_tiles: int | None
    unreadable: int
    tissue_share: float

    def __str__(self) -> str:
        known = self.tumor_tiles is not None
        tumor = f"{self.tumor_tiles} of them tumor" if known else "not known which are tumor"
        lost = f", {self.unreadable} unreadable" if self.unreadable else ""
        return (
            f"{self.case_id}: {self.tiles} tiles at {self.mpp:.3f} µm/px, {tumor}{lost};"
            f" {self.tissue_share:.0%} of the slide is tissue"
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
            with open_case(case) as slide:
                annotation = case_annotation(case, slide)
                tissue = find_tissue(slide, config.tissue)
                grid = plan_tiles(slide, tissue, config.tiles)
                fractions = tumor_fractions(case, annotation, grid)
                _, truth = label_tiles(case, fractions, len(grid), config)
                summary.slides.append(_summarize(case, slide, tissue, grid, truth, unreadable=0))
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
    say: Say,
    progress: Progress = no_progress,
) -> TilingSummary:
    """Tile slides into one SampleStore; bad slides and tiles are set aside, the others go on.

    Args:
        cases: the slides; their order is the order of the rows.
        out: the store's folder.
        config: tissue, grid, stain and label settings.
        target: the stain that all slides are normalized to.
        png: also write every tile as ``tiles/CASE/X_Y.png``.
        coordinates: also write ``coordinates/CASE.h5`` as CLAM and TRIDENT do.
        overwrite: replace a store that was made with other slides or settings.
        say: receives one line per slide.
        progress: called while tiles are read.

    Raises:
        ConfigError: ``out`` holds something else or cannot be written.
        StoreError: ``out`` holds a damaged store.
    """
    request = _request_digest(cases, config, target, extras=(png, coordinates))
    refuse_other_folder(out)
    existing = None if overwrite else open_if_store(out)
    if existing is not None:
        if existing.contract.get("request") != request:
            raise ConfigError(
                f"{out}: holds a store of other slides or settings; choose another --out, or pass"
                " --overwrite"
            )
        return _reuse(out, existing)

    summary = TilingSummary(out)
    run = _TilingRun(config, target, png, coordinates, summary, say, progress)
    try:
        size = config.tiles.size_px
        with StoreWriter(out, sample_shape=(size, size, 3), dtype="uint8") as writer:
            for case in cases:
                run.tile(case, writer)
            if not summary.slides:
                raise _NothingLeftError
            writer.contract.update(
                kind="tiles",
                modality="histology",
                value_range=[0, 255],
                mpp=config.tiles.mpp,
                preparation=preparation(config, target),
                labels=config.labels.model_dump(mode="json"),
                slides=[asdict(slide) for slide in summary.slides],
                stains=run.stains,
                request=request,
            )
            write_failures(writer.folder / "failures.csv", summary.failures)
    except _NothingLeftError:
        if not (out / "store.json").exists():  # an older store keeps its own
            write_failures(ensure_folder(out) / "failures.csv", summary.failures)
    return summary


def _reuse(out: Path, store: SampleStore) -> TilingSummary:
    """What the run that made a complete store found, so that both end alike."""
    store.verify()
    try:
        slides = [SlideSummary(**value) for value in store.contract["slides"]]
        rows = read_table(out / "failures.csv").to_dict("records")
        failures = [Failure(**{str(k): str(v) for k, v in row.items()}) for row in rows]
    except (CaseError, KeyError, TypeError) as error:
        raise StoreError(
            f"{out}: store.json or failures.csv was edited or damaged ({error}); pass --overwrite"
        ) from error
    return TilingSummary(out, slides, failures, reused=True)


def label_tiles(
    case: Case,
    fractions: npt.NDArray[np.float32] | None,
    count: int,
    config: PathologyConfig,
) -> tuple[pd.Series, pd.Series]:
    """Tumor fraction and truth per tile.

    Without an annotation a normal slide's tiles are normal (0), those of any other are unknown:
    a tumor slide holds both kinds.

    Returns:
        tumor_fraction (count,) Float32 and truth (count,) Int8, both missing where unknown.
    """
    if fractions is not None:
        truth = pd.Series(fractions >= config.labels.truth_threshold).astype("Int8")
        return pd.Series(fractions).astype("Float32"), truth
    known = case.truth == 0
    truth = pd.Series([0 if known else pd.NA] * count, dtype="Int8")
    return pd.Series([0.0 if known else pd.NA] * count, dtype="Float32"), truth


class _NothingLeftError(Exception):
    """Every slide was set aside: there is no store to write."""


@dataclass
class _TilingRun:
    config: PathologyConfig
    target: StainTarget
    png: bool
    coordinates: bool
    summary: TilingSummary
    say: Say
    progress: Progress
    stains: dict[str, Any] = field(default_factory=dict)

    def tile(self, case: Case, writer: StoreWriter) -> None:
        """Tile one slide, or set it aside and take back what it had written."""
        mark = writer.count
        try:
            with open_case(case) as slide:
                self._tile_open(case, slide, writer)
        except EsadError as error:
            if isinstance(error, ConfigError):
                raise
            writer.rollback(mark)
            shutil.rmtree(writer.folder / "tiles" / case.case_id, ignore_errors=True)
            _set_aside(self.summary, Failure.of(case.case_id, "tile", error), self.say)

    def _tile_open(self, case: Case, slide: Slide, writer: StoreWriter) -> None:
        annotation = case_annotation(case, slide)
        prepared = prepare_slide(slide, self.config)
        grid = prepared.grid
        fractions = tumor_fractions(case, annotation, grid)
        share, truth = label_tiles(case, fractions, len(grid), self.config)
        rows = _rows(case, grid, share, truth)
        lost = LostTiles(case.case_id, grid)
        read: list[npt.NDArray[np.int64]] = []
        start = writer.count
        for batch in normalized_tiles(prepared, self.config.stain, self.target, lost):
            writer.append(batch.tiles, rows.iloc[batch.indices])
            read.append(batch.indices)
            if self.png:
                _write_pngs(writer.folder / "tiles" / case.case_id, batch.tiles, grid, batch)
            self.progress(
                f"tiling {case.case_id}", writer.count - start + len(lost.failures), len(grid)
            )
        self.summary.failures += lost.failures
        self.stains[case.case_id] = prepared.stain.to_dict()
        kept = truth.iloc[np.concatenate(read)]
        found = _summarize(case, slide, prepared.tissue, grid, kept, unreadable=len(lost.failures))
        self.summary.slides.append(found)
        self._write_pictures(writer.folder, case, prepared, None if truth.isna().any() else truth)
        self.say(str(found))

    def _write_pictures(
        self, folder: Path, case: Case, prepared: PreparedSlide, truth: pd.Series | None
    ) -> None:
        grid, tissue = prepared.grid, prepared.tissue
        write_tiling_picture(
            ensure_folder(folder / "quality") / f"{case.case_id}.png",
            tissue.thumbnail,
            mask=tissue.mask,
            xy_level0=grid.xy_level0,
            edge_level0=grid.edge_level0,
            downsample=tissue.downsample,
            tumor=None if truth is None else truth.to_numpy(dtype=bool),
            title=case.case_id,
            caption=str(self.summary.slides[-1]),
        )
        if self.coordinates:
            write_coordinates_h5(
                ensure_folder(folder / "coordinates") / f"{case.case_id}.h5",
                grid.xy_level0,
                patch_size=grid.read_px,
                patch_level=grid.level,
                patch_size_level0=grid.edge_level0,
                slide_size=grid.slide_size,
                level_size=prepared.slide.level_sizes[grid.level],
                slide_mpp=prepared.slide.mpp,
                name=case.case_id,
                tile_px=grid.tile_px,
            )


def _rows(case: Case, grid: TileGrid, share: pd.Series, truth: pd.Series) -> pd.DataFrame:
    x, y = grid.xy_level0.T
    labeled = (truth == 1).fillna(False) & (case.split != "test")
    return pd.DataFrame(
        {
            "sample_id": [f"{case.case_id}_{a}_{b}" for a, b in grid.xy_level0.tolist()],
            "case_id": case.case_id,
            "patient_id": case.patient_id,
            "split": case.split,
            "semi_label": np.where(labeled, -1, 1),
            "truth": truth,
            "x_level0": x,
            "y_level0": y,
            "tissue_fraction": grid.tissue_fraction.round(4),
            "tumor_fraction": share.round(4),
        }
    )


def _summarize(
    case: Case,
    slide: Slide,
    tissue: TissueMask,
    grid: TileGrid,
    truth: pd.Series | None,
    *,
    unreadable: int,
) -> SlideSummary:
    known = truth is not None and not truth.isna().any()
    return SlideSummary(
        case_id=case.case_id,
        fingerprint=slide.fingerprint,
        mpp_level0=round(slide.mpp, 6),
        mpp=round(grid.mpp, 6),
        level=grid.level,
        tiles=len(grid) - unreadable,
        tumor_tiles=int((truth == 1).sum()) if known and truth is not None else None,
        unreadable=unreadable,
        tissue_share=round(float(tissue.mask.mean()), 4),
    )


def _write_pngs(folder: Path, tiles: npt.NDArray[np.uint8], grid: TileGrid, batch: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for tile, (x, y) in zip(tiles, grid.xy_level0[batch.indices].tolist(), strict=True):
        Image.fromarray(tile).save(folder / f"{x}_{y}.png")


def _set_aside(summary: TilingSummary, failure: Failure, say: Say) -> None:
    summary.failures.append(failure)
    say(f"{failure.case_id}: set aside, {failure.message}")


def _request_digest(
    cases: Sequence[Case], config: PathologyConfig, target: StainTarget, *, extras: Sequence[bool]
) -> str:
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
    settings = [preparation(config, target), config.labels.model_dump(mode="json"), extras]
    return digest_bytes(json.dumps([slides, settings], sort_keys=True).encode())


def identity(path: Path | None, digest: Callable[[Path], str]) -> str:
    """The digest of a file, empty where it cannot be read: that case is set aside when opened."""
    try:
        return digest(path) if path and path.is_file() else ""
    except OSError:
        return ""
