"""What `esad-med calibrate` leaves in a detector: normals to compare with, operating points."""

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from esad_med.base.config import Spec, build_spec
from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.runs import digest_bytes, read_json, write_json

#: In a detector's folder, beside what is trained and written in one atomic step: no kill between
#: two files leaves a detector that does not load.
DECISIONS = "decisions.json"
_AGAIN = "make it anew with `esad-med calibrate --overwrite`"

#: What a score is of: single samples, or all samples of a slide, a study.
Kind = Literal["sample", "tile", "image", "slide", "study"]
Share = tuple[float, float, float]  # rate, and its 95 % interval


class Normals(Spec):
    """Scores of held-out normals as a step function, for conformal p-values.

    Attributes:
        scores: ascending.
        shares: share of the normals that score at least so high, falling from 1; every unit
            weighs the same.
        units: how many independent units these are.
        unit: what one is: patient, case or sample.
        count: how many scores there were.
    """

    scores: tuple[float, ...] = Field(min_length=1)
    shares: tuple[float, ...]
    units: int = Field(ge=1)
    unit: str
    count: int = Field(ge=1)

    @model_validator(mode="after")
    def _is_a_tail(self) -> "Normals":
        rising = all(a < b for a, b in pairwise(self.scores))
        falling = all(a >= b for a, b in pairwise(self.shares))
        if len(self.scores) != len(self.shares) or not rising or not falling:
            raise ValueError("expected ascending scores with falling shares, as many of each")
        if self.shares[0] != 1 or self.shares[-1] <= 0 or self.units > self.count:
            raise ValueError("expected shares from 1 down, and no more units than scores")
        return self


class OperatingPoint(Spec):
    """A threshold and what it gives; rates are of units, with 95 % intervals by unit.

    Attributes:
        target: the false-alarm rate or the sensitivity that was asked for.
        threshold: scores above it are alarms.
        interval: of the threshold, by bootstrap over units.
        false_alarms: for a target of false alarms the nominal rate and where the rate of this one
            set of normals lies; for a sensitivity the rate among the calibration's normals.
        sensitivity: among the calibration's anomalous ones; None without any.
    """

    target: float = Field(gt=0, lt=1)
    threshold: float
    interval: tuple[float, float]
    false_alarms: Share
    sensitivity: Share | None = None


class Level(Spec):
    """Decisions about scores of one kind.

    Attributes:
        kind: what is decided about.
        normals: to compare with.
        anomalous: units of anomalous ones in the calibration.
        alarm: the operating point of alarms.
        others: further rates of false alarms, ascending, for those who choose.
        sensitive: the threshold that keeps the sensitivity asked for; None with too few anomalous.
        review: above this and without an alarm lies the zone in which nothing is decided; the
            alarm's threshold where there is no such zone.
        review_rule: where that comes from, in words.
        single: whether each study of the calibration was one image: the highest of several is then
            compared with single ones, and its p-value counts once for each.
    """

    kind: Kind
    normals: Normals
    anomalous: int = Field(ge=0)
    alarm: OperatingPoint
    others: tuple[OperatingPoint, ...] = ()
    sensitive: OperatingPoint | None = None
    review: float
    review_rule: str
    single: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "Level":
        if self.review > self.alarm.threshold:
            raise ValueError("expected a zone below the alarms")
        return self


class Decisions(Spec):
    """Everything that turns this detector's scores into decisions.

    Attributes:
        detector: digest of the detector without decisions: they hold for no other.
        data: digest of the calibration samples.
        split: of the store, empty for all rows.
        precision: what the scores were computed in.
        samples: of single tiles, images, rows.
        cases: of slides or studies; None where there are too few.
        no_cases: why there are none, in words.
        discoveries: share of normals among the tiles pointed at, by Benjamini and Hochberg.
        reference: fact of a case -> its values over the calibration's normal cases.
        tiling: how the slides' tissue was found and tiled; slide scores hang on it.
        created: date.
    """

    detector: str = Field(min_length=64, max_length=64)
    data: str
    split: str
    precision: str
    samples: Level
    cases: Level | None = None
    no_cases: str = ""
    discoveries: float = Field(gt=0, lt=1)
    reference: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    tiling: dict[str, Any] = Field(default_factory=dict)
    created: str

    @field_validator("reference")
    @classmethod
    def _is_small(cls, values: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        if len(values) > 64:
            raise ValueError("expected at most 64 facts")
        return values

    @property
    def digest(self) -> str:
        """SHA-256 over all of it; without defaults, so that a later version's settings fit in."""
        return digest_bytes(self.model_dump_json(exclude_defaults=True).encode())

    def save(self, path: Path) -> None:
        """Write it as JSON together with its digest, atomically.

        Raises:
            ConfigError: the file cannot be written.
        """
        write_json(path, {"sha256": self.digest, **self.model_dump(mode="json")})


def load_decisions(path: Path) -> Decisions | None:
    """What `Decisions.save` wrote, checked against its digest; None where there is none.

    Raises:
        ModelError: damaged, or not what `esad-med calibrate` writes.
    """
    if not path.exists():
        return None
    try:
        values = read_json(path, ModelError)
    except ModelError as error:
        raise ModelError(f"{error}; {_AGAIN}") from error
    digest = values.pop("sha256", None)
    try:
        found = build_spec(Decisions, values, source=str(path))
    except ConfigError as error:
        raise ModelError(f"{path}: not usable ({error}); {_AGAIN}") from error
    if found.digest != digest:
        raise ModelError(f"{path}: damaged (its SHA-256 is not the one it states); {_AGAIN}")
    return found
