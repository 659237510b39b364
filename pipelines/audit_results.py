"""What an audit writes: audit.json, a CSV per kind of finding, and the page."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from esad_med.assess.duplicates import ORIENTATIONS
from esad_med.base.config import dump_yaml
from esad_med.base.errors import ConfigError
from esad_med.base.locks import hold_output
from esad_med.base.runs import (
    atomic_folder,
    output_error,
    versions,
    write_csv,
    write_json,
    write_text,
)
from esad_med.outputs.audit_page import write_audit_page
from pipelines.audit_report import (
    describe_sample,
    labels_differ,
    listed_places,
    make_page,
    reason_for,
    two_splits,
)
from pipelines.auditing import Audit, AuditConfig

INTENDED_USE = "research use only, not for diagnosis"
_RESULT = "audit.json"
_SAMPLE = ("sample_id", "case_id", "split")


def refuse_other_content(out: Path) -> None:
    """Refuse a folder that holds something else than an audit.

    Raises:
        ConfigError: it does, or is a file, or cannot be looked into.
    """
    try:
        used = out.exists() and (not out.is_dir() or any(out.iterdir()))
        if used and not (out / _RESULT).exists():
            raise ConfigError(f"{out}: exists and is no result of `audit`; choose another --out")
    except OSError as error:
        raise output_error(out, error) from error


def write_audit(out: Path, audit: Audit, config: AuditConfig) -> None:
    """Write the folder in one piece, in the place of an earlier audit.

    Args:
        out: the folder.
        audit: what was found.
        config: what it was asked for.

    Raises:
        ConfigError: it holds something else, cannot be written, or another run is at work there.
    """
    refuse_other_content(out)
    with hold_output(out), atomic_folder(out) as folder:
        tables = {
            "leaks": (_LEAK_COLUMNS, _leak_rows(audit)),
            "duplicates": (_COPY_COLUMNS, _copy_rows(audit)),
            "quality": ((*_SAMPLE, "finding", "value", "limit"), _quality_rows(audit)),
            "pollution": (_POLLUTION_COLUMNS, _pollution_rows(audit, config)),
            "label_next": (("order", *_SAMPLE, "rank", "score", "reason"), _label_rows(audit)),
        }
        for name, (columns, rows) in tables.items():
            write_csv(folder / f"{name}.csv", columns, rows)
        write_text(folder / "config.yaml", dump_yaml(config))
        write_audit_page(folder / "audit.html", make_page(audit, config))
        summary = {**summarize(audit), "detector": audit.detector or None, "versions": versions()}
        write_json(folder / _RESULT, {**summary, "intended_use": INTENDED_USE})


def summarize(audit: Audit) -> dict[str, Any]:
    """The audit in plain values, for ``audit.json`` and ``--json``."""
    pollution, store = audit.pollution, audit.store
    summary: dict[str, Any] = {
        "store": str(store.path),
        "store_digest": store.digest,
        "samples": len(store),
        "look": audit.look,
        "checks": [vars(check) for check in audit.checks],
        "leaks": dict(Counter(leak.kind for leak in audit.leaks)),
        "exact_copies": len(audit.copies.exact),
        "near_copies": len(audit.copies.near),
        "quality": dict(Counter(one.finding for one in audit.quality)),
        "pollution": None,
        "label_next": len(audit.to_label),
    }
    if pollution is not None:
        ranking = pollution.ranking
        summary["pollution"] = {
            "ranked": len(pollution.rows),
            "held_out_by": ranking.held_out_by,
            "weight_distance": round(ranking.weights[0], 4),
            "weight_likeness": round(ranking.weights[1], 4),
        }
    return summary


def lines_of(audit: Audit) -> list[str]:
    """The audit for people: a line per check."""
    width = max(len(check.name) for check in audit.checks)
    lines = [f"{len(audit.store):,} samples"]
    for check in audit.checks:
        found = "not checked" if check.status == "not checked" else f"{check.found:,} found"
        if check.name in _LISTS:
            found = found.replace("found", "listed")
        note = f" ({check.note})" if check.note else ""
        part = ", in part" if check.status == "in part" else ""
        lines.append(f"  {check.name:<{width}}  {found}{part}{note}")
    return lines


_LISTS = ("pollution of the unlabeled training samples", "samples to label next")
_LEAK_COLUMNS = (
    *("kind", "id", "splits", "samples"),
    *(f"{name}_{side}" for side in "ab" for name in _SAMPLE),
)
_COPY_COLUMNS = (
    *("kind", "group", "residual", "correlation", "orientation", "labels_differ"),
    *(f"{name}_{side}" for side in "ab" for name in _SAMPLE),
)
_POLLUTION_COLUMNS = (
    *("rank", "sample_id", "case_id", "score", "distance", "likeness", "detector"),
    *("copies", "quality"),
)


def _leak_rows(audit: Audit) -> Iterator[tuple[object, ...]]:
    for leak in audit.leaks:
        one, other = two_splits(audit, leak)
        named = f"{leak.kind}_id" if leak.kind in ("patient", "case") else ""
        name = str(audit.store.rows[named].iloc[one]) if named else ""
        shown = (*describe_sample(audit, one), *describe_sample(audit, other))
        yield leak.kind, name, "|".join(leak.splits), len(leak.rows), *shown


def _copy_rows(audit: Audit) -> Iterator[tuple[object, ...]]:
    copies = audit.copies
    for one, other in copies.exact.tolist():
        differs = int(labels_differ(audit, one, other))
        shown = (*describe_sample(audit, one), *describe_sample(audit, other))
        yield "exact", copies.groups[one], 0.0, 1.0, "as it is", differs, *shown
    if (found := copies.likeness) is None:
        return
    for index, (one, other) in enumerate(copies.near.tolist()):
        pictures = audit.look != "vector"
        correlation = f"{found.correlation[index]:.4f}" if pictures else ""
        turned = ORIENTATIONS[found.orientation[index]] if pictures else ""
        residual = f"{found.residual[index]:.5f}"
        differs = int(labels_differ(audit, one, other))
        shown = (*describe_sample(audit, one), *describe_sample(audit, other))
        yield "near", copies.groups[one], residual, correlation, turned, differs, *shown


def _quality_rows(audit: Audit) -> Iterator[tuple[object, ...]]:
    for one in audit.quality:
        numbers = f"{one.value:.4f}", f"{one.limit:.4f}"
        yield *describe_sample(audit, one.index), one.finding, *numbers


def _pollution_rows(audit: Audit, config: AuditConfig) -> Iterator[tuple[object, ...]]:
    if (pollution := audit.pollution) is None:
        return
    groups = audit.copies.groups
    sizes = np.bincount(groups)
    quality = {one.index: one.finding for one in audit.quality}
    for place in listed_places(audit, config):
        row = int(pollution.rows[place])
        terms = (pollution.ranking.likeness, pollution.detector)
        known = ["" if term is None else f"{term[place]:.4f}" for term in terms]
        own = f"{pollution.ranking.score[place]:.4f}", f"{pollution.ranking.distance[place]:.4f}"
        name, others = describe_sample(audit, row)[:2], int(sizes[groups[row]] - 1)
        found = others, quality.get(row, "")
        yield int(pollution.rank[place]), *name, *own, *known, *found


def _label_rows(audit: Audit) -> Iterator[tuple[object, ...]]:
    if (pollution := audit.pollution) is None:
        return
    for order, choice in enumerate(audit.to_label, start=1):
        place = choice.index
        name = describe_sample(audit, int(pollution.rows[place]))
        score = f"{pollution.ranking.score[place]:.4f}"
        yield order, *name, int(pollution.rank[place]), score, reason_for(pollution, choice)
