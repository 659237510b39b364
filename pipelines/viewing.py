"""A folder that `screen` wrote, on its way to people: facts, index, a slide's viewer page."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.deep_zoom import ZoomGrid
from esad_med.base.cases import read_table
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.limits import Limits
from esad_med.base.runs import read_json
from esad_med.outputs.batch_index import Batch, BatchRow, write_batch_index
from esad_med.outputs.heatmap import PIXELS_PER_TILE, Bytes
from esad_med.outputs.viewer_page import Pyramid, ViewerPage, ViewerTile, read_heat, render_viewer

INDEX = "index.html"
VIEWER = "viewer"
_TERMS = ("score", "percentile", "reconstruction", "norm")

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Side = Annotated[int, Field(ge=1, le=1 << 24)]


class ViewSpec(Spec):
    """How slides are shown."""

    tiles: int = Field(200, ge=1, le=5000, description="Most anomalous tiles to step through.")
    tile_px: int = Field(510, ge=126, le=2046, description="Edge of a deep-zoom tile.")
    quality: int = Field(80, ge=1, le=100, description="Of the deep-zoom tiles' JPEG.")
    free_gib: float = Field(1, ge=0, description="Of the disk that written viewers leave free.")
    limits: Limits = Limits()


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Geometry(_Read):
    """Where a slide's pixels and tiles are."""

    size_level0: tuple[_Side, _Side]
    mpp: _Positive
    edge_level0: _Positive


class Decision(_Read):
    """What a calibrated detector says of a slide."""

    outcome: str
    p_value: _Number | None = None


class SlideFacts(_Read):
    """What is shown of ``slide.json``; without calibration there is no decision."""

    case_id: str
    slide_score: _Number
    slide_percentile: _Number
    maximum: _Number
    area_above_threshold_mm2: _Number
    tiles: int
    unreadable_tiles: int
    slide_rule: str
    threshold: _Number
    threshold_rule: str
    geometry: Geometry
    heatmap_limits: tuple[_Number, _Number]
    provenance: Mapping[str, str]
    decision: Decision | None = None

    @property
    def p_value(self) -> float | None:
        """The slide's p-value, where there is one."""
        return self.decision.p_value if self.decision else None


@dataclass(frozen=True)
class ScreenedFolder:
    """A screening's folder as it stood when it was read.

    Attributes:
        path: the folder, resolved.
        slides: those that can be shown, the highest slide score first.
        set_aside: (case, reason) of those that could not be screened, or whose files are damaged.
        detector: its short digest, or empty.
        created: date of the run.
    """

    path: Path
    slides: Mapping[str, SlideFacts]
    set_aside: tuple[tuple[str, str], ...] = field(default=())
    detector: str = ""
    created: str = ""

    @classmethod
    def read(cls, path: Path) -> "ScreenedFolder":
        """Read the slides of ``slides.csv``, which `screen` writes at its end.

        Raises:
            ConfigError: no folder of a finished screening.
        """
        if not (path / "slides.csv").is_file():
            raise ConfigError(
                f"{path}: no slides.csv, so it is no folder that `screen` has finished; name its"
                " --out, or run the same `screen` to its end"
            )
        slides, aside = [], []
        try:
            for case_id in read_table(path / "slides.csv").get("case_id", []):
                try:
                    slides.append(read_facts(path.resolve(), str(case_id)))
                except CaseError as error:
                    aside.append((str(case_id), str(error)))
            aside += _failures(path)
            run = read_json(path / "run.json", CaseError)
        except CaseError as error:
            raise ConfigError(f"{error}; run the same `screen` again") from error
        slides.sort(key=lambda facts: (-facts.slide_score, facts.case_id))
        created = str(run.get("began", ""))[:10] or datetime.date.today().isoformat()
        by_id = {facts.case_id: facts for facts in slides}
        return cls(path.resolve(), by_id, tuple(aside), str(run.get("detector", ""))[:12], created)

    def file(self, case_id: str, name: str) -> Path:
        """A file in a slide's folder, which must not lead out of it.

        Raises:
            CaseError: by a link, it does.
        """
        return _inside(self.path, case_id, name)


def _inside(root: Path, case_id: str, name: str) -> Path:
    try:
        path = (root / case_id / name).resolve()
        if Path(case_id).name == case_id and path.is_relative_to(root / case_id):
            return path
    except (OSError, ValueError, RuntimeError):  # loops of links, null characters
        pass
    raise CaseError(f"{case_id}/{name}: leads out of the folder; nothing outside of it is shown")


def _failures(path: Path) -> list[tuple[str, str]]:
    """The slides of ``failures.csv``; lost tiles and exports are of slides that were screened."""
    table = read_table(path / "failures.csv")
    if not {"case_id", "stage", "message"} <= set(table):
        raise CaseError(f"{path / 'failures.csv'}: is not as `screen` writes it")
    table = table[table["stage"] == "screen"]
    return list(zip(table["case_id"], table["message"], strict=True))


