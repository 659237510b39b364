"""What tiling and screening share: the config, which slides, and a slide's tiles made ready."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_prep.annotations import (
    Annotation,
    annotations_in,
    find_annotation,
    read_annotation,
    tumor_fraction,
)
from data_prep.slide_dicom import one_file_per_slide
from data_prep.slide_header import MPP_RANGE
from data_prep.slides import SLIDE_SUFFIXES, Slide, find_slides, open_slide
from data_prep.stain import (
    Stain,
    StainSpec,
    StainTarget,
    fit_indices,
    fit_stain,
    normalize_stain,
)
from data_prep.stain_target import DEFAULT_TARGET, read_target
from data_prep.tiles import TileBatch, TileGrid, TileSpec, plan_tiles, read_tiles
from data_prep.tissue import TissueMask, TissueSpec, find_tissue
from esad_med.base.cases import Case, check_cases, read_manifest
from esad_med.base.config import Spec, build_spec
from esad_med.base.errors import CaseError, ConfigError, SlideError
from esad_med.base.limits import Limits
from esad_med.base.runs import Failure

_MAX_LOST_IN_A_ROW = 500


class LabelSpec(Spec):
    """How a tile's tumor fraction becomes its truth."""

    truth_threshold: float = Field(
        0.5, gt=0, le=1, description="A tile is anomalous from this share of tumor area on."
    )


class PathologyConfig(Spec):
    """Everything between a slide's file and the tiles a detector sees."""

    tissue: TissueSpec = TissueSpec()
    tiles: TileSpec = TileSpec()
    stain: StainSpec = StainSpec()
    labels: LabelSpec = LabelSpec()
    limits: Limits = Limits()


@dataclass(frozen=True)
class PreparedSlide:
    """A slide whose tiles are planned and whose stain is known; no tile is read yet."""

    slide: Slide
    tissue: TissueMask
    grid: TileGrid
    stain: Stain


def find_cases(
    paths: Sequence[Path],
    *,
    mpp: float | None,
    annotations: Path | None,
    limits: Limits | None = None,
) -> list[Case]:
    """The slides a user named: files, folders, or one manifest CSV.

    Args:
        paths: slide files, folders of slides, or a single ``.csv`` manifest.
        mpp: level-0 µm per pixel of files that do not say it, or None.
        annotations: folder with annotations named like the slides, or None.
        limits: how large a manifest may be.

    Raises:
        CaseError: nothing found, duplicates, annotations of none of the slides, or a manifest that
            cannot be used.
        ConfigError: an mpp that no scanner has.
    """
    low, high = MPP_RANGE
    if mpp is not None and not low <= mpp <= high:
        raise ConfigError(f"--slide-mpp {mpp:g}: expected {low:g} to {high:g} µm per pixel")
    if len(paths) == 1 and paths[0].suffix.lower() == ".csv":
        if mpp is not None or annotations is not None:
            raise CaseError(
                f"{paths[0]}: a manifest has its own columns 'mpp' and 'annotation'; leave out"
                " --slide-mpp and --annotations"
            )
        return read_manifest(paths[0], limits=limits)
    if annotations is not None and not annotations.is_dir():
        raise CaseError(f"{annotations}: no such folder of annotations")
    files = [file for path in paths for file in _slide_files(path)]
    _refuse_unwritable_names(files)
    outlines = annotations_in(annotations.absolute()) if annotations else {}
    cases = [
        Case(
            case_id=file.stem,
            path=file.absolute(),  # for workers elsewhere
            mpp_otherwise=mpp,
            annotation=find_annotation(outlines, file),
        )
        for file in files
    ]
    if annotations and not any(case.annotation for case in cases):
        raise CaseError(
            f"{annotations}: holds an annotation of none of the {len(cases)} slides; expected files"
            f" named like them, such as {cases[0].case_id}.xml or {cases[0].case_id}.geojson"
        )
    check_cases(cases, source="slides")
    return cases


def open_case(case: Case, limits: Limits) -> Slide:
    """Open a case's slide; see `open_slide`."""
    return open_slide(case.path, mpp=case.mpp, mpp_otherwise=case.mpp_otherwise, limits=limits)


def prepare_slide(slide: Slide, config: PathologyConfig) -> PreparedSlide:
    """Find the tissue, plan the tiles, and fit the slide's one stain matrix.

    Raises:
        SlideError: no tissue, or a stain that cannot be told apart.
    """
    tissue = find_tissue(slide, config.tissue)
    grid = plan_tiles(slide, tissue, config.tiles)
    return PreparedSlide(slide, tissue, grid, fit_slide_stain(slide, grid, config.stain))


def fit_slide_stain(slide: Slide, grid: TileGrid, spec: StainSpec) -> Stain:
    """One stain matrix for the slide, from at most ``spec.fit_tiles`` tiles spread evenly."""
    chosen = fit_indices(len(grid), spec)
    batches = read_tiles(slide, grid.subset(chosen), on_error=_ignore_tile)
    return fit_stain((batch.tiles for batch in batches), spec, name=slide.path.name)


