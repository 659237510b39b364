"""Tiling one slide: its tiles, rows and pictures, in this process or for it in another one."""

import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from data_prep.features import ENCODER, PREPARATION
from data_prep.slides import Slide
from data_prep.stain import StainTarget
from data_prep.tiles import TileBatch, TileGrid
from data_prep.tissue import TissueMask
from esad_med.base.cases import Case
from esad_med.base.errors import ConfigError, EsadError
from esad_med.base.execution import report
from esad_med.base.limits import Limits
from esad_med.base.runs import Failure, ensure_folder
from esad_med.base.store_writing import SamplePart
from esad_med.base.timing import Stages
from esad_med.method.encoder import Encoder
from esad_med.outputs.exchange import coordinate_attributes, write_coordinates_h5
from esad_med.outputs.feature_files import FeatureWriter
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

#: Where workers leave the samples of slides, in the folder of an unfinished store.
PARTS = ".parts"


@dataclass(frozen=True)
class SlideSummary:
    """What tiling found in one slide; the line it prints and its entry in ``store.json``."""

    case_id: str
    fingerprint: str
    mpp_level0: float | None
    mpp: float
    level: int | None
    tiles: int
    tumor_tiles: int | None
    unreadable: int
    tissue_share: float | None

    def __str__(self) -> str:
        known = self.tumor_tiles is not None
        tumor = f"{self.tumor_tiles} of them tumor" if known else "not known which are tumor"
        lost = f", {self.unreadable} unreadable" if self.unreadable else ""
        text = f"{self.case_id}: {self.tiles} tiles at {self.mpp:.3f} µm/px, {tumor}{lost}"
        if self.tissue_share is None:
            return text
        return f"{text}; {self.tissue_share:.0%} of the slide is tissue"


@dataclass(frozen=True)
class TiledSlide:
    """A slide whose tiles are written.

    Attributes:
        summary: what was found.
        stain: its stain as plain values.
        lost: tiles that could not be read.
        seconds: by stage; empty of a slide that an earlier run tiled.
        rows: of the tiles that were, where they are not in the store yet.
    """

    summary: SlideSummary
    stain: dict[str, Any]
    lost: list[Failure]
    seconds: dict[str, float] = field(default_factory=dict)
    rows: pd.DataFrame | None = None


def facts_of(outcome: TiledSlide | Failure) -> dict[str, Any]:
    """What is to be known of a slide when its store is gone on with, as JSON values."""
    if isinstance(outcome, Failure):
        return {"failure": asdict(outcome)}
    lost = [asdict(failure) for failure in outcome.lost]
    return {"summary": asdict(outcome.summary), "stain": outcome.stain, "lost": lost}


def outcome_of(facts: Mapping[str, Any]) -> TiledSlide | Failure:
    """The outcome that `facts_of` made the facts of."""
    if "failure" in facts:
        return Failure(**facts["failure"])
    lost = [Failure(**values) for values in facts["lost"]]
    return TiledSlide(SlideSummary(**facts["summary"]), facts["stain"], lost)


class Sink(Protocol):
    """Where tiles and their rows go: the writer of a store, or a part on its way there."""

    def append(self, samples: npt.NDArray[Any], rows: pd.DataFrame) -> None:
        """Add samples and their rows, in order."""


class CaseTiler(ABC):
    """How the samples of a case get into a store, in this process or by way of a part.

    Attributes:
        folder: where the store is made.
        run: of whose parts; a cluster's worker may be at work yet for one that was killed.
    """

    folder: Path
    run: str

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """Of what is opened, and of time and memory."""

    @abstractmethod
    def tile(self, case: Case, sink: Sink) -> TiledSlide | Failure:
        """Put a case's samples into a sink; a bad case is a failure, and its sink's affair.

        Raises:
            ConfigError: something cannot be written.
        """

    def tile_part(self, case: Case) -> TiledSlide | Failure:
        """`tile` in a worker: the samples wait in `part_path`, the rows come with the result."""
        with SamplePart(self.part_path(case)) as part:
            tiled = self.tile(case, part)
        return tiled if isinstance(tiled, Failure) else replace(tiled, rows=part.rows())

    def part_path(self, case: Case) -> Path:
        """Where a worker leaves a case's samples."""
        return self.folder / PARTS / self.run / case.case_id

    def remove(self, case: Case) -> None:
        """Take back the files of a case that was set aside."""
        self.part_path(case).unlink(missing_ok=True)


