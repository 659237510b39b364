"""The settings of a benchmark: suites, methods, and what the paper's protocol says of them."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data_prep.odds import ODDS
from esad_med.base.config import Spec
from esad_med.baselines.catalog import BASELINES
from pipelines.cells import CellConfig

SuiteName = Literal["odds", "mnist", "fmnist", "cifar10", "camelyon16", "nih"]
TableName = Literal[
    "table1", "table2", "table3", "table4", "table5", "table8", "table9", "fig2", "fig5"
]
ESAD = ("esad-paper", "esad-recommended")
METHODS = (*ESAD, *BASELINES)
#: They learn nothing from labeled outliers, so one run serves every γl and every outlier class.
UNSUPERVISED = (
    *("oc-svm", "oc-svm-hybrid", "isolation-forest", "isolation-forest-hybrid"),
    *("cae", "deep-svdd", "deep-svdd-soft"),
)
#: They learn nothing without labeled outliers.
NEEDS_LABELS = ("ss-dgm-m2", "ss-dgm-m1m2", "supervised")

_RATIOS = (0.0, 0.01, 0.05, 0.1, 0.2)
CLASSES = tuple(range(10))
#: Suites whose classes are normal in turn.
NATURAL = ("mnist", "fmnist", "cifar10")
_NATURAL: dict[str, Any] = {"tables": ("table1", "table2", "table8", "table9"), "seeds": (0,)}
_MEDICAL: dict[str, Any] = {"tables": ("table3",), "seeds": (0, 1, 2)}
#: Data sets of Table 3 and their γl: 200 labeled outliers beside 7612 normals, 857 beside 5110,
#: 1180 beside 34497, 651 beside 16003.
MEDICAL = {"camelyon16": 0.026, "nih-subset": 0.144, "nih-pa": 0.033, "nih-ap": 0.039}

#: What a suite changes of the defaults below: the paper's protocol (docs/method.md).
SUITES: dict[str, dict[str, Any]] = {
    "odds": {
        "tables": ("table4", "table5"),
        "data_sets": ODDS,
        "seeds": tuple(range(10)),
        "gamma_l": (0.01,),
    },
    **{name: {**_NATURAL, "data_sets": (name,)} for name in NATURAL},
    "camelyon16": {**_MEDICAL, "data_sets": ("camelyon16",)},
    "nih": {**_MEDICAL, "data_sets": ("nih-subset", "nih-pa", "nih-ap")},
}
#: The tables a suite has, beyond those it makes unasked.
_MORE_TABLES = {"mnist": ("fig2", "fig5")}
#: What a suite changes of ESAD's presets; the user's settings go over it.
ESAD_SETTINGS: dict[str, dict[str, Any]] = {
    "odds": {"kind": "vector"},
    **{name: {"kind": "upright"} for name in NATURAL},
    # DPA, whose protocol the paper follows, flips its crops (configs/paper/camelyon16.yaml).
    "camelyon16": {"augment": {"flips": True}},
    # A chest stands upright and its heart on the left (configs/chest_xray.yaml).
    "nih": {"augment": {"rotations": False, "flips": False}},
}
#: Deep SAD's networks for small images, and those of its generative competitor; medical images
#: get those of CIFAR-10.
IMAGE_NETWORKS: dict[str, dict[str, Any]] = {
    "mnist": {"channels": (8, 4), "dense": (32,), "dgm_latent": 32, "dgm_hidden": (128, 64)},
    "fmnist": {
        "channels": (16, 32),
        "dense": (128, 64),
        "dgm_latent": 64,
        "dgm_hidden": (256, 128),
    },
    "cifar10": {
        "channels": (32, 64, 128),
        "dense": (128,),
        "dgm_latent": 128,
        "dgm_hidden": (512, 256),
    },
}
#: Settings that only some suites have.
_OF_SUITES = {
    "lists": ("camelyon16", "nih"),
    "table": ("nih",),
    "target": ("camelyon16",),
    "cells": ("camelyon16",),
}

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class PaperCells(CellConfig):
    """As `tile --protocol dpa` makes them, but the paper counts one sample per cell."""

    crops_per_cell: int = Field(1, ge=1, description="Random crops of each training cell.")


class BenchmarkConfig(Spec):
    """Which runs, and with which settings; the defaults are the paper's."""

    suite: SuiteName = Field(description="Data sets of one protocol.")
    tables: tuple[TableName, ...] = Field((), min_length=1, description="What is to be filled.")
    data_sets: tuple[str, ...] = Field((), min_length=1, description="Of the suite.")
    methods: tuple[str, ...] = Field((), description="Instead of those of each table.")
    seeds: tuple[Seed, ...] = Field((), min_length=1, description="Of every grid with k_l up to 1.")
    drawn_seeds: tuple[Seed, ...] = Field(
        tuple(range(10)), min_length=1, description="Where k_l > 1 classes are drawn by the seed."
    )
    normal_classes: tuple[int, ...] = Field(CLASSES, min_length=1, description="Each in turn.")
    outlier_classes: Literal["all", "one"] = Field(
        "all", description="For k_l = 1 each of the other nine in turn, or the next class alone."
    )
    gamma_l: tuple[float, ...] = Field(_RATIOS, min_length=1, description="γl of Tables 1 and 4.")
    gamma_p: tuple[float, ...] = Field(_RATIOS, min_length=1, description="γp of Table 8.")
    k_l: tuple[int, ...] = Field((0, 1, 2, 3, 5), min_length=1, description="k_l of Table 9.")
    lambda1: tuple[float, ...] = Field((0.01, 0.1, 0.5, 1, 2, 10), description="Of Figure 2.")
    lambda2: tuple[float, ...] = Field((0, 0.01, 0.1, 1, 10, 100), description="Of Figure 5.")
    width: float | None = Field(
        None, gt=0, le=4, description="Of ESAD's image network; null is the preset's."
    )
    epochs: int | None = Field(
        None, ge=1, description="Of all that is trained in epochs; null is each method's own."
    )
    members: int | None = Field(None, ge=1, description="Of ESAD; null is the preset's.")
    unfair_selection: bool = Field(
        False, description="Choose γ and ν of kernel methods on test labels, as the paper does."
    )
    leaking: bool = Field(
        False, description="Draw training and test rows apart, as Deep SAD's code does: they share."
    )
    lists: tuple[Path, ...] = Field(
        (), description="Folders of the published lists of camelyon16 or nih; else below ESAD_DATA."
    )
    table: Path | None = Field(
        None, description="NIH's Data_Entry table; null is the one beside the lists."
    )
    target: Path | None = Field(
        None, description="Stain target of camelyon16; null is DPA's, a crop of normal_056."
    )
    cells: PaperCells = Field(PaperCells(), description="How camelyon16's cells become samples.")
    esad: dict[str, Any] = Field({}, description="Settings of ESAD, as those of `train`.")
    baselines: dict[str, Any] = Field({}, description="Settings of the baselines.")

    @model_validator(mode="before")
    @classmethod
    def _start_from_suite(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("suite"), str):
            return values
        return {**SUITES.get(values["suite"], {}), **values}

    @field_validator("lists", mode="before")
    @classmethod
    def _one_or_more(cls, folders: Any) -> Any:
        return (folders,) if isinstance(folders, str | Path) else folders

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for name in methods:
            if name not in METHODS:
                raise ValueError(_unknown("method", name, METHODS))
        return methods

    @field_validator("gamma_l", "gamma_p")
    @classmethod
    def _shares(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [ratio for ratio in ratios if not 0 <= ratio < 1]:
            raise ValueError(f"{wrong[0]} is no share, expected 0 up to, not including, 1")
        return ratios

    @model_validator(mode="after")
    def _of_this_suite(self) -> "BenchmarkConfig":
        own = SUITES[self.suite]
        for name in self.data_sets:
            if name not in own["data_sets"]:
                raise ValueError(_unknown(f"data set of {self.suite}", name, own["data_sets"]))
        known = (*own["tables"], *_MORE_TABLES.get(self.suite, ()))
        for name in self.tables:
            if name not in known:
                raise ValueError(f"{self.suite} has no {name}; it has {', '.join(known)}")
        if own_keys := {"seed", "preset", "kind"} & {*self.esad, *self.baselines}:
            if own_keys == {"kind"}:
                raise ValueError(f"kind is the suite's own, of {self.suite} it cannot be changed")
            raise ValueError(f"{min(own_keys)} is each run's own; choose with seeds and methods")
        if self.suite == "odds" and self.width is not None:
            raise ValueError("width is of the image network, the tables of odds hold vectors")
        for name, suites in _OF_SUITES.items():
            unset = type(self).model_fields[name].default
            if self.suite not in suites and getattr(self, name) != unset:
                raise ValueError(f"{name} is a setting of {' and '.join(suites)} alone")
        if self.suite != "odds" and self.leaking:
            raise ValueError(f"leaking splits are those of odds; {self.suite} has a fixed test set")
        if wrong := [c for c in self.normal_classes if c not in CLASSES]:
            raise ValueError(f"normal_classes: found {wrong[0]}, expected classes 0 to 9")
        if wrong := [k for k in self.k_l if not 0 <= k <= 9]:
            raise ValueError(f"k_l: found {wrong[0]}, expected 0 to 9 classes")
        return self


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} '{name}'; {hint}"
