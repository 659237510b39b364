"""`esad-med xray`: NIH's table, lists and images become a SampleStore."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, field_validator

from data_prep.nih import (
    FINDINGS,
    ImageList,
    find_images,
    has_finding,
    join_lists,
    read_image_list,
    read_nih_table,
)
from data_prep.xray import SUFFIXES
from data_prep.xray_chain import VALUE_RANGE, XraySpec
from esad_med.base.cases import check_patients
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError, ConfigError, EsadError, ImageError
from esad_med.base.execution import HERE, Place, in_blocks, open_executor
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import Limits
from esad_med.base.runs import (
    Failure,
    Progress,
    digest_bytes,
    digest_file,
    no_progress,
    write_failures,
)
from esad_med.base.store import open_if_store, read_failures, refuse_other_folder
from esad_med.base.store_writing import StoreWriter
from esad_med.method.encoder import Encoder
from pipelines.chest_xray import MODALITY, chain_of, on_threads, prepare_xray
from pipelines.embedding import embedding_facts, sample_form

_BATCH = 256


class OutlierSpec(Spec):
    """Which anomalous training images are labeled outliers."""

    finding: str = Field("Infiltration", description='One of NIH\'s fourteen, or "any".')
    match: Literal["only", "contains"] = Field(
        "only", description="The finding alone, or among others."
    )
    fraction: float = Field(
        0.25, ge=0, le=1, description="Share of those; a quarter gives the paper's 3.3 and 3.9 %."
    )
    others: Literal["drop", "unlabeled"] = Field(
        "drop", description="Other anomalous training images: left out, or hidden as pollution."
    )

    @field_validator("finding")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in {*FINDINGS, "any"}:
            raise ValueError(f"expected any, or one of {', '.join(FINDINGS)}")
        return name


class XrayStoreConfig(Spec):
    """How NIH's images become samples."""

    view: Literal["PA", "AP", "any"] = Field("PA", description="Which views are taken.")
    outliers: OutlierSpec = OutlierSpec()
    test_share: float = Field(
        0.4, gt=0, lt=1, description="Without lists: share of the images, whole patients, to test."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Of the split and the drawn outliers.")
    xray: XraySpec = XraySpec()
    limits: Limits = Limits()


@dataclass
class XraySummary:
    """What a store of radiographs holds, by split and truth."""

    out: Path | None
    view: str
    counts: dict[str, int] = field(default_factory=dict)
    disagreements: int = 0
    failures: list[Failure] = field(default_factory=list)
    complete_already: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "out": str(self.out) if self.out else None}

    def __str__(self) -> str:
        n = self.counts
        unlabeled, labeled = n["train_normal"] + n["train_pollution"], n["train_labeled"]
        share = labeled / max(1, unlabeled + labeled)
        lines = [
            f"view {self.view}",
            f"  train: {unlabeled} normal or unlabeled ({n['train_pollution']} of them anomalous),"
            f" {labeled} labeled outliers ({100 * share:.2f} %)",
            f"  val:   {n['val_normal']} normal, {n['val_anomalous']} anomalous",
            f"  test:  {n['test_normal']} normal, {n['test_anomalous']} anomalous",
            f"  left out: {n['left_out']} anomalous training images, {n['not_listed']} in no list",
        ]
        if self.disagreements:
            lines.append(
                f"  {self.disagreements} images are normal by list and have a finding by table, or"
                " the reverse; the list was followed"
            )
        return "\n".join(lines)


def plan_xray_store(
    table: Path, lists: Sequence[str], config: XrayStoreConfig
) -> tuple[pd.DataFrame, XraySummary]:
    """Choose the images and what each stands for; no image is looked at.

    Args:
        table: NIH's Data_Entry table.
        lists: ``FILE`` or ``SPLIT=FILE`` each; none for a split by patient.
        config: view, outliers, seed.

    Returns:
        The rows of the store, in the table's order, and their counts.

    Raises:
        CaseError: table or lists cannot be used, a patient crosses splits, nothing is left.
    """
    return _plan(read_nih_table(table), table, lists, config)


