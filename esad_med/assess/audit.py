"""What an audit says of a check; patients, cases and samples that stand in two splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

Status = Literal["done", "in part", "not checked"]


@dataclass(frozen=True)
class Check:
    """Whether something was checked, and why not where it was not.

    Attributes:
        name: what, such as "patients across splits".
        status: done, in part, not checked.
        found: how many findings.
        note: the reason, or what the reader should know; may be empty.
    """

    name: str
    status: Status
    found: int
    note: str = ""


@dataclass(frozen=True)
class Leak:
    """A patient, case or sample that stands in more than one split.

    Attributes:
        kind: "patient", "case", "sample" (equal bytes) or "near copy".
        splits: which, in order.
        rows: of the store, in order; of a near copy both.
    """

    kind: str
    splits: tuple[str, ...]
    rows: tuple[int, ...]


_NAMES = {"patient": "patients", "case": "cases"}


def find_leaks(
    rows: pd.DataFrame,
    first: npt.NDArray[np.int64],
    near: npt.NDArray[np.int64],
) -> tuple[list[Leak], list[Check]]:
    """What stands in more than one split.

    Rows without a split are left out: nothing is known of what they will be used for.

    Args:
        rows: of the store.
        first: for each row the first one of equal bytes.
        near: pairs of near copies, (m, 2).
    """
    splits = rows["split"].to_numpy(object)
    named = splits != ""
    kinds = sorted(set(splits[named]))
    if len(kinds) < 2:
        found = f"only split '{kinds[0]}'" if kinds else "no splits"
        note = f"{found} in samples.csv, so nothing can cross them"
        names = [*(f"{n} across splits" for n in _NAMES.values()), "copies across splits"]
        return [], [Check(name, "not checked", 0, note) for name in names]
    left_out = f"{(~named).sum():,} rows have no split and are left out" if (~named).any() else ""
    leaks, checks = [], []
    for kind, name in _NAMES.items():
        ids = rows[f"{kind}_id"].to_numpy(object)
        known = named & (ids != "")
        title, missing = f"{name} across splits", int((named & (ids == "")).sum())
        if not known.any():
            checks.append(Check(title, "not checked", 0, f"no {kind} ids in samples.csv"))
            continue
        found_here = _crossing(kind, pd.factorize(ids)[0], splits, known)
        leaks += found_here
        gaps = [f"{missing:,} rows have no {kind} id"] * (missing > 0) + [left_out] * bool(left_out)
        status: Status = "in part" if gaps else "done"
        checks.append(Check(title, status, len(found_here), "; ".join(gaps)))
    copies = _crossing("sample", first, splits, named)
    apart = [(int(i), int(j)) for i, j in near if splits[i] != splits[j] and named[i] and named[j]]
    copies += [Leak("near copy", tuple(sorted({splits[i], splits[j]})), (i, j)) for i, j in apart]
    checks.append(
        Check("copies across splits", "in part" if left_out else "done", len(copies), left_out)
    )
    return leaks + copies, checks


def _crossing(
    kind: str,
    keys: npt.NDArray[np.int64],
    splits: npt.NDArray[np.object_],
    used: npt.NDArray[np.bool_],
) -> list[Leak]:
    table = pd.DataFrame({"key": keys[used], "split": splits[used], "row": np.flatnonzero(used)})
    pairs = table.drop_duplicates(["key", "split"])
    twice = pairs["key"][pairs["key"].duplicated()].unique()
    leaks = []
    for _, part in table[table["key"].isin(twice)].groupby("key", sort=False):
        where: Sequence[str] = sorted(part["split"].unique())
        leaks.append(Leak(kind, tuple(where), tuple(int(row) for row in part["row"])))
    return leaks
