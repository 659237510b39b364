"""`esad-med audit`: what is wrong with a store before a detector is trained on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from esad_med.assess.audit import Check, Leak, find_leaks
from esad_med.assess.descriptors import Look
from esad_med.assess.duplicates import Likeness, candidate_pairs, first_of_each, group_pairs
from esad_med.assess.label_next import Choice, choose_to_label
from esad_med.assess.picture_quality import (
    MEASURES,
    QualityFinding,
    QualityRule,
    judge_pictures,
)
from esad_med.assess.pollution import Ranking, RankingRule, rank_pollution, with_detector
from esad_med.base.config import Spec
from esad_med.base.errors import ConfigError
from esad_med.base.runs import Progress, no_progress
from esad_med.base.store import SampleStore
from pipelines.audit_reading import Looks, StoreLooks

Indices = npt.NDArray[np.int64]
_LEAST_CONTRAST = 4.0  # gray levels: flatter pictures are alike whatever they show
_LEAST_RANKED = 20
_LEAST_PX = 8
_SCORED = 256


class CopySpec(Spec):
    """What counts as nearly the same."""

    correlation: float = Field(
        0.95, ge=0.5, le=1, description="Of pixels in the best orientation, at least."
    )
    residual: float = Field(
        0.031, gt=0, le=1, description="Left by brightness and contrast, share of the range."
    )
    row_distance: float = Field(
        0.02, ge=0, description="Of table rows, standard deviations per column, at most."
    )
    search_radius: float = Field(
        0.08, gt=0, le=1, description="Between descriptors, from 0 to 2; wider finds more, slower."
    )
    neighbors: int = Field(8, ge=1, le=100, description="Nearest descriptors compared per sample.")


class QualitySpec(Spec):
    """From where on a picture is blank or blurred."""

    constant_levels: float = Field(
        2, ge=0, le=255, description="Standard deviation of a picture's gray levels, at most."
    )
    blank_share: float = Field(0.95, gt=0, le=1, description="White or black share of tissue.")
    saturated_share: float = Field(0.5, gt=0, le=1, description="The same of other pictures.")
    deviations: float = Field(4, gt=0, description="Robust deviations from the store's median.")


class PollutionSpec(Spec):
    """How unlabeled training samples are ranked."""

    neighbors: int = Field(20, ge=1, le=1000, description="Nearest others averaged over.")
    references: int = Field(20_000, ge=100, description="Others looked at, at most.")
    folds: int = Field(5, ge=2, le=50, description="Parts scored by the other parts.")
    components: int = Field(64, ge=1, le=512, description="Directions kept of the features.")
    listed_share: float = Field(0.1, gt=0, le=1, description="Of the ranking, in pollution.csv.")
    listed_least: int = Field(100, ge=1, description="Rows of pollution.csv, where there are more.")


class AuditConfig(Spec):
    """How a store is audited."""

    look: Literal["auto", "tissue", "upright"] = Field(
        "auto", description="Pictures that may lie any way round, or upright ones."
    )
    copies: CopySpec = CopySpec()
    quality: QualitySpec = QualitySpec()
    pollution: PollutionSpec = PollutionSpec()
    labels: int = Field(20, ge=1, le=1000, description="Samples to label next.")
    shown: int = Field(24, ge=0, le=200, description="Pictures of each kind on the page.")
    seed: int = Field(0, ge=0, description="Decides every random choice.")


@dataclass(frozen=True)
class Copies:
    """Copies within a store.

    Attributes:
        first: for each sample the first one of equal bytes.
        exact: pairs of equal bytes, the first one and each other, (m, 2).
        near: pairs that are nearly the same, the most alike first, (k, 2).
        likeness: of the near ones.
        groups: a number per sample, shared by copies.
    """

    first: Indices
    exact: Indices
    near: Indices
    likeness: Likeness | None
    groups: Indices


@dataclass(frozen=True)
class Pollution:
    """Unlabeled training samples, ranked.

    Attributes:
        rows: of the store, (n,).
        ranking: of them, in the same order.
        detector: a detector's scores of them, in robust deviations, or None.
        rank: 1 for the most suspicious, (n,).
    """

    rows: Indices
    ranking: Ranking
    detector: npt.NDArray[np.float64] | None
    rank: Indices

    def listed(self, spec: PollutionSpec) -> int:
        """How many of the ranking are listed."""
        wanted = max(spec.listed_least, int(spec.listed_share * len(self.rows)))
        return min(len(self.rows), wanted)


@dataclass(frozen=True)
class Audit:
    """All that was found, and what could not be checked."""

    store: SampleStore
    look: Look
    checks: list[Check]
    leaks: list[Leak]
    copies: Copies
    quality: list[QualityFinding]
    pollution: Pollution | None
    to_label: list[Choice]
    detector: str = ""  # digest of the one whose scores count

    @property
    def certain_leaks(self) -> int:
        """Patients, cases and equal samples in two splits; what ``--strict`` is about."""
        return sum(leak.kind != "near copy" for leak in self.leaks)


def audit_store(
    store: SampleStore,
    config: AuditConfig,
    *,
    detector: Path | None = None,
    progress: Progress = no_progress,
) -> Audit:
    """Look for leaks, copies, blank and blurred pictures, pollution, and what to label next.

    The samples are read a few times, in blocks; under half a kilobyte of each stays in memory.

    Args:
        store: the samples.
        config: what counts as a finding.
        detector: folder of one whose scores are to be used, too.
        progress: called while samples are read and compared.

    Raises:
        StoreError: the samples were damaged after they were written.
        ModelError: the detector is damaged, or is of other samples.
        ConfigError: a setting that does not go with this store.
    """
    look = choose_look(store, config)
    model = None if detector is None else _load_detector(detector, store)
    store.verify()
    looks_of = StoreLooks(store, look, components=config.pollution.components, seed=config.seed)
    looks = looks_of.read(progress)
    copies, copy_checks = find_copies(looks_of, looks, config.copies, progress)
    leaks, leak_checks = find_leaks(store.rows, copies.first, copies.near)
    quality, quality_check = _judge(looks, look, config.quality)
    pollution, pollution_check = _rank(store, looks, config, model, progress)
    choices, label_check = _choose(store, looks, copies, quality, pollution, config)
    checks = [*leak_checks, *copy_checks, quality_check, pollution_check, label_check]
    digest = "" if model is None else str(model.digest)
    return Audit(store, look, checks, leaks, copies, quality, pollution, choices, digest)


def choose_look(store: SampleStore, config: AuditConfig) -> Look:
    """Tissue, upright pictures, or table rows: by the contract, or as the settings say.

    Raises:
        ConfigError: ``look`` is set for a store of table rows; pictures of a few pixels.
    """
    if store.samples.ndim == 2:
        if config.look != "auto":
            raise ConfigError(
                f"look: '{config.look}' is for pictures, {store.path} holds table rows; leave it"
                " at auto"
            )
        return "vector"
    height, width = store.samples.shape[1:3]
    if min(height, width) < _LEAST_PX:
        raise ConfigError(
            f"{store.path}: pictures of {width}x{height} pixels, expected at least"
            f" {_LEAST_PX}x{_LEAST_PX}; smaller ones have no texture to compare"
        )
    if config.look != "auto":
        return config.look
    contract = store.contract
    known = str(contract.get("modality") or contract.get("kind") or "")
    return "tissue" if known in ("histology", "tiles") else "upright"


def find_copies(
    looks_of: StoreLooks, looks: Looks, spec: CopySpec, progress: Progress
) -> tuple[Copies, list[Check]]:
    """Pairs of equal bytes, and pairs that are nearly the same."""
    first = first_of_each(looks.digests)
    count = len(first)
    later = np.flatnonzero(first != np.arange(count))
    exact = np.stack([first[later], later], axis=1)
    checks = [Check("exact copies", "done", len(exact))]
    used, note = np.flatnonzero(first == np.arange(count)), ""
    if looks.measures is not None:
        flat = looks.measures[used, MEASURES.index("contrast")] < _LEAST_CONTRAST
        if flat.any():
            note = f"{flat.sum():,} pictures of next to no contrast were not compared"
        used = used[~flat]
    near, likeness = _near_copies(looks_of, looks, used, spec, progress)
    checks.append(Check("near copies", "in part" if note else "done", len(near), note))
    groups = group_pairs(count, np.concatenate([exact, near]))
    return Copies(first, exact, near, likeness, groups), checks


def _near_copies(
    looks_of: StoreLooks, looks: Looks, used: Indices, spec: CopySpec, progress: Progress
) -> tuple[Indices, Likeness | None]:
    vector = looks_of.look == "vector"
    radius = spec.row_distance if vector else spec.search_radius
    kept, parts, done = [], [], 0
    for pairs in candidate_pairs(looks.copies, used, radius=radius, neighbors=spec.neighbors):
        done = min(done + 65_536, len(used))
        progress("comparing candidates", done, len(used))
        if not len(pairs):
            continue
        found = looks_of.compare(pairs)
        near = found.residual <= (spec.row_distance if vector else spec.residual)
        if not vector:
            near &= found.correlation >= spec.correlation
        kept.append(pairs[near])
        parts.append(Likeness(*(part[near] for part in vars(found).values())))
    if not kept or not sum(map(len, kept)):
        return np.empty((0, 2), np.int64), None
    near_pairs, once = np.unique(np.concatenate(kept), axis=0, return_index=True)
    by_name = zip(*(vars(part).values() for part in parts), strict=True)
    whole = [np.concatenate(values) for values in by_name]
    order = np.argsort(whole[1][once], kind="stable")
    return near_pairs[order], Likeness(*(values[once][order] for values in whole))


def _judge(looks: Looks, look: Look, spec: QualitySpec) -> tuple[list[QualityFinding], Check]:
    name = "blank and blurred pictures"
    if looks.measures is None:
        return [], Check(name, "not checked", 0, "the samples are table rows, not pictures")
    rule = QualityRule(**spec.model_dump())
    findings, unclear = judge_pictures(looks.measures, look, rule)
    status: Literal["done", "in part"] = "in part" if unclear else "done"
    return findings, Check(name, status, len(findings), "; ".join(unclear))


def training_rows(store: SampleStore) -> Indices:
    """The rows that `train` would use: of split train, else those without a split."""
    splits = store.rows["split"].to_numpy(object)
    train = np.flatnonzero(splits == "train")
    return train if len(train) else np.flatnonzero(splits == "")


def _rank(
    store: SampleStore, looks: Looks, config: AuditConfig, model: Any, progress: Progress
) -> tuple[Pollution | None, Check]:
    name, rows = "pollution of the unlabeled training samples", training_rows(store)
    marked = np.asarray(store.rows["semi_label"].iloc[rows] == -1, dtype=bool)
    unlabeled, outliers = rows[~marked], rows[marked]
    if len(unlabeled) < _LEAST_RANKED:
        note = f"{len(unlabeled)} unlabeled training samples, expected at least {_LEAST_RANKED}"
        return None, Check(name, "not checked", 0, note)
    groups, unnamed = _groups(store)
    spec = config.pollution
    rule = RankingRule(spec.neighbors, spec.references, spec.folds, config.seed)
    progress("ranking unlabeled samples", 0, 0)
    kinds = looks.kinds
    ranking = rank_pollution(
        kinds[unlabeled], kinds[outliers], groups[unlabeled], groups[outliers], rule
    )
    notes = _notes_of(ranking, len(outliers), unnamed)
    scores = None
    if model is not None:
        scores, ranking, said = _use_detector(model, store, unlabeled, ranking, progress)
        notes.append(said)
    rank = np.empty(len(unlabeled), np.int64)
    rank[np.argsort(-ranking.score, kind="stable")] = np.arange(1, len(unlabeled) + 1)
    found = Pollution(unlabeled, ranking, scores, rank)
    return found, Check(name, "done", found.listed(spec), "; ".join(notes))


def _notes_of(ranking: Ranking, outliers: int, unnamed: bool) -> list[str]:
    notes = ["a ranking, not a verdict: the listed are the highest, whether polluted or not"]
    if ranking.likeness is None:
        found = f"{outliers} labeled outliers" if outliers else "no labeled outliers"
        notes.append(f"{found}: ranked by distance alone, which misses what looks usual")
    else:
        shown = [f"{(1 + w) / 2:.2f}" for w in ranking.weights]
        notes.append(
            f"AUC for the {outliers} labeled outliers: distance {shown[0]}, likeness {shown[1]}"
        )
    if ranking.held_out_by == "sample":
        why = "no patient or case ids" if unnamed else "fewer than five patients or cases"
        notes.append(f"{why}: folds hold out single samples, so alike tiles vouch for each other")
    return notes


def _groups(store: SampleStore) -> tuple[Indices, bool]:
    """A number per row for its patient, else its case, else itself; whether none is named."""
    rows = store.rows
    patient, case = (rows[name].to_numpy(object) for name in ("patient_id", "case_id"))
    keys = [
        f"p {p}" if p else f"c {c}" if c else f"r {i}"
        for i, (p, c) in enumerate(zip(patient, case, strict=True))
    ]
    found = np.unique(np.array(keys, dtype=object).astype(str), return_inverse=True)[1]
    return found.astype(np.int64), not any(patient) and not any(case)


def _load_detector(folder: Path, store: SampleStore) -> Any:
    from esad_med.method.detector import Detector

    model = Detector.load(folder)
    model.check_store(store)
    return model


def _use_detector(
    model: Any, store: SampleStore, rows: Indices, ranking: Ranking, progress: Progress
) -> tuple[npt.NDArray[np.float64], Ranking, str]:
    """The detector's scores of the rows, a ranking that counts them, and what is to be said."""

    def batches() -> Any:
        for start in range(0, len(rows), _SCORED):
            yield store.samples[rows[start : start + _SCORED]]
            progress("scoring", min(start + _SCORED, len(rows)), len(rows))

    scores = np.asarray(model.score(batches()).score, np.float64)
    trained_here = model.contract.training.data_digest == store.digest
    said = "the detector's scores count as much as the audit's own"
    if trained_here:
        said += (
            "; it was trained on this very store, pollution included, so it may have learned to"
            " take it for normal"
        )
    standing, joined = with_detector(ranking, scores)
    return standing, joined, said


def _choose(
    store: SampleStore,
    looks: Looks,
    copies: Copies,
    quality: list[QualityFinding],
    pollution: Pollution | None,
    config: AuditConfig,
) -> tuple[list[Choice], Check]:
    name = "samples to label next"
    if pollution is None:
        return [], Check(name, "not checked", 0, "there is no ranking to choose from")
    rows, note = pollution.rows, ""
    unknown = np.array(store.rows["truth"].iloc[rows].isna(), dtype=bool)
    if not unknown.any():
        note = "every sample has a truth already: these are the ones to look at again"
        unknown[:] = True
    blank = [one.index for one in quality if one.finding != "blurred"]  # no label helps there
    unknown &= ~np.isin(rows, blank)
    cases = _groups(store)[0]
    choices = choose_to_label(
        looks.kinds[rows],
        pollution.ranking,
        np.flatnonzero(unknown),
        cases[rows],
        copies.groups[rows],
        count=config.labels,
        seed=config.seed,
    )
    return choices, Check(name, "done", len(choices), note)