def _plan(
    everything: pd.DataFrame, table: Path, lists: Sequence[str], config: XrayStoreConfig
) -> tuple[pd.DataFrame, XraySummary]:
    listed = [read_image_list(text) for text in lists]
    rows = everything
    if config.view != "any":
        rows = rows[rows["view"] == config.view]
    summary = XraySummary(None, config.view)
    views = len(rows)
    if listed:
        rows = _split_by_lists(rows, listed, everything, summary)
    else:
        rows = _split_by_patient(rows, config)
    check_patients(zip(rows["patient_id"], rows["split"], strict=True))
    rows = _label(rows, config)
    if rows.empty:
        raise CaseError(f"{table}: no image of view {config.view} is left; check view and lists")
    summary.counts["not_listed"] = views - len(rows)
    dropped = rows["role"] == "left_out"
    names = ("train_normal", "train_pollution", "train_labeled", "val_normal", "val_anomalous")
    for name in (*names, "test_normal", "test_anomalous", "left_out"):
        summary.counts[name] = int((rows["role"] == name).sum())
    return rows[~dropped].drop(columns="role").reset_index(drop=True), summary


def _split_by_lists(
    rows: pd.DataFrame, lists: list[ImageList], table: pd.DataFrame, summary: XraySummary
) -> pd.DataFrame:
    places = join_lists(lists)
    known = set(table["image"])
    for image in places:
        if image not in known:
            error = CaseError("is in a list but not in the table")
            summary.failures.append(Failure.of(image, "table", error))
    rows = rows[rows["image"].isin(places)].copy()
    rows["split"] = [places[image][0] for image in rows["image"]]
    told = pd.Series([places[image][1] for image in rows["image"]], rows.index, dtype="Int8")
    summary.disagreements = int((told.notna() & (told != rows["truth"])).sum())
    rows["truth"] = told.fillna(rows["truth"])
    return rows


def _split_by_patient(rows: pd.DataFrame, config: XrayStoreConfig) -> pd.DataFrame:
    """Whole patients to test, in random order, until they hold the share asked for."""
    sizes = rows["patient_id"].value_counts().sort_index()
    order = np.random.default_rng([config.seed, 0]).permutation(len(sizes))
    before = np.concatenate([[0], np.cumsum(sizes.to_numpy()[order])[:-1]])
    test = set(sizes.index[order[before < config.test_share * len(rows)]])
    return rows.assign(split=np.where(rows["patient_id"].isin(test), "test", "train"))


def _label(rows: pd.DataFrame, config: XrayStoreConfig) -> pd.DataFrame:
    """Add semi_label, and the role of each row."""
    anomalous = (rows["truth"] == 1).to_numpy(dtype=bool)
    wanted = has_finding(rows["findings"], config.outliers.finding, config.outliers.match)
    candidate = anomalous & (wanted.to_numpy() | (config.outliers.finding == "any"))
    rng = np.random.default_rng([config.seed, 1])
    labeled = np.zeros(len(rows), dtype=bool)
    split = rows["split"].to_numpy(dtype=object)
    for part in ("train", "val"):
        pool = np.flatnonzero(candidate & (split == part))
        count = int(config.outliers.fraction * len(pool) + 1e-9)
        labeled[rng.permutation(pool)[:count]] = True
    hidden = (split == "train") & anomalous & ~labeled
    kept = config.outliers.others == "unlabeled"
    kinds = np.where(anomalous, "anomalous", "normal")
    role = np.array([f"{s}_{k}" for s, k in zip(split, kinds, strict=True)], dtype=object)
    role[labeled & (split == "train")] = "train_labeled"
    role[hidden] = "train_pollution" if kept else "left_out"
    return rows.assign(semi_label=np.where(labeled, -1, 1), role=role)


