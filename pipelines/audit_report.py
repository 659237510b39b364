"""The page of an audit: its findings in words and thumbnails."""

import datetime
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from esad_med.assess.audit import Check, Leak
from esad_med.assess.descriptors import to_bytes
from esad_med.assess.duplicates import ORIENTATIONS
from esad_med.assess.label_next import Choice
from esad_med.base.runs import versions
from esad_med.outputs.audit_page import AuditPage, Card, CheckLine, Section, thumbnail
from pipelines.auditing import Audit, AuditConfig, Pollution

_LEAKS_SHOWN = 6  # of each kind


def describe_sample(audit: Audit, index: int) -> tuple[str, str, str]:
    """A row's sample, case and split."""
    row = audit.store.rows.iloc[index]
    return str(row["sample_id"]), str(row["case_id"]), str(row["split"])


def two_splits(audit: Audit, leak: Leak) -> tuple[int, int]:
    """Two rows of a leak that stand in different splits."""
    splits = audit.store.rows["split"].to_numpy(object)
    one = leak.rows[0]
    return one, next(row for row in leak.rows if splits[row] != splits[one])


def labels_differ(audit: Audit, one: int, other: int) -> bool:
    """Whether two rows say different things: their semi-labels, or their truths where both do."""
    marks = audit.store.rows["semi_label"].iloc[[one, other]]
    truths = audit.store.rows["truth"].iloc[[one, other]].dropna()
    return marks.nunique() > 1 or truths.nunique() > 1


def listed_places(audit: Audit, config: AuditConfig) -> list[int]:
    """Places in the ranking of those that are listed, the most suspicious first."""
    if (pollution := audit.pollution) is None:
        return []
    return [int(i) for i in np.argsort(pollution.rank)[: pollution.listed(config.pollution)]]


def reason_for(pollution: Pollution, choice: Choice) -> str:
    """Why a sample is to be labeled, in words."""
    rank = int(pollution.rank[choice.index])
    of = f"rank {rank:,} of {len(pollution.rows):,}"
    ranking = pollution.ranking
    if choice.contested and ranking.likeness is not None:
        far = _above(ranking.distance, choice.index)
        alike = _above(ranking.likeness, choice.index)
        return (
            f"{of}: farther from the usual than {far:.0f} %, more like the labeled outliers than"
            f" {alike:.0f} %: the two disagree"
        )
    if choice.alike > 1:
        return f"{of}: stands for {choice.alike} suspicious ones like it"
    return f"{of}: no other suspicious one is like it"


def _above(values: Any, index: int) -> float:
    """Share of the others below, in percent, rounded down."""
    return float(np.floor(100 * (values < values[index]).mean()))


def make_page(audit: Audit, config: AuditConfig) -> AuditPage:
    """Everything the page shows; thumbnails are read from the store."""
    pictures = _Pictures(audit)
    store, look = audit.store, audit.look
    kinds = {"tissue": "tiles", "upright": "pictures", "vector": "table rows"}
    shape = " x ".join(str(side) for side in store.samples.shape[1:])
    cases = len(set(store.rows["case_id"]) - {""})
    facts = f"{len(store):,} {kinds[look]} of {shape}" + (f", {cases:,} cases" if cases else "")
    today = datetime.date.today().isoformat()
    provenance = {
        "Store (SHA-256 of the samples)": store.digest,
        "Detector": audit.detector or "none: the audit's own ranking",
        "Seed": str(config.seed),
        "esad-med": versions()["esad-med"],
    }
    return AuditPage(
        name=store.path.resolve().name,
        facts=f"{today} · {facts}",
        figures=_figures(audit),
        checks=tuple(CheckLine(c.name, c.status, c.found, c.note) for c in audit.checks),
        leaks=tuple(_leak_table(audit)),
        leaks_found=len(audit.leaks),
        sections=(
            _copy_section(audit, config, pictures),
            _quality_section(audit, config, pictures),
            _pollution_section(audit, config, pictures),
            _label_section(audit, pictures),
        ),
        provenance=provenance,
        created=f"Made on {today}.",
    )