@dataclass(frozen=True)
class SlideTiler(CaseTiler):
    """How slides are tiled; picklable, so that workers can.

    Attributes:
        config: tissue, grid, stain and label settings.
        target: the stain that all slides are normalized to.
        folder: where the store is made; gets ``quality/``, ``tiles/``, ``coordinates/``
            and ``features/``.
        png: also write every tile as a picture.
        coordinates: also write the coordinates as HDF5.
        encoder: makes embeddings of the tiles, which are stored instead.
        features: also write those as HDF5.
        run: of whose parts; a cluster's worker may be at work yet for one that was killed.
    """

    config: PathologyConfig
    target: StainTarget
    folder: Path
    png: bool
    coordinates: bool
    encoder: Encoder | None = None
    features: bool = False
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def limits(self) -> Limits:
        """Of what is opened, and of time and memory."""
        return self.config.limits

    def tile(self, case: Case, sink: Sink) -> TiledSlide | Failure:
        """Tile one slide into a sink; a slide that is bad is a failure, and its sink's affair.

        Raises:
            ConfigError: something cannot be written.
        """
        try:
            with open_case(case, self.config.limits) as slide:
                return self._tile_open(case, slide, sink)
        except ConfigError:
            raise
        except EsadError as error:
            return Failure.of(case.case_id, "tile", error)

    def _tile_open(self, case: Case, slide: Slide, sink: Sink) -> TiledSlide:
        stages = Stages()
        annotation = case_annotation(case, slide)
        with stages.measure("prepare"):
            prepared = prepare_slide(slide, self.config)
        grid = prepared.grid
        fractions = tumor_fractions(case, annotation, grid)
        share, truth = label_tiles(case, fractions, len(grid), self.config)
        rows = tile_rows(case, grid, share, truth)
        lost = LostTiles(case.case_id, grid)
        read: list[npt.NDArray[np.int64]] = []
        done = 0
        batches = normalized_tiles(prepared, self.config.stain, self.target, lost)
        with self._feature_writer(case, prepared) as features:
            for batch in stages.timed("read", batches):
                samples = self._samples(batch, stages)
                with stages.measure("write"):
                    sink.append(samples, _rows_at(rows, batch.indices))
                    if features:
                        features.append(samples, grid.xy_level0[batch.indices])
                    if self.png:
                        _write_pngs(self.folder / "tiles" / case.case_id, grid, batch)
                read.append(batch.indices)
                done += len(batch.indices)
                report(f"tiling {case.case_id}", done + len(lost.failures), len(grid))
        kept = truth.iloc[np.concatenate(read)]
        tissue, unreadable = prepared.tissue, len(lost.failures)
        found = summarize(case, slide, tissue, grid, kept, unreadable=unreadable)
        with stages.measure("draw"):
            self._write_pictures(case, prepared, None if truth.isna().any() else truth, str(found))
        return TiledSlide(found, prepared.stain.to_dict(), lost.failures, stages.seconds)

    def _samples(self, batch: TileBatch, stages: Stages) -> npt.NDArray[Any]:
        if self.encoder is None:
            return batch.tiles
        with stages.measure("encode"):
            return self.encoder(batch.tiles)

    def remove(self, case: Case) -> None:
        """Take back the files of a slide that was set aside."""
        shutil.rmtree(self.folder / "tiles" / case.case_id, ignore_errors=True)
        (self.folder / "quality" / f"{case.case_id}.png").unlink(missing_ok=True)
        for name in ("coordinates", "features"):
            (self.folder / name / f"{case.case_id}.h5").unlink(missing_ok=True)
        super().remove(case)

    def _write_pictures(
        self, case: Case, prepared: PreparedSlide, truth: pd.Series | None, caption: str
    ) -> None:
        grid, tissue = prepared.grid, prepared.tissue
        write_tiling_picture(
            ensure_folder(self.folder / "quality") / f"{case.case_id}.png",
            tissue.thumbnail,
            mask=tissue.mask,
            xy_level0=grid.xy_level0,
            edge_level0=grid.edge_level0,
            downsample=tissue.downsample,
            tumor=None if truth is None else truth.to_numpy(dtype=bool),
            title=case.case_id,
            caption=caption,
        )
        if self.coordinates:
            write_coordinates_h5(
                ensure_folder(self.folder / "coordinates") / f"{case.case_id}.h5",
                grid.xy_level0,
                **_frame(case, prepared),
            )

    def _feature_writer(
        self, case: Case, prepared: PreparedSlide
    ) -> AbstractContextManager[FeatureWriter | None]:
        if not (self.features and self.encoder):
            return nullcontext()
        return FeatureWriter(
            ensure_folder(self.folder / "features") / f"{case.case_id}.h5",
            dim=self.encoder.dim,
            attributes=coordinate_attributes(**_frame(case, prepared)),
            facts={
                ENCODER: self.encoder.identity.model_dump(mode="json"),
                PREPARATION: preparation(self.config, self.target),
            },
        )


def _frame(case: Case, prepared: PreparedSlide) -> dict[str, Any]:
    """Where a slide's tiles lie, for `coordinate_attributes`."""
    grid = prepared.grid
    return {
        "patch_size": grid.read_px,
        "patch_level": grid.level,
        "patch_size_level0": grid.edge_level0,
        "slide_size": grid.slide_size,
        "level_size": prepared.slide.level_sizes[grid.level],
        "slide_mpp": prepared.slide.mpp,
        "name": case.case_id,
        "tile_px": grid.tile_px,
    }


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


def tile_rows(case: Case, grid: TileGrid, share: pd.Series, truth: pd.Series) -> pd.DataFrame:
    """The rows of a slide's tiles in a store."""
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


def _rows_at(rows: pd.DataFrame, indices: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Rows by their place, ascending; a slice where none is left out, which copies nothing."""
    first, last = int(indices[0]), int(indices[-1])
    return rows.iloc[first : last + 1] if last - first < len(indices) else rows.iloc[indices]


def summarize(
    case: Case,
    slide: Slide,
    tissue: TissueMask,
    grid: TileGrid,
    truth: pd.Series | None,
    *,
    unreadable: int,
) -> SlideSummary:
    """What the summary of a slide says, planned or tiled."""
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


def _write_pngs(folder: Path, grid: TileGrid, batch: TileBatch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for tile, (x, y) in zip(batch.tiles, grid.xy_level0[batch.indices].tolist(), strict=True):
        Image.fromarray(tile).save(folder / f"{x}_{y}.png")