def make_xray_store(
    folders: Sequence[Path],
    table: Path,
    out: Path,
    config: XrayStoreConfig,
    *,
    lists: Sequence[str] = (),
    encoder: Encoder | None = None,
    overwrite: bool = False,
    place: Place = HERE,
    progress: Progress = no_progress,
) -> XraySummary:
    """Read the chosen images into a SampleStore, with an encoder as embeddings.

    Images that are missing or cannot be read, and files that no row names, are recorded in
    ``failures.csv``; the rest goes on. A run that was killed is gone on with by the same request.

    Raises:
        CaseError: table or lists cannot be used, a patient crosses splits, no image was found.
        ConfigError: ``out`` is something else, or a store made by another request.
    """
    everything = read_nih_table(table)
    rows, summary = _plan(everything, table, lists, config)
    summary.out = out
    refuse_other_folder(out)
    files = find_images(folders, [suffix for suffix in SUFFIXES if suffix])
    paths = _match(rows, files, everything["image"], summary)
    request = _request(paths, table, lists, config, encoder)
    if not overwrite and (store := open_if_store(out)) is not None:
        if store.contract.get("request") != request:
            raise ConfigError(
                f"{out}: a store of other images or settings exists; choose another --out, or pass"
                " --overwrite"
            )
        summary.complete_already = True
        summary.counts = store.contract["counts"]
        summary.failures = read_failures(out)
        return summary
    size = config.xray.size_px
    form = sample_form((size, size, 1), encoder)
    # not of the store, but of what is gone on with: other limits set other images aside
    asked = request + config.limits.model_dump_json()
    with StoreWriter(out, **form, request=asked) as writer:
        kept = _write_samples(writer, rows, paths, config, encoder, place, summary, progress)
        _recount(rows.iloc[kept], summary)
        writer.contract.update(_contract(config, rows.iloc[kept], lists, summary), request=request)
        writer.contract.update(embedding_facts(encoder.identity if encoder else None))
        write_failures(writer.folder / "failures.csv", summary.failures)
    return summary


def _match(
    rows: pd.DataFrame, files: Mapping[str, Path], known: Iterable[str], summary: XraySummary
) -> dict[int, Path]:
    """The file of each row: the image of that name, or of that stem in another format."""
    by_stem: dict[str, Path] = {}
    for name, file in files.items():
        by_stem.setdefault(name.split(".")[0], file)
    paths: dict[int, Path] = {}
    for index, image in enumerate(rows["image"]):
        path = files.get(image) or by_stem.get(image.split(".")[0])
        if path is None:
            missing = ImageError("is listed, but no such file was found")
            summary.failures.append(Failure.of(image, "find", missing))
        else:
            paths[index] = path
    stems = {image.split(".")[0] for image in known}
    for name in sorted(files):
        if name.split(".")[0] not in stems:
            stray = CaseError("is an image that no row of the table names")
            summary.failures.append(Failure.of(name, "table", stray))
    if not paths:
        raise CaseError(
            f"none of the {len(rows)} chosen images was found among {len(files)} files; the first"
            f" is {rows['image'].iloc[0]}"
        )
    return paths


def _write_samples(
    writer: StoreWriter,
    rows: pd.DataFrame,
    paths: Mapping[int, Path],
    config: XrayStoreConfig,
    encoder: Encoder | None,
    place: Place,
    summary: XraySummary,
    progress: Progress,
) -> list[int]:
    """Append every image that can be read; the row numbers of those."""
    items = list(paths.items())
    blocks = [items[at : at + _BATCH] for at in range(0, len(items), _BATCH)]
    known = [writer.recorded(_name(block)) for block in blocks]
    done = next((index for index, facts in enumerate(known) if facts is None), len(blocks))
    kept: list[int] = []
    for facts in known[:done]:
        assert facts is not None
        kept += facts["kept"]
        summary.failures += [Failure(**values) for values in facts["failures"]]
    with open_executor(place, shared=writer.folder) as executor:
        read = in_blocks(
            executor,
            _SampleReader(config),
            blocks[done:],
            ahead=place.ahead,
            limits=config.limits,
        )
        for block in blocks[done:]:
            found = [next(read) for _ in block]
            kept += _write_block(writer, rows, found, encoder, summary, _name(block))
            done += 1
            progress("reading radiographs", min(done * _BATCH, len(items)), len(items))
    return kept


def _name(block: Sequence[tuple[int, Path]]) -> str:
    return f"rows {block[0][0]} to {block[-1][0]}"