class _Pictures:
    """Thumbnails of the store's samples; none of table rows."""

    def __init__(self, audit: Audit) -> None:
        self._store, self._none = audit.store, audit.look == "vector"

    def __call__(self, *rows: int) -> tuple[str, ...]:
        if self._none:
            return ()
        found = to_bytes(self._store.samples[list(rows)], self._store.value_range)
        return tuple(thumbnail(picture) for picture in found)


def _figures(audit: Audit) -> tuple[tuple[str, str, str, bool], ...]:
    copies = len(audit.copies.exact) + len(audit.copies.near)
    ranked = 0 if audit.pollution is None else len(audit.pollution.rows)
    unsure = _how_far([check for check in audit.checks if check.name.endswith("across splits")])
    quality, blank = len(audit.quality), audit.look != "vector"
    return (
        ("Leaks", f"{len(audit.leaks):,}", f"between splits{unsure}", bool(audit.leaks)),
        ("Copies", f"{copies:,}", f"{len(audit.copies.exact):,} of them exact", copies > 0),
        ("Blank or blurred", f"{quality:,}" if blank else "–", "by the store's own measure", False),
        ("Ranked", f"{ranked:,}", "unlabeled training samples, by suspicion", False),
    )


def _how_far(checks: list[Check]) -> str:
    """What to say of checks beside their number, so that 0 is not taken for more than it is."""
    states = Counter(check.status for check in checks)
    if states["not checked"]:
        return f"; {states['not checked']} of {len(checks)} checks could not be made"
    return "; checked in part only" if states["in part"] else ""


def _why_nothing(audit: Audit, name: str) -> str:
    """Why a section is empty, where its check was not made."""
    check = next(check for check in audit.checks if check.name == name)
    return f"Not checked: {check.note}." if check.status == "not checked" else ""


def _leak_table(audit: Audit) -> Iterator[dict[str, str]]:
    often: Counter[str] = Counter()
    for leak in audit.leaks:
        often[leak.kind] += 1
        if often[leak.kind] > _LEAKS_SHOWN:
            continue
        one, other = (describe_sample(audit, row) for row in two_splits(audit, leak))
        cases = " | ".join(dict.fromkeys(case or "unknown" for _, case, _ in (one, other)))
        yield {  # whose they are stays in leaks.csv
            "What": leak.kind,
            "Splits": " | ".join(leak.splits),
            "Samples": f"{len(leak.rows):,}",
            "For example": f"{one[0]} | {other[0]}",
            "Case": cases,
        }


