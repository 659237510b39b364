"""Where the time of a run goes: seconds per stage and counts, for ``run.json``."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Stages:
    """Seconds of wall time per stage; stages that overlap add up to more than the whole."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the block's time to a stage, also when it ends in an error."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, time.perf_counter() - started)

    def timed(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items; the time that each takes to come counts to a stage."""
        rest = iter(items)
        while True:
            with self.measure(stage):
                try:
                    item = next(rest)
                except StopIteration:
                    return
            yield item

    def add(self, other: Mapping[str, float]) -> None:
        """Add the seconds of another process, or of another case."""
        for stage, seconds in other.items():
            self._add(stage, seconds)

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def to_dict(self) -> dict[str, float]:
        """Rounded, the longest first."""
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {stage: round(seconds, 3) for stage, seconds in ordered}


class RunClock:
    """When a run began, how long its stages took, and what it counted."""

    def __init__(self) -> None:
        self._began = datetime.now(UTC)
        self._started = time.perf_counter()
        self.stages = Stages()
        self.counts: Counter[str] = Counter()

    def to_dict(self) -> dict[str, Any]:
        """For ``run.json``; what may differ between runs of the same outcome."""
        return {
            "began": self._began.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._started, 3),
            "seconds_by_stage": self.stages.to_dict(),
            "counts": dict(sorted(self.counts.items())),
        }