def _write_block(
    writer: StoreWriter,
    rows: pd.DataFrame,
    found: Sequence[tuple[tuple[int, Path], npt.NDArray[np.uint8] | EsadError]],
    encoder: Encoder | None,
    summary: XraySummary,
    name: str,
) -> list[int]:
    """Append the images of a block that could be read, and record it; their row numbers."""
    failures = [
        Failure.of(str(rows["image"].iloc[index]), "read", sample)
        for (index, _), sample in found
        if isinstance(sample, EsadError)
    ]
    good = [(index, sample) for (index, _), sample in found if not isinstance(sample, EsadError)]
    kept = [index for index, _ in good]
    if good:
        samples = np.stack([sample for _, sample in good])
        writer.append(encoder(samples) if encoder else samples, _store_rows(rows.iloc[kept]))
    summary.failures += failures
    writer.record(name, {"kept": kept, "failures": [asdict(failure) for failure in failures]})
    return kept


@dataclass(frozen=True)
class _SampleReader:
    """Reads blocks of files as samples; picklable, so that workers can."""

    config: XrayStoreConfig

    def __call__(
        self, block: Sequence[tuple[int, Path]]
    ) -> list[npt.NDArray[np.uint8] | EsadError]:
        found = []
        for _, result in on_threads(self._read, block):
            raise_if_interrupted()
            found.append(result)
        return found

    def _read(self, item: tuple[int, Path]) -> npt.NDArray[np.uint8]:
        spec, limits = self.config.xray, self.config.limits
        return prepare_xray(item[1], spec=spec, limits=limits, chain=chain_of(spec)).sample


def _store_rows(rows: pd.DataFrame) -> pd.DataFrame:
    stem = rows["image"].map(lambda name: str(name).split(".")[0])
    return pd.DataFrame(
        {
            "sample_id": stem,
            "case_id": stem,
            "patient_id": rows["patient_id"],
            "split": rows["split"],
            "semi_label": rows["semi_label"],
            "truth": rows["truth"],
            "image": rows["image"],
            "study_id": stem,
            "view": rows["view"],
            "findings": rows["findings"],
            "age": rows["age"],
            "sex": rows["sex"],
        }
    ).reset_index(drop=True)


def _recount(rows: pd.DataFrame, summary: XraySummary) -> None:
    """Counts of what was found and read, in place of what was planned."""
    anomalous, labeled = rows["truth"] == 1, rows["semi_label"] == -1
    train = rows["split"] == "train"
    counts = {
        "train_normal": train & ~anomalous,
        "train_pollution": train & anomalous & ~labeled,
        "train_labeled": train & labeled,
    }
    for split in ("val", "test"):
        here = rows["split"] == split
        counts |= {f"{split}_normal": here & ~anomalous, f"{split}_anomalous": here & anomalous}
    summary.counts |= {name: int(chosen.sum()) for name, chosen in counts.items()}


def _contract(
    config: XrayStoreConfig, rows: pd.DataFrame, lists: Sequence[str], summary: XraySummary
) -> dict[str, Any]:
    return {
        "kind": "radiographs",
        "modality": MODALITY,
        "value_range": list(VALUE_RANGE),
        "mpp": None,
        "view_positions": sorted(rows["view"].unique()),
        "preparation": {"xray": config.xray.model_dump(mode="json")},
        "outliers": config.outliers.model_dump(mode="json"),
        "split": [Path(text.rpartition("=")[2]).name for text in lists] or "by patient",
        "seed": config.seed,
        "counts": summary.counts,
    }


def _request(
    paths: Mapping[int, Path],
    table: Path,
    lists: Sequence[str],
    config: XrayStoreConfig,
    encoder: Encoder | None,
) -> str:
    """Digest of what decides the store; images by name, size and time, not by content."""
    stats = [(path.name, (s := path.stat()).st_size, s.st_mtime_ns) for path in paths.values()]
    sources = [digest_file(table), *(digest_file(Path(t.rpartition("=")[2])) for t in lists)]
    facts = repr((sorted(stats), sources, list(lists)))
    settings = config.model_dump_json(exclude={"limits"})
    digest = str(encoder.identity.digest) if encoder else ""
    return digest_bytes(facts.encode(), settings.encode(), digest.encode())
