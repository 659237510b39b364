"""The stores of Camelyon16 and NIH's radiographs: made once of the raw data, before the first run.

OUT/stores/NAME   a SampleStore per data set; it appears only when it is complete
"""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.public import DPA_TARGET, find_camelyon_slide, read_dpa_list
from esad_med.base.config import build_spec
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.runs import Progress, Say
from esad_med.base.store import SampleStore
from pipelines.cells import tile_cells
from pipelines.paper.settings import MEDICAL, BenchmarkConfig
from pipelines.pathology import load_target
from pipelines.xray_store import XrayStoreConfig, make_xray_store, plan_xray_store

#: Called with the store's folder and ``progress``; returns a summary that says what it holds.
Maker = Callable[..., object]

#: Where the lists lie below ``ESAD_DATA``.
_LISTS = {"camelyon16": ("splits_dpa/camelyon16",), "nih": ("nih_lists", "splits_dpa/nih")}
_CELLS = ("normal_train", "labelled_outlier_train200", "normal_test", "anomaly_test")
_OFFICIAL = ("train_val_list", "test_list")
_SUBSET = (
    *("subset_normal_train", "train=subset_normal_val", "train=subset_anomaly_val"),
    *("subset_normal_test", "subset_anomaly_test"),
)
#: The lists of each set of radiographs, and what is chosen of them beside the defaults of `xray`:
#: a quarter of the images with Infiltration alone; in the clear subset all listed anomalies.
_XRAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "nih-subset": (_SUBSET, {"view": "any", "outliers": {"finding": "any", "fraction": 1}}),
    "nih-pa": (_OFFICIAL, {"view": "PA"}),
    "nih-ap": (_OFFICIAL, {"view": "AP"}),
}


def stores_folder(out: Path) -> Path:
    """Where the stores of a benchmark lie."""
    return out / "stores"


def missing_stores(out: Path, data_sets: Iterable[str]) -> list[str]:
    """The data sets that must be prepared first, each once."""
    return [
        name
        for name in dict.fromkeys(data_sets)
        if name in MEDICAL and not (stores_folder(out) / name / "store.json").exists()
    ]


def find_makers(names: Iterable[str], root: Path, config: BenchmarkConfig) -> dict[str, Maker]:
    """Find what each store is made of; no picture is read, and nothing is written.

    Args:
        names: of the data sets.
        root: the folder of the raw data.
        config: lists, table, stain target, settings of the cells.

    Returns:
        By data set, what makes its store.

    Raises:
        ConfigError: lists, table or slides are not there.
        CaseError: a list that cannot be read.
    """
    return {
        name: _cells_maker(root, config)
        if name == "camelyon16"
        else _xray_maker(name, root, config)
        for name in names
    }


def make_stores(makers: Mapping[str, Maker], folder: Path, *, say: Say, progress: Progress) -> None:
    """Make the stores one after the other; an interrupted one leaves nothing, and is made again.

    Args:
        makers: of `find_makers`.
        folder: where the stores lie.
        say: called with what each store holds, and what was set aside.
        progress: called while pictures are read.

    Raises:
        CaseError: no picture could be used.
    """
    for name, make in makers.items():
        say(f"{name}: making its samples, once")
        summary = make(folder / name, progress=progress)
        say(f"{summary}\n  {describe_store(SampleStore(folder / name))}")


