"""`esad-med import --features`: feature files of CLAM and TRIDENT become a SampleStore."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from data_prep.annotations import annotations_in, find_annotation
from data_prep.features import FEATURE_SUFFIXES, FeatureFile, FeatureHeader, open_features
from data_prep.slide_header import MPP_RANGE, fingerprint_file
from data_prep.stain import StainSpec
from data_prep.stain_target import DEFAULT_TARGET
from data_prep.tiles import TileGrid, TileSpec
from esad_med.base.cases import Case, check_cases, files_below, read_manifest
from esad_med.base.config import Spec, build_spec
from esad_med.base.errors import CaseError, ConfigError, EsadError
from esad_med.base.execution import HERE, Place, in_order, open_executor, report
from esad_med.base.limits import Limits
from esad_med.base.runs import Failure, Progress, Say, no_progress
from esad_med.base.timing import Stages
from esad_med.method.contract import MPP_TOLERANCE
from esad_med.method.encoder_identity import EncoderIdentity
from pipelines.embedding import embedding_facts
from pipelines.pathology import (
    LabelSpec,
    PathologyConfig,
    annotation_within,
    config_of,
    preparation,
    tumor_fractions,
)
from pipelines.tiling import StorePlan, TilingSummary, fill_store, request_digest
from pipelines.tiling_slide import (
    CaseTiler,
    Sink,
    SlideSummary,
    TiledSlide,
    label_tiles,
    tile_rows,
)


class FeatureConfig(Spec):
    """What feature files do not say themselves, and how their tiles get a label."""

    encoder_name: str = Field("", max_length=200, description="Of the encoder that made them.")
    mpp: float | None = Field(None, gt=0, description="Of the tiles it saw, µm per pixel.")
    size_px: int | None = Field(
        None, ge=8, le=4096, description="Edge of the tiles, at that resolution."
    )
    edge_level0: float | None = Field(
        None, gt=0, description="The same edge in level-0 pixels; needed for annotations only."
    )
    labels: LabelSpec = LabelSpec()
    limits: Limits = Limits()


@dataclass(frozen=True)
class FeatureForm:
    """What all feature files of a store have in common.

    Attributes:
        encoder: the identity of what made the vectors.
        prepared: `preparation` of the tiles, as JSON.
    """

    encoder: EncoderIdentity
    prepared: str

    @property
    def config(self) -> PathologyConfig:
        """How the tiles were made."""
        return config_of(json.loads(self.prepared))[0]

    def __hash__(self) -> int:
        return hash((str(self.encoder), self.prepared))

    def __str__(self) -> str:
        tiles, stain = self.config.tiles, self.config.stain.method
        tile = f"tiles of {tiles.size_px} px at {tiles.mpp:g} µm per pixel"
        return f"encoder {self.encoder}, {tile}, stain normalization {stain}"


def find_feature_cases(
    paths: Sequence[Path],
    *,
    table: Path | None,
    annotations: Path | None,
    limits: Limits,
) -> tuple[list[Case], list[Failure]]:
    """The feature files a user named, with what a manifest says of their slides.

    Args:
        paths: files, or folders of them, at any depth.
        table: a manifest as of `tile`; its ``path`` may name the slide instead, by whose stem, or
            by whose case_id, the feature file is found.
        annotations: folder of outlines named like the files.
        limits: how large a manifest may be.

    Returns:
        The cases; and rows without a file, files without a row.

    Raises:
        CaseError: nothing found, two files of one name, a manifest that cannot be used.
    """
    files: dict[str, Path] = {}
    for file in (file for path in paths for file in _feature_files(path)):
        first = files.setdefault(file.stem, file.absolute())
        if first != file.absolute():
            raise CaseError(f"{file}: a second file of slide {file.stem}, beside {first}")
    outlines = annotations_in(annotations.absolute()) if annotations else {}
    if table is None:
        cases = [
            Case(case_id=stem, path=path, annotation=find_annotation(outlines, path))
            for stem, path in files.items()
        ]
        check_cases(cases, source="feature files")
        return cases, []
    if annotations is not None:
        raise CaseError(f"{table}: has its own column 'annotation'; leave out --annotations")
    listed = read_manifest(table, limits=limits, files=files)
    known = set(files.values())
    failures = [
        Failure.of(case.case_id, "find", CaseError("is listed, but no such file was found"))
        for case in listed
        if case.path not in known
    ]
    cases = [case for case in listed if case.path in known]
    used = {case.path for case in cases}
    failures += [
        Failure.of(stem, "table", CaseError("is a feature file that no row of the table names"))
        for stem, path in files.items()
        if path not in used
    ]
    if not cases:
        raise CaseError(
            f"{table}: names none of the {len(files)} feature files, such as {next(iter(files))};"
            " expected rows whose path or case_id has that name"
        )
    return cases, failures


def _feature_files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        found = [file for file in files_below(path) if file.suffix.lower() in FEATURE_SUFFIXES]
        if not found:
            raise CaseError(
                f"{path}: no feature files in this folder; expected {' or '.join(FEATURE_SUFFIXES)}"
            )
        yield from found
    elif path.exists():
        yield path
    else:
        raise CaseError(f"{path}: no such file or folder")


def import_features(
    cases: Sequence[Case],
    out: Path,
    config: FeatureConfig,
    *,
    failures: Sequence[Failure] = (),
    overwrite: bool = False,
    place: Place = HERE,
    say: Say,
    progress: Progress = no_progress,
) -> TilingSummary:
    """Put feature files into one SampleStore; bad ones are set aside, the others go on.

    Their encoder, resolution and tile size must agree: what most files have is taken. A run that
    was killed is gone on with by the same request.

    Args:
        cases: of `find_feature_cases`.
        out: the store's folder.
        config: what the files do not say.
        failures: of `find_feature_cases`.
        overwrite: replace a store that was made by another request.
        place: where files are read.
        say: receives one line per slide.
        progress: called while files are read.

    Raises:
        CaseError: no file can be used.
        ConfigError: ``out`` holds something else or cannot be written.
        StoreError: ``out`` holds a damaged store.
    """
    forms: dict[Case, FeatureForm] = {}
    bad = list(failures)
    looks = _FormReader(config)
    with open_executor(place, progress=progress) as executor:
        found = in_order(executor, looks, cases, ahead=place.ahead, limits=config.limits)
        for done, (case, form) in enumerate(found, 1):
            if isinstance(form, CaseError):
                bad.append(Failure.of(case.case_id, "read", form))
            else:
                forms[case] = form
            progress("looking at feature files", done, len(cases))
    if not forms:
        raise CaseError(
            f"none of the {len(cases)} feature files can be used; the first, {bad[-1].case_id}:"
            f" {next(f for f in bad if f.stage == 'read').message}"
        )
    form = Counter(forms.values()).most_common(1)[0][0]
    for case, other in forms.items():
        if other != form:
            why = CaseError(f"{other}; most files have {form}; import them into another store")
            bad.append(Failure.of(case.case_id, "read", why))
    chosen = [case for case in cases if forms.get(case) == form]
    plan = StorePlan(
        command="import",
        request=request_digest(
            cases, [str(form), config.model_dump(mode="json", exclude={"limits"})]
        ),
        limits=config.limits,
        sample_shape=(form.encoder.dim,),
        dtype="float32",
        contract={
            "modality": "histology",
            "mpp": form.config.tiles.mpp,
            "preparation": json.loads(form.prepared),
            "labels": config.labels.model_dump(mode="json"),
            **embedding_facts(form.encoder),
        },
        failures=tuple(bad),
    )
    return fill_store(
        chosen,
        out,
        plan,
        lambda folder: FeatureReader(config, form, folder),
        overwrite=overwrite,
        place=place,
        say=say,
        progress=progress,
    )


@dataclass(frozen=True)
class _FormReader:
    """Looks at feature files without reading their vectors; picklable, so that workers can."""

    config: FeatureConfig

    def __call__(self, case: Case) -> FeatureForm | CaseError:
        try:
            with open_features(case.path, limits=self.config.limits) as file:
                return form_of(file.header, self.config)
        except EsadError as error:
            return error if isinstance(error, CaseError) else CaseError(str(error))


def form_of(header: FeatureHeader, config: FeatureConfig) -> FeatureForm:
    """What made a file's vectors, by the file itself and by the settings.

    Raises:
        CaseError: something is not known, or they contradict each other.
    """
    return FeatureForm(_identity(header, config), json.dumps(_prepared(header, config)))


def _identity(header: FeatureHeader, config: FeatureConfig) -> EncoderIdentity:
    name = config.encoder_name
    if header.encoder is None:
        if not name:
            raise CaseError(
                "does not say which encoder made its vectors; name it with --encoder-name, such as"
                " uni_v1: a detector trained on them refuses those of others"
            )
        return EncoderIdentity(name=name, dim=header.dim)
    try:
        found = build_spec(EncoderIdentity, dict(header.encoder), source="its encoder")
    except ConfigError as error:
        raise CaseError(str(error)) from error
    if found.dim != header.dim or (name and name != found.name):
        raise CaseError(
            f"says its vectors are of encoder {found}, found vectors of {header.dim} values"
            f"{f' and --encoder-name {name}' if name else ''}"
        )
    return found


def _prepared(header: FeatureHeader, config: FeatureConfig) -> dict[str, Any]:
    """How the tiles were made, as stores and detectors keep it."""
    if header.preparation is not None:
        try:
            own, target = config_of(header.preparation)
        except ConfigError as error:
            raise CaseError(str(error)) from error
        _agree("mpp", own.tiles.mpp, config.mpp)
        return preparation(own, target)
    _agree("mpp", header.mpp, config.mpp)
    mpp, size = config.mpp or header.mpp, config.size_px or header.tile_px
    if mpp is None:
        raise CaseError("does not say its tiles' resolution; give it with --mpp, µm per pixel")
    if size is None:
        raise CaseError("does not say its tiles' size; give it with --set size_px=256, in pixels")
    low, high = MPP_RANGE
    if not (low <= mpp <= high * 64 and 8 <= size <= 4096):
        raise CaseError(f"tiles of {size} px at {mpp:g} µm per pixel, expected 8 to 4096 px")
    tiles = TileSpec(
        mpp=config.mpp or round(mpp, 2), size_px=size, stride_px=max(1, size - header.overlap_px)
    )
    unstained = PathologyConfig(tiles=tiles, stain=StainSpec(method="none"))
    return preparation(unstained, DEFAULT_TARGET)


def _agree(name: str, found: float | None, given: float | None) -> None:
    if found and given and abs(given / found - 1) > MPP_TOLERANCE:
        raise CaseError(f"its {name} is {found:g}, --{name} says {given:g}; leave it out")


@dataclass(frozen=True)
class FeatureReader(CaseTiler):
    """How feature files get into a store; picklable, so that workers can.

    Attributes:
        config: labels and limits.
        form: what all files have in common.
        folder: where the store is made.
        run: of whose parts.
    """

    config: FeatureConfig
    form: FeatureForm
    folder: Path
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def limits(self) -> Limits:
        """Of what is opened, and of time and memory."""
        return self.config.limits

    def tile(self, case: Case, sink: Sink) -> TiledSlide | Failure:
        """Put a slide's vectors into a sink; a file that is bad is a failure.

        Raises:
            ConfigError: something cannot be written.
        """
        try:
            with open_features(case.path, limits=self.limits) as file:
                return self._read(case, file, sink)
        except ConfigError:
            raise
        except EsadError as error:
            return Failure.of(case.case_id, "read", error)

    def _read(self, case: Case, file: FeatureFile, sink: Sink) -> TiledSlide:
        if form_of(file.header, self.config) != self.form:
            raise CaseError("was changed while it was read; start the command again")
        stages, header = Stages(), file.header
        grid = _grid(case, header, self.form.config.tiles, self.config)
        annotation = annotation_within(case, grid.slide_size, self.limits)
        fractions = tumor_fractions(case, annotation, grid)
        labels = self.form.config.model_copy(update={"labels": self.config.labels})
        share, truth = label_tiles(case, fractions, len(grid), labels)
        rows = tile_rows(case, grid, share, truth)
        done = 0
        for block in stages.timed("read", file.blocks()):
            with stages.measure("write"):
                sink.append(block, rows.iloc[done : done + len(block)])
            done += len(block)
            report(f"reading {case.case_id}", done, len(grid))
        return TiledSlide(_summary(case, header, grid, truth), {}, [], stages.seconds)


def _grid(case: Case, header: FeatureHeader, tiles: TileSpec, config: FeatureConfig) -> TileGrid:
    """Where a file's tiles lie; their share of tissue is not known.

    Raises:
        CaseError: an annotation, and no edge of tiles to lay over it.
    """
    edge, mpp_level0 = config.edge_level0 or header.edge_level0, case.mpp or header.mpp_level0
    if edge is None and mpp_level0:
        edge = tiles.size_px * tiles.mpp / mpp_level0
    if edge is None:
        if case.annotation is not None:
            raise CaseError(
                "does not say how wide its tiles are at level 0, so the outlines cannot be laid"
                " over them; give it with --set edge_level0=512, or mpp in the table"
            )
        edge = float(tiles.size_px)
    low = header.xy_level0.max(0) + int(np.ceil(edge))
    return TileGrid(
        xy_level0=header.xy_level0,
        tissue_fraction=np.full(len(header), np.nan, np.float32),
        tile_px=tiles.size_px,
        mpp=tiles.mpp,
        edge_level0=edge,
        stride_level0=edge * tiles.stride_px / tiles.size_px,
        level=0,
        read_px=tiles.size_px,
        slide_size=header.slide_size or (int(low[0]), int(low[1])),
    )


def _summary(
    case: Case, header: FeatureHeader, grid: TileGrid, truth: "pd.Series[Any]"
) -> SlideSummary:
    return SlideSummary(
        case_id=case.case_id,
        fingerprint=fingerprint_file(case.path),
        mpp_level0=header.mpp_level0,
        mpp=round(grid.mpp, 6),
        level=None,
        tiles=len(grid),
        tumor_tiles=None if truth.isna().any() else int((truth == 1).sum()),
        unreadable=0,
        tissue_share=None,
    )