def _copy_section(audit: Audit, config: AuditConfig, pictures: _Pictures) -> Section:
    copies, cards = audit.copies, []
    splits = audit.store.rows["split"].to_numpy(object)
    exact = [(one, other, -1) for one, other in copies.exact.tolist()]
    near = [(one, other, i) for i, (one, other) in enumerate(copies.near.tolist())]
    for pairs in (exact, near):  # those that cross splits first
        pairs.sort(key=lambda pair: splits[pair[0]] == splits[pair[1]])
    shown = near[: max(config.shown - len(exact), (config.shown + 1) // 2)]
    for one, other, index in exact[: config.shown - len(shown)] + shown:
        (name, case, split), (other_name, other_case, other_split) = (
            describe_sample(audit, row) for row in (one, other)
        )
        facts = {"first": name, "second": other_name}
        if case != other_case:
            facts["cases"] = f"{case or 'unknown'} | {other_case or 'unknown'}"
        found = copies.likeness
        if index >= 0 and found is not None and audit.look != "vector":
            facts["lies"] = ORIENTATIONS[found.orientation[index]]
            facts["left over"] = f"{100 * found.residual[index]:.2f} % of the range"
        elif index >= 0 and found is not None:
            facts["apart"] = f"{found.residual[index]:.4f} sd per column"
        warns = [f"{split or 'no split'} | {other_split or 'no split'}"] * (split != other_split)
        warns += ["labels differ"] * labels_differ(audit, one, other)
        title = "near copy" if index >= 0 else "exact copy"
        cards.append(Card(pictures(one, other), title, facts, ", ".join(warns)))
    explain = (
        "Samples of equal bytes, and pairs that agree once they are turned, mirrored and matched in"
        " brightness; what is left between them is noise such as JPEG's. Those across splits first."
        if audit.look != "vector"
        else "Rows of equal bytes, and rows next to each other in every column."
    )
    found_all = len(exact) + len(near)
    return Section("copies", "Copies", explain, found_all, "duplicates.csv", tuple(cards))


def _quality_section(audit: Audit, config: AuditConfig, pictures: _Pictures) -> Section:
    cards = []
    by_kind: dict[str, list[int]] = {}
    for place, one in enumerate(audit.quality):
        by_kind.setdefault(one.finding, []).append(place)
    each = -(-config.shown // max(1, len(by_kind)))
    for places in by_kind.values():
        for place in places[:each]:
            one = audit.quality[place]
            name, case, _ = describe_sample(audit, one.index)
            facts = {"sample": name} | ({"case": case} if case else {})
            facts |= {one.measure: f"{one.value:.2f}", "limit": f"{one.limit:.2f}"}
            cards.append(Card(pictures(one.index), one.finding, facts))
    note = _why_nothing(audit, "blank and blurred pictures")
    explain = (
        "Pictures without content, and those whose detail is far coarser than the store's own. A"
        " blurred look may also be what the tissue is like: look before leaving it out."
    )
    title, found = "Blank and blurred", len(audit.quality)
    return Section("quality", title, explain, found, "quality.csv", tuple(cards), note)


def _pollution_section(audit: Audit, config: AuditConfig, pictures: _Pictures) -> Section:
    cards, pollution = [], audit.pollution
    listed = listed_places(audit, config)
    for place in listed[: config.shown]:
        assert pollution is not None
        row, ranking = int(pollution.rows[place]), pollution.ranking
        name, case, _ = describe_sample(audit, row)
        facts = {"sample": name} | ({"case": case} if case else {})
        facts["distance"] = f"{ranking.distance[place]:.2f}"
        if ranking.likeness is not None:
            facts["likeness"] = f"{ranking.likeness[place]:.2f}"
        if pollution.detector is not None:
            facts["detector"] = f"{pollution.detector[place]:.2f}"
        cards.append(Card(pictures(row), f"rank {pollution.rank[place]}", facts))
    note = _why_nothing(audit, "pollution of the unlabeled training samples")
    explain = (
        "Unlabeled training samples most likely to be anomalies: how far each lies from the usual,"
        " and how like the labeled outliers it is, in deviations above the median, judged by parts"
        " of the store that do not hold it. The order is a suggestion where to look first."
    )
    title = "Likely pollution"
    return Section("pollution", title, explain, len(listed), "pollution.csv", tuple(cards), note)


def _label_section(audit: Audit, pictures: _Pictures) -> Section:
    cards, pollution = [], audit.pollution
    for order, choice in enumerate(audit.to_label, start=1):
        assert pollution is not None
        row = int(pollution.rows[choice.index])
        name, case, _ = describe_sample(audit, row)
        facts = {"sample": name} | ({"case": case} if case else {})
        facts["why"] = reason_for(pollution, choice)
        cards.append(Card(pictures(row), f"{order}", facts))
    note = _why_nothing(audit, "samples to label next")
    explain = (
        "The labels that would say most: suspicious samples of as many kinds and cases as possible,"
        " no two of them copies, and some on which distance and likeness disagree."
    )
    title, count = "Label next", len(cards)
    return Section("label-next", title, explain, count, "label_next.csv", tuple(cards), note)
