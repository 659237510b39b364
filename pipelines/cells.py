"""`esad-med tile --protocol dpa`: the published Camelyon16 cells become a SampleStore."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from data_prep.color import Bytes
from data_prep.public import (
    CELL_PX,
    DPA_TARGET,
    TILE_PX,
    DpaCell,
    center_crop,
    dpa_cells,
    dpa_target,
    find_camelyon_slide,
    random_crops,
    read_dpa_list,
)
from data_prep.slides import Slide, open_slide
from data_prep.stain import StainSpec, StainTarget
from data_prep.tiles import TileSpec
from data_prep.tissue import TissueSpec, find_tissue
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError, ConfigError, EsadError
from esad_med.base.limits import Limits
from esad_med.base.runs import Failure, Progress, Say, ensure_folder, no_progress, write_failures
from esad_med.base.store import open_if_store, refuse_other_folder
from esad_med.base.store_writing import StoreWriter
from esad_med.outputs.quality import write_tiling_picture
from pipelines.pathology import PathologyConfig, preparation

_DOWNSAMPLE = 4  # of the cells' pixels at 10x over level 0


class CellConfig(Spec):
    """How the published cells become samples."""

    stain: StainSpec = StainSpec()
    stain_by: Literal["cell", "slide"] = Field(
        "cell", description="One stain matrix per cell, as DPA does it, or per slide."
    )
    crops_per_cell: int = Field(
        4, ge=1, description="Random 64-pixel crops of each training cell; the test takes the"
        " central one. DPA draws them anew in each epoch."
    )  # fmt: skip
    slide_mpp: float | None = Field(
        None, gt=0, description="Level-0 µm per pixel for slides that do not say it."
    )
    seed: int = Field(0, ge=0, description="Decides the random crops.")
    limits: Limits = Limits()


@dataclass
class CellSummary:
    """The outcome of a run over published cells."""

    out: Path
    cells: int = 0
    samples: int = 0
    failures: list[Failure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "out": str(self.out)}

    def __str__(self) -> str:
        lost = f"; {len(self.failures)} cells set aside (failures.csv)" if self.failures else ""
        return f"{self.samples} samples of {self.cells} published cells{lost}, in {self.out}"


def tile_cells(
    root: Path,
    lists: Sequence[Path],
    out: Path,
    config: CellConfig,
    *,
    target: StainTarget | None,
    overwrite: bool = False,
    say: Say,
    progress: Progress = no_progress,
) -> CellSummary:
    """Read, normalize, scale and crop published cells, as method and paper's protocol say.

    Cells of slides called ``test_...`` get split "test", all others "train"; tumor cells of the
    training slides are the labeled outliers.

    Args:
        root: the folder with Camelyon16's ``training/`` and ``testing/``, or with its slides.
        lists: files of DPA's cell names.
        out: the store's folder.
        config: stain and crop settings.
        target: the stain to show; None takes DPA's, a crop of slide normal_056.
        overwrite: replace a store that is there.
        say: receives a line per slide, and per cell that is set aside.
        progress: called after each cell.

    Raises:
        CaseError: a list that cannot be read, a cell in two lists, no slide for the target.
        ConfigError: ``out`` holds a store already or cannot be written.
    """
    cells = _read_lists(lists)
    refuse_other_folder(out)
    if not overwrite and open_if_store(out) is not None:
        raise ConfigError(f"{out}: a store exists; choose another --out, or pass --overwrite")

    def opener(name: str) -> AbstractContextManager[Slide]:
        path = find_camelyon_slide(root, name)
        return open_slide(path, mpp_otherwise=config.slide_mpp, limits=config.limits)

    target = target or _published_target(opener, config.stain)
    summary = CellSummary(out)

    def set_aside(cell: DpaCell, error: EsadError) -> None:
        failure = Failure.of(_cell_name(cell), "cell", error)
        summary.failures.append(failure)
        say(f"{failure.case_id}: set aside, {failure.message}")

    treated = dpa_cells(
        cells, opener, target=target, spec=config.stain, stain=config.stain_by, on_error=set_aside
    )
    shape = (TILE_PX, TILE_PX, 3)
    try:
        with StoreWriter(out, sample_shape=shape, dtype="uint8") as writer:
            for name, group in groupby(treated, key=lambda pair: pair[0].slide):
                done = []
                for cell, picture in group:
                    writer.append(*_crops(cell, picture, config))
                    done.append(cell)
                    summary.cells += 1
                    progress("cells", summary.cells + len(summary.failures), len(cells))
                tumor = sum(cell.label for cell in done)
                line = f"{name}: {len(done)} cells, {tumor} of them tumor"
                say(line)
                with opener(name) as slide:
                    _write_picture(writer.folder, slide, done, title=name, caption=line)
            if not writer.count:
                raise CaseError(f"{root}: none of the {len(cells)} listed cells could be read")
            writer.contract.update(_contract(config, target))
            write_failures(writer.folder / "failures.csv", summary.failures)
            summary.samples = writer.count
    except CaseError:
        if not (out / "store.json").exists():  # an older store keeps its own
            write_failures(ensure_folder(out) / "failures.csv", summary.failures)
        raise
    return summary


def _read_lists(lists: Sequence[Path]) -> list[DpaCell]:
    if not lists:
        raise CaseError("protocol dpa: no lists of cells; name them with --cells")
    cells = [cell for path in lists for cell in read_dpa_list(path)]
    seen: set[DpaCell] = set()
    for cell in cells:
        if cell in seen:
            raise CaseError(f"{_cell_name(cell)}: stands in two of the lists; leave one out")
        seen.add(cell)
    return sorted(cells, key=lambda cell: (cell.slide, cell.row, cell.col))


def _published_target(opener: Any, spec: StainSpec) -> StainTarget:
    try:
        with opener(DPA_TARGET.slide) as slide:
            return dpa_target(slide, spec)
    except CaseError as error:
        raise CaseError(
            f"protocol dpa: its target stain is a part of slide {DPA_TARGET.slide}, which cannot"
            f" be used ({error}); name another target with --target"
        ) from error


def _write_picture(
    folder: Path, slide: Slide, cells: Sequence[DpaCell], *, title: str, caption: str
) -> None:
    """Where the cells lie on their slide, beside what is found as tissue here."""
    tissue = find_tissue(slide, TissueSpec())
    write_tiling_picture(
        ensure_folder(folder / "quality") / f"{title}.png",
        tissue.thumbnail,
        mask=tissue.mask,
        downsample=tissue.downsample,
        xy_level0=[(cell.col, cell.row) for cell in cells],
        edge_level0=CELL_PX,
        tumor=[bool(cell.label) for cell in cells],
        title=title,
        caption=caption,
    )


def _crops(cell: DpaCell, picture: Bytes, config: CellConfig) -> tuple[Bytes, pd.DataFrame]:
    test = cell.slide.startswith("test_")
    if test:
        offset = (picture.shape[0] - TILE_PX) // 2
        crops, corners = center_crop(picture)[None], np.array([[offset, offset]])
    else:
        random = np.random.default_rng([config.seed, cell.row, cell.col, *cell.slide.encode()])
        crops, corners = random_crops(picture, config.crops_per_cell, random)
    rows = pd.DataFrame(
        {
            "sample_id": [f"{_cell_name(cell)}_{index}" for index in range(len(crops))],
            "case_id": cell.slide,
            "patient_id": "",
            "split": "test" if test else "train",
            "semi_label": -1 if cell.label and not test else 1,
            "truth": cell.label,
            "x_level0": cell.col + _DOWNSAMPLE * corners[:, 0],
            "y_level0": cell.row + _DOWNSAMPLE * corners[:, 1],
        }
    )
    return crops, rows


def _cell_name(cell: DpaCell) -> str:
    return f"{cell.slide}_{cell.col}_{cell.row}"


def _contract(config: CellConfig, target: StainTarget) -> dict[str, Any]:
    tiles = TileSpec(mpp=1.0, size_px=TILE_PX, stride_px=TILE_PX)
    prepared = preparation(PathologyConfig(tiles=tiles, stain=config.stain), target)
    return {
        "kind": "tiles",
        "modality": "histology",
        "value_range": [0, 255],
        "mpp": 1.0,
        "preparation": {**prepared, "protocol": f"dpa, stain by {config.stain_by}"},
        "cells": config.model_dump(mode="json", exclude={"limits"}),
    }