def read_facts(root: Path, case_id: str) -> SlideFacts:
    """What ``slide.json`` says, checked.

    Raises:
        CaseError: missing, damaged, of another slide, or of an earlier version.
    """
    found = read_json(_inside(root, case_id, "slide.json"), CaseError)
    try:
        facts = SlideFacts.model_validate(found)
    except ValidationError as error:
        keys = sorted({".".join(map(str, item["loc"])) for item in error.errors()})
        raise CaseError(
            f"{case_id}/slide.json: without a usable {', '.join(keys[:5])}, as of an earlier"
            " version; remove the slide's folder and run `screen` again"
        ) from error
    if facts.case_id != case_id:
        raise CaseError(f"{case_id}/slide.json: is of another slide; run `screen` again")
    return facts


def write_index(out: Path) -> None:
    """Write ``index.html``: a row per slide of a screening.

    Raises:
        ConfigError: no folder of a finished screening, or it cannot be written.
    """
    folder = ScreenedFolder.read(out)
    write_batch_index(out / INDEX, make_batch(folder))


def make_batch(folder: ScreenedFolder, *, served: bool = False) -> Batch:
    """The values of the index page.

    Args:
        folder: what was screened.
        served: every slide has a viewer; else those that stand in their folder.
    """
    first = next(iter(folder.slides.values()), None)
    return Batch(
        rows=[_row(folder.path / facts.case_id, facts, served) for facts in folder.slides.values()],
        set_aside=folder.set_aside,
        slide_rule=first.slide_rule if first else "",
        threshold_rule=first.threshold_rule if first else "",
        detector=folder.detector,
        created=folder.created,
    )


def _row(folder: Path, facts: SlideFacts, served: bool) -> BatchRow:
    return BatchRow(
        case_id=facts.case_id,
        slide_score=facts.slide_score,
        slide_percentile=facts.slide_percentile,
        maximum=facts.maximum,
        area_above_mm2=facts.area_above_threshold_mm2,
        tiles=facts.tiles,
        unreadable=facts.unreadable_tiles,
        above=facts.slide_score > facts.threshold,
        decision=facts.decision.outcome if facts.decision else "",
        p_value=facts.p_value,
        thumbnail=(folder / "thumbnail.jpg").is_file(),
        report=(folder / "report.html").is_file(),
        viewer=served or (folder / VIEWER / INDEX).is_file(),
    )


def zoom_grid(facts: SlideFacts, spec: ViewSpec) -> ZoomGrid:
    """The deep-zoom tiles of a slide."""
    return ZoomGrid(facts.geometry.size_level0, tile_px=spec.tile_px)


def make_viewer(folder: ScreenedFolder, facts: SlideFacts, spec: ViewSpec) -> tuple[str, Bytes]:
    """A slide's viewer page and its heat map (h, w, 4); the slide itself is not needed.

    Raises:
        CaseError: scores or heat map are missing or damaged.
    """
    heat, reduced = read_heat(folder.file(facts.case_id, "heatmap.tif"))
    geometry, grid = facts.geometry, zoom_grid(facts, spec)
    width, height = geometry.size_level0
    page = ViewerPage(
        case_id=facts.case_id,
        slide_score=facts.slide_score,
        slide_percentile=facts.slide_percentile,
        maximum=facts.maximum,
        area_above_mm2=facts.area_above_threshold_mm2,
        limits=facts.heatmap_limits,
        pyramid=Pyramid(
            *(width, height, grid.tile_px, grid.overlap, grid.first_level, len(grid.sizes) - 1)
        ),
        mpp=geometry.mpp,
        edge_level0=geometry.edge_level0,
        heat_width=heat.shape[1] * reduced * geometry.edge_level0 / PIXELS_PER_TILE / width,
        tiles=read_top_tiles(folder.file(facts.case_id, "scores.csv"), spec.tiles, spec.limits),
        scored=facts.tiles,
        decision=facts.decision.outcome if facts.decision else "",
        p_value=facts.p_value,
    )
    return render_viewer(page), heat


def read_top_tiles(path: Path, count: int, limits: Limits) -> list[ViewerTile]:
    """The highest scores of a ``scores.csv``; equal ones in the file's order.

    Raises:
        CaseError: not a table of scores as `screen` writes it.
    """
    name = f"{path.parent.name}/{path.name}"
    table = read_table(path, limits=limits)
    columns = ["x_level0", "y_level0", *_TERMS]
    try:
        numbers = table[columns].apply(pd.to_numeric)
        top = numbers.sort_values("score", ascending=False, kind="stable").head(count)
        p_values = _p_values(table).reindex(top.index)
        if not np.isfinite(top.to_numpy(dtype=float)).all():
            raise ValueError("a value that is not finite")
    except (KeyError, ValueError, TypeError) as error:
        raise CaseError(
            f"{name}: is not as `screen` writes it ({error}); run `screen` again"
        ) from error
    return [
        ViewerTile(int(x), int(y), score, percentile, reconstruction, norm, None if p != p else p)
        for (x, y, score, percentile, reconstruction, norm), p in zip(
            top.to_numpy(dtype=float).tolist(), p_values.tolist(), strict=True
        )
    ]


def _p_values(table: pd.DataFrame) -> "pd.Series[float]":
    """The column of a calibrated detector; all missing where there is none."""
    found = table.get("p_value")
    if found is None:
        return pd.Series(np.nan, index=table.index)
    return pd.to_numeric(found.mask(found == ""))