def normalized_tiles(
    prepared: PreparedSlide, spec: StainSpec, target: StainTarget, lost: "LostTiles"
) -> Iterator[TileBatch]:
    """The slide's tiles in grid order, stain-normalized, a batch at a time.

    Tiles that cannot be read are noted in ``lost`` and left out.

    Raises:
        SlideError: none of the tiles can be read, or so many in a row that the file is damaged.
    """
    grid = prepared.grid
    for batch in read_tiles(prepared.slide, grid, on_error=lost.note):
        tiles = normalize_stain(batch.tiles, prepared.stain, target, spec)
        yield TileBatch(indices=batch.indices, tiles=tiles)
    if len(lost.failures) == len(grid):
        raise SlideError(f"{prepared.slide.path.name}: none of its {len(grid)} tiles could be read")


class LostTiles:
    """The tiles of one slide that could not be read."""

    def __init__(self, case_id: str, grid: TileGrid) -> None:
        self.failures: list[Failure] = []
        self._case_id = case_id
        self._grid = grid
        self._last = -1
        self._in_a_row = 0

    def note(self, index: int, error: SlideError) -> None:
        """Remember a lost tile.

        Raises:
            SlideError: too many in a row; every further read would only cost time.
        """
        self._in_a_row = self._in_a_row + 1 if index == self._last + 1 else 1
        self._last = index
        if self._in_a_row >= _MAX_LOST_IN_A_ROW:
            raise SlideError(
                f"{error}; {self._in_a_row} tiles in a row are lost, so the rest was not tried:"
                " copy the slide again"
            ) from error
        x, y = self._grid.xy_level0[index]
        self.failures.append(Failure.of(f"{self._case_id}_{x}_{y}", "read", error))


def case_annotation(case: Case, slide: Slide) -> Annotation | None:
    """The case's annotation, checked against the slide and against the case's own label.

    Raises:
        CaseError: malformed, of another slide, or tumor outlined in a case called normal.
    """
    return annotation_within(case, slide.size_level0, slide.limits, fingerprint=slide.fingerprint)


def annotation_within(
    case: Case, slide_size: tuple[int, int], limits: Limits, *, fingerprint: str = ""
) -> Annotation | None:
    """`case_annotation` for a slide of a (width, height) that need not be open."""
    if case.annotation is None:
        return None
    annotation = read_annotation(
        case.annotation, slide_size=slide_size, fingerprint=fingerprint, limits=limits
    )
    if case.truth == 0 and annotation.tumor.area > 0:
        raise CaseError(
            f"{case.annotation.name}: outlines tumor, but the manifest labels the case normal;"
            " correct one of them"
        )
    return annotation


def tumor_fractions(
    case: Case, annotation: Annotation | None, grid: TileGrid
) -> npt.NDArray[np.float32] | None:
    """The tumor share of each tile's area, (n,), or None without an annotation.

    Raises:
        CaseError: tumor is outlined, but on none of the tiles.
    """
    if case.annotation is None or annotation is None:
        return None
    fractions = tumor_fraction(annotation, grid.xy_level0, grid.edge_level0)
    if annotation.tumor.area > 0 and not fractions.any():
        raise CaseError(
            f"{case.annotation.name}: outlines tumor, but on none of the slide's {len(grid)} tissue"
            " tiles; is it of another slide? Else lower --min-tissue, or leave the annotation out"
        )
    return fractions


def preparation(config: PathologyConfig, target: StainTarget) -> dict[str, Any]:
    """The plain mapping that stores and detectors keep of how their tiles were made."""
    values = config.model_dump(mode="json", exclude={"labels", "limits"})
    used = config.stain.method != "none"
    return {**values, "stain_target": target.to_dict() if used else None}


def config_of(prepared: Mapping[str, Any]) -> tuple[PathologyConfig, StainTarget]:
    """The config and stain target that `preparation` made the mapping of.

    Raises:
        ConfigError: the mapping does not describe slides.
    """
    values = {k: v for k, v in prepared.items() if k not in {"stain_target", "protocol"}}
    config = build_spec(PathologyConfig, values, source="the detector's preparation")
    target = prepared.get("stain_target")
    try:
        return config, DEFAULT_TARGET if target is None else StainTarget.from_dict(target)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the detector's preparation: no stain target ({error})") from error


def load_target(path: Path | None, spec: StainSpec) -> StainTarget:
    """The stain target of a file (an image or a stored target), or the default one."""
    return DEFAULT_TARGET if path is None else read_target(path, spec)


def _slide_files(path: Path) -> list[Path]:
    if path.is_dir() and path.suffix.lower() not in SLIDE_SUFFIXES:
        files = one_file_per_slide(list(find_slides(path)))
        if not files:
            known = ", ".join(sorted(SLIDE_SUFFIXES))
            raise CaseError(f"{path}: no slides in this folder; expected files with {known}")
        return files
    if not os.path.exists(path):  # noqa: PTH110 - unlike Path.exists, False for any odd name
        raise CaseError(f"{path}: no such file or folder")
    return [path]


def _refuse_unwritable_names(files: Sequence[Path]) -> None:
    """Names go into CSV and JSON, which are UTF-8."""
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            shown = str(file).encode(errors="backslashreplace").decode()
            raise CaseError(f"{shown}: the name is not UTF-8; rename the file or folder") from None


def _ignore_tile(index: int, error: SlideError) -> None:
    """A corrupt tile does not stop the stain fit; it is recorded when the tiles are read."""