def store_sizes(out: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Normal training samples of each store that is there, and the shape of one.

    Raises:
        StoreError: a damaged store.
    """
    stores = (SampleStore(file.parent) for file in stores_folder(out).glob("[!.]*/store.json"))
    return {
        store.path.name: (
            int(((store.rows["split"] == "train") & (store.rows["semi_label"] == 1)).sum()),
            store.samples.shape[1:],
        )
        for store in stores
    }


def describe_store(store: SampleStore) -> str:
    """How many samples a store has, which (SHA-256) and what was set aside.

    It stands beside every result (`Result.source`), and tells results of other samples apart.
    """
    counts = count_set_aside(store.path)
    listed = len(store) + counts["find"] + counts["read"]
    labeled = int(((store.rows["semi_label"] == -1) & (store.rows["split"] == "train")).sum())
    facts = {
        f"{counts['find']} of {listed} listed images are not in the folder": counts["find"],
        f"{counts['read']} images could not be read": counts["read"],
        f"{counts['table']} images or list entries are in no row of the table": counts["table"],
        f"{counts['cell']} listed cells could not be used": counts["cell"],
        "no labeled outlier among them": not labeled,
    }
    told = [
        f"{len(store)} samples, {store.digest[:12]}",
        *(fact for fact, holds in facts.items() if holds),
    ]
    return f"{store.path.name} ({'; '.join(told)})"


def count_set_aside(store: Path) -> Counter[str]:
    """What was set aside when a store was made, by the stage that failed."""
    file = store / "failures.csv"
    if not file.exists():
        return Counter()
    with file.open(encoding="utf-8", newline="") as lines:
        return Counter(row["stage"] for row in csv.DictReader(lines))


def _cells_maker(root: Path, config: BenchmarkConfig) -> Maker:
    folders = _list_folders(config)
    files = [_find_list(folders, name) for name in _CELLS]
    slides = dict.fromkeys(cell.slide for file in files for cell in read_dpa_list(file))
    if not any(_has_slide(root, name) for name in slides):
        raise ConfigError(
            f"{root}: holds none of the {len(slides)} listed slides, such as {next(iter(slides))};"
            " pass --data FOLDER, the one with Camelyon16's training/ and testing/"
        )
    if config.target is None and not _has_slide(root, DPA_TARGET.slide):
        raise ConfigError(
            f"{root}: has no slide {DPA_TARGET.slide}, whose stain is the protocol's target; add"
            " it, or name another target with --set target=FILE"
        )
    target = load_target(config.target, config.cells.stain) if config.target else None
    return partial(
        tile_cells,
        *(root, files),
        config=config.cells,
        target=target,
        say=lambda _: None,  # a line per cell; failures.csv has them
    )


def _has_slide(root: Path, name: str) -> bool:
    try:
        return find_camelyon_slide(root, name).is_file()
    except CaseError:
        return False


def _xray_maker(name: str, root: Path, config: BenchmarkConfig) -> Maker:
    folders = _list_folders(config)
    names, settings = _XRAYS[name]
    lists = []
    for text in names:
        split, equals, stem = text.rpartition("=")
        lists.append(f"{split}{equals}{_find_list(folders, stem)}")
    chosen = build_spec(XrayStoreConfig, settings, source=name)
    table = config.table or _find_table(folders)
    plan_xray_store(table, lists, chosen)  # a damaged list is found before anything is made
    return partial(make_xray_store, [root], table, config=chosen, lists=lists)


def _list_folders(config: BenchmarkConfig) -> list[Path]:
    """Where lists are looked for.

    Raises:
        ConfigError: none given and no ``ESAD_DATA``, or no such folder.
    """
    root = os.environ.get("ESAD_DATA")
    if not config.lists and not root:
        raise ConfigError(
            f"lists of {config.suite}: not given; pass --set lists=FOLDER, or set ESAD_DATA to a"
            f" folder that holds {' and '.join(_LISTS[config.suite])}"
        )
    folders = list(config.lists) or [Path(str(root)) / name for name in _LISTS[config.suite]]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; pass --set lists=FOLDER")
    return folders


def _find_list(folders: list[Path], name: str) -> Path:
    places = [folder / f"{name}{suffix}" for folder in folders for suffix in (".txt", ".txt.gz")]
    return _first(places, f"list {name}.txt or {name}.txt.gz", folders, "lists=FOLDER")


def _find_table(folders: list[Path]) -> Path:
    places = [path for folder in folders for path in sorted(folder.glob("Data_Entry_2017*.csv*"))]
    return _first(places, "table Data_Entry_2017*.csv", folders, "table=FILE")


def _first(places: list[Path], what: str, folders: list[Path], remedy: str) -> Path:
    for path in places:
        if path.is_file():
            return path
    looked = ", ".join(map(str, folders))
    raise ConfigError(f"{looked}: no {what}; pass --set {remedy}")
