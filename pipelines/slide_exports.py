"""What `screen` writes for other programs: QuPath, ASAP, DICOM viewers, data frames."""

import datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from data_prep.slide_dicom import read_slide_header
from data_prep.slide_writing import write_asap
from data_prep.slides import Slide
from data_prep.xray_dicom_values import DICOM_ERRORS
from esad_med.base.cases import read_table
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError, EsadError, SlideError
from esad_med.base.parquet import require_pyarrow, write_parquet
from esad_med.base.runs import Failure
from esad_med.method.detector import Detector
from esad_med.outputs.dicom import require_highdicom, write_dicom
from esad_med.outputs.geojson import write_geojson
from esad_med.outputs.lesions import Lesion, SlideTiles, asap_polygons, find_lesions
from esad_med.outputs.slide_dicom import Origin, build_annotations, build_segmentation
from pipelines.pathology import PathologyConfig
from pipelines.slide_results import SlideScores

Format = Literal["geojson", "asap", "dicom", "parquet"]
# Of slides.csv; all other columns are numbers with a point.
_TEXTS = {"case_id", "patient_id", "decision"}
_WHOLE = {"tiles", "unreadable_tiles", "truth"}


class ExportSpec(Spec):
    """Which files of a screened slide are written for other programs, and what they hold."""

    write: tuple[Format, ...] = Field(
        ("geojson",), description="geojson (QuPath), asap (XML), dicom (SEG, ANN), parquet."
    )
    tiles: Literal["above", "all"] = Field(
        "above", description="Tiles in GeoJSON: above the threshold, or all of them."
    )
    smallest_mm2: float = Field(
        0.0, ge=0, description="Lesions of a smaller area are left out; 0.0 keeps single tiles."
    )


class ScreeningConfig(PathologyConfig):
    """How the tiles of a screening are made, and what is written for other programs."""

    exports: ExportSpec = ExportSpec()


def require_extras(spec: ExportSpec) -> None:
    """Ask for what the formats need, before anything is scored.

    Raises:
        ConfigError: a package is not installed.
    """
    if "parquet" in spec.write:
        require_pyarrow()
    if "dicom" in spec.write:
        require_highdicom()


def write_exports(
    folder: Path, result: SlideScores, slide: Slide, detector: Detector, spec: ExportSpec
) -> list[Failure]:
    """Write a slide's files for other programs into its folder.

    Returns:
        why there is no DICOM, where there cannot be: of a slide that is none, or whose header is
        damaged. The other files are complete then.

    Raises:
        ConfigError: a file cannot be written.
    """
    tiles = slide_tiles(result, slide, detector)
    lesions = find_lesions(tiles, smallest_mm2=spec.smallest_mm2)
    if "geojson" in spec.write:
        path = folder / "lesions.geojson"
        write_geojson(path, tiles, lesions, all_tiles=spec.tiles == "all")
    if "asap" in spec.write:
        write_asap(folder / "lesions.xml", asap_polygons(lesions))
    if "parquet" in spec.write:
        write_parquet(folder / "scores.parquet", _tile_table(result, tiles), _about(detector))
    if "dicom" in spec.write:
        try:
            _write_dicom(folder, tiles, lesions, slide, detector)
        except (CaseError, SlideError) as error:
            return [Failure.of(result.case.case_id, "dicom", error)]
    return []


def slide_tiles(result: SlideScores, slide: Slide, detector: Detector) -> SlideTiles:
    """The scored tiles as plain arrays, with what a file says of them."""
    return SlideTiles(
        xy_level0=result.grid.xy_level0,
        edge_level0=result.grid.edge_level0,
        measurements={
            "score": result.scores.score,
            "percentile": result.percentiles,
            "reconstruction": result.scores.reconstruction,
            "norm": result.scores.norm,
            **({"p_value": result.decided.p.astype(np.float32)} if result.decided else {}),
        },
        threshold=result.threshold,
        fingerprint=slide.fingerprint,
        slide_size=slide.size_level0,
        mpp=slide.mpp,
        about={
            "case_id": result.case.case_id,
            "detector": detector.digest,
            **({"decision": result.decided.decision["outcome"]} if result.decided else {}),
            "intended_use": "research use only, not for diagnosis",
        },
    )


def _tile_table(result: SlideScores, tiles: SlideTiles) -> pd.DataFrame:
    """The columns of scores.csv, typed."""
    case, grid = result.case, result.grid
    x, y = grid.xy_level0[:, 0], grid.xy_level0[:, 1]
    truth = [None] * len(grid) if result.truth is None else result.truth
    names = [f"{case.case_id}_{left}_{top}" for left, top in grid.xy_level0.tolist()]
    return pd.DataFrame(
        {
            "sample_id": names,
            "case_id": case.case_id,
            "patient_id": case.patient_id,
            "x_level0": x,
            "y_level0": y,
            "tissue_fraction": grid.tissue_fraction,
            "truth": pd.array(truth, dtype="Int8"),
            **tiles.measurements,
            **({"pointed_at": result.decided.pointed_at} if result.decided else {}),
        }
    )


def _about(detector: Detector) -> dict[str, str]:
    return {
        "esad_med.version": metadata.version("esad-med"),
        "esad_med.detector": detector.digest,
        "esad_med.intended_use": "research use only, not for diagnosis",
    }


def _write_dicom(
    folder: Path, tiles: SlideTiles, lesions: list[Lesion], slide: Slide, detector: Detector
) -> None:
    if slide.vendor != "dicom":
        raise SlideError(
            f"{slide.path.name}: is a slide of format {slide.vendor}, so there is nothing that"
            " DICOM results could refer to; leave out --write dicom, or convert the slide to DICOM"
        )
    source = read_slide_header(slide.path, slide.size_level0)
    made = datetime.datetime.now().astimezone()
    files = {"lesions_seg.dcm": build_segmentation, "lesions_ann.dcm": build_annotations}
    if not tiles.above.any():
        del files["lesions_ann.dcm"]  # there are no empty ones
    try:
        origin = Origin(source, detector.digest, metadata.version("esad-med"), made)
        for name, build in files.items():
            write_dicom(folder / name, build(origin, tiles, lesions))
    except (SlideError, CaseError, *DICOM_ERRORS) as error:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        if isinstance(error, EsadError):
            raise
        raise SlideError(  # without what pydicom says: it repeats the header's values
            f"{slide.path.name}: its header is damaged, so DICOM results cannot refer to it"
            f" ({type(error).__name__}); repair it, or leave out --write dicom"
        ) from error


def write_run_exports(out: Path, spec: ExportSpec, detector: Detector) -> None:
    """Write ``slides.parquet`` beside ``slides.csv`` and of it, or remove one of earlier settings.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = out / "slides.parquet"
    if "parquet" not in spec.write:
        path.unlink(missing_ok=True)
        return
    table = read_table(out / "slides.csv")
    for name in set(table.columns) - _TEXTS:
        numbers = pd.to_numeric(table[name].where(table[name] != "", None))
        table[name] = numbers.astype("Int64") if name in _WHOLE else numbers.astype("float64")
    write_parquet(path, table, _about(detector))
