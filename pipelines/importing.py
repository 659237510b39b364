"""`esad-med import`: a folder of tile pictures and a table become a SampleStore."""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from data_prep.stain import Stain, StainSpec, StainTarget, fit_stain, normalize_stain
from data_prep.stain_target import PICTURE_FORMATS
from data_prep.tiles import TileSpec
from esad_med.base.cases import SPLITS, check_patients, read_table
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError, ConfigError, EsadError, ImageError
from esad_med.base.execution import HERE, Place, in_blocks, open_executor
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import Limits
from esad_med.base.runs import Failure, Progress, no_progress, write_failures
from esad_med.base.store import open_if_store, refuse_other_folder
from esad_med.base.store_writing import StoreWriter
from esad_med.method.encoder import Encoder
from pipelines.embedding import embedding_facts, sample_form
from pipelines.pathology import PathologyConfig, preparation

_LABELS = {"0": 0, "normal": 0, "1": 1, "tumor": 1, "tumour": 1, "anomalous": 1, "": None}
_BATCH = 256
_BLOCK = 256  # pictures that a worker reads at a time
_DECODING_ERRORS = (  # what Pillow is known to raise on damaged pictures
    *(OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(EOFError, struct.error, zlib.error, Image.DecompressionBombError),
    Image.DecompressionBombWarning,
)


class ColumnSpec(Spec):
    """Which columns of the table hold what; empty where the table has no such column."""

    path: str = Field("path", description="Picture, relative to the folder.")
    label: str = Field("label", description="0 / normal, 1 / tumor, or empty where unknown.")
    id: str = Field("", description="Unique sample name; by default the picture's stem.")
    group: str = Field("", description="The slide a tile is from; becomes the case_id.")
    patient: str = Field("", description="The patient a tile is from.")
    split: str = Field("", description="train, val, test or empty.")


class ImportConfig(Spec):
    """How pictures become samples."""

    columns: ColumnSpec = ColumnSpec()
    size_px: int = Field(64, ge=8, le=4096, description="Edge of the central crop, in pixels.")
    mpp: float = Field(gt=0, description="Resolution of the pictures, µm per pixel.")
    stain: StainSpec = StainSpec()
    stain_by: Literal["group", "set"] = Field(
        "set", description="One stain matrix per group (slide), or one for all pictures."
    )
    limits: Limits = Limits()


@dataclass
class ImportSummary:
    """The outcome of an import."""

    out: Path
    samples: int = 0
    normal: int = 0
    anomalous: int = 0
    groups: int = 0
    failures: list[Failure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "out": str(self.out)}

    def __str__(self) -> str:
        groups = f" of {self.groups} groups" if self.groups else ""
        return f"{self.samples} samples ({self.normal} normal, {self.anomalous} anomalous){groups}"


def import_tiles(
    folder: Path,
    table: Path,
    out: Path,
    config: ImportConfig,
    *,
    target: StainTarget,
    encoder: Encoder | None = None,
    overwrite: bool = False,
    place: Place = HERE,
    progress: Progress = no_progress,
) -> ImportSummary:
    """Read the pictures that a table lists into a SampleStore, with an encoder as embeddings.

    Pictures that cannot be read, or are smaller than the crop, are set aside with the reason.

    Raises:
        CaseError: the table lacks a column, lists a sample twice, or puts a patient in two splits.
        ConfigError: ``out`` exists already or cannot be written.
        SlideError: the stain of a group cannot be told apart.
    """
    if not folder.is_dir():
        raise CaseError(f"{folder}: no such folder; expected the one the table's paths start from")
    rows = _read_rows(table, config)
    refuse_other_folder(out)
    if not overwrite and open_if_store(out) is not None:
        raise ConfigError(f"{out}: a store exists; choose another --out, or pass --overwrite")
    summary = ImportSummary(out)
    rows, crops = _read_crops(_CropReader(folder, config), rows, place, summary, progress)
    if rows.empty:
        first = summary.failures[0]
        raise CaseError(
            f"{folder}: none of the {len(summary.failures)} listed pictures could be used; the"
            f" first: {first.message}"
        )
    stains = _fit_stains(crops, rows, config)
    keys = rows["case_id"] if config.stain_by == "group" else pd.Series("", index=rows.index)
    tiles = TileSpec(mpp=config.mpp, size_px=config.size_px, stride_px=config.size_px)
    form = sample_form((config.size_px, config.size_px, 3), encoder)
    with StoreWriter(out, **form) as writer:
        for batch in _batches_of_one_stain(keys):
            raise_if_interrupted()
            stain = stains[keys.iloc[batch[0]]]
            shown = normalize_stain(crops[batch], stain, target, config.stain)
            writer.append(encoder(shown) if encoder else shown, rows.iloc[batch])
        writer.contract.update(
            kind="tiles",
            modality="histology",
            value_range=[0, 255],
            mpp=config.mpp,
            preparation=preparation(PathologyConfig(tiles=tiles, stain=config.stain), target),
            stains={key: stain.to_dict() for key, stain in stains.items()},
            imported=config.model_dump(mode="json", exclude={"limits"}),
        )
        writer.contract.update(embedding_facts(encoder.identity if encoder else None))
        write_failures(writer.folder / "failures.csv", summary.failures)
    summary.samples = len(rows)
    summary.normal = int((rows["truth"] == 0).sum())
    summary.anomalous = int((rows["truth"] == 1).sum())
    summary.groups = rows.loc[rows["case_id"] != "", "case_id"].nunique()
    return summary


def _read_rows(path: Path, config: ImportConfig) -> pd.DataFrame:
    table, columns = read_table(path, limits=config.limits), config.columns
    wanted = {name: column for name, column in columns.model_dump().items() if column}
    for name, column in wanted.items():
        if column not in table:
            raise CaseError(
                f"{path}: column '{column}' for the {name} is missing; found"
                f" {', '.join(table.columns)}; name it with --{name}"
            )
    if table.empty:
        raise CaseError(f"{path}: no rows, expected one per picture")
    empty = pd.Series("", index=table.index)

    def get(name: str) -> "pd.Series[str]":
        return table[wanted[name]] if name in wanted else empty

    rows = pd.DataFrame(
        {
            "sample_id": get("id") if columns.id else get("path").map(lambda p: Path(p).stem),
            "case_id": get("group"),
            "patient_id": get("patient"),
            "split": get("split").str.lower(),
            "truth": get("label").str.lower(),
            "image": get("path"),
        }
    )
    return _check_rows(path, rows)


def _check_rows(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    checks = (("split", SPLITS), ("truth", tuple(_LABELS)))
    for name, known in checks:
        wrong = rows.loc[~rows[name].isin(known), name]
        if len(wrong):
            raise CaseError(
                f"{path}: line {wrong.index[0] + 2} has {name} '{wrong.iloc[0]}'; expected one of"
                f" {', '.join(value or 'empty' for value in known)}"
            )
    twice = rows.loc[rows["sample_id"].duplicated(), "sample_id"]
    if len(twice):
        raise CaseError(f"{path}: sample '{twice.iloc[0]}' is listed twice, expected once")
    check_patients(zip(rows["patient_id"], rows["split"], strict=True))
    check_patients(zip(rows["case_id"], rows["split"], strict=True), what="slide")
    truth = rows["truth"].map(_LABELS).astype("Int8")
    labeled = (truth == 1).fillna(False) & (rows["split"] != "test")
    return rows.assign(truth=truth, semi_label=np.where(labeled, -1, 1))


@dataclass(frozen=True)
class _CropReader:
    """Reads pictures by their names; picklable, so that workers can."""

    folder: Path
    config: ImportConfig

    def __call__(self, names: Sequence[str]) -> list[npt.NDArray[np.uint8] | EsadError]:
        return [self._read(name) for name in names]

    def _read(self, name: str) -> npt.NDArray[np.uint8] | EsadError:
        raise_if_interrupted()
        try:
            return read_crop(self.folder / name, self.config.size_px, limits=self.config.limits)
        except EsadError as error:
            return error


def _read_crops(
    reader: _CropReader,
    rows: pd.DataFrame,
    place: Place,
    summary: ImportSummary,
    progress: Progress,
) -> tuple[pd.DataFrame, npt.NDArray[np.uint8]]:
    size, limits = reader.config.size_px, reader.config.limits
    crops = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    kept: list[int] = []
    names = rows["image"].tolist()
    blocks = (names[at : at + _BLOCK] for at in range(0, len(names), _BLOCK))
    with open_executor(place, shared=reader.folder) as executor:
        read = in_blocks(executor, reader, blocks, ahead=place.ahead, limits=limits)
        for index, (_, crop) in enumerate(read):
            if isinstance(crop, EsadError):
                case_id = str(rows["sample_id"].iloc[index])
                summary.failures.append(Failure.of(case_id, "read", crop))
            else:
                crops[len(kept)] = crop
                kept.append(index)
            progress("reading pictures", index + 1, len(rows))
    return rows.iloc[kept].reset_index(drop=True), crops[: len(kept)]


def read_crop(path: Path, size_px: int, *, limits: Limits) -> npt.NDArray[np.uint8]:
    """The central square of an 8-bit picture as (size_px, size_px, 3) RGB.

    Raises:
        ImageError: not a picture, not 8 bits per channel, smaller than the crop, or beyond the
            limits.
    """
    try:
        return _read_crop(limits.read_bytes(path), size_px, limits)
    except ImageError as error:
        raise ImageError(f"{path.name}: {error}") from error


def _read_crop(data: bytes, size_px: int, limits: Limits) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as image:
            limits.check_pixels(*image.size)
            if image.mode not in {"RGB", "RGBA", "P", "L"}:
                raise ImageError(f"pixel mode {image.mode}, expected 8-bit RGB; convert it first")
            if min(image.size) < size_px:
                raise ImageError(
                    f"{image.width}x{image.height} pixels, expected at least {size_px}x{size_px};"
                    " choose a smaller --crop"
                )
            left, top = ((edge - size_px) // 2 for edge in image.size)
            return np.asarray(image.convert("RGB").crop((left, top, left + size_px, top + size_px)))
    except UnidentifiedImageError as error:
        raise ImageError("not a picture of a known format") from error
    except _DECODING_ERRORS as error:
        raise ImageError(f"cannot be read ({error})") from error


def _fit_stains(
    crops: npt.NDArray[np.uint8], rows: pd.DataFrame, config: ImportConfig
) -> dict[str, Stain]:
    if config.stain_by == "set":
        return {"": fit_stain([crops], config.stain, name="the set")}
    if (rows["case_id"] == "").any():
        raise CaseError(
            "stain by group: some pictures have no group; name its column with --group, or use"
            " --stain-by set"
        )
    groups = rows.groupby("case_id", sort=True).indices
    return {
        str(name): fit_stain([crops[index]], config.stain, name=str(name))
        for name, index in groups.items()
    }


def _batches_of_one_stain(keys: "pd.Series[str]") -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers in order, cut where the stain changes and every `_BATCH` rows."""
    changes = np.flatnonzero(keys.to_numpy()[1:] != keys.to_numpy()[:-1]) + 1
    for run in np.split(np.arange(len(keys)), changes):
        yield from np.split(run, range(_BATCH, len(run), _BATCH))
