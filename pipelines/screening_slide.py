"""Screening one slide: its scores and what is written of them, in any process."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.slides import Slide
from data_prep.tiles import TileBatch
from esad_med.base.cases import Case
from esad_med.base.errors import CaseError, ConfigError, EsadError
from esad_med.base.execution import report
from esad_med.base.locks import Turn
from esad_med.base.overlap import read_ahead
from esad_med.base.runs import Failure, digest_bytes, digest_file, read_json
from esad_med.base.timing import Stages
from esad_med.method.detector import Detector
from esad_med.method.encoder import Encoder
from esad_med.method.scores import slide_score
from esad_med.method.scoring_networks import Precision
from pipelines.case_facts import CaseColors, stain_facts, tiling_of
from pipelines.explaining import explain_tiles, most_anomalous
from pipelines.pathology import (
    LostTiles,
    PathologyConfig,
    case_annotation,
    config_of,
    normalized_tiles,
    open_case,
    prepare_slide,
    tumor_fractions,
)
from pipelines.slide_decisions import decide_slide
from pipelines.slide_exports import ScreeningConfig, write_exports
from pipelines.slide_results import ALARM_PERCENTILE, SlideScores, write_slide_results
from pipelines.tiling import identity
from pipelines.tiling_slide import label_tiles


def screen_slide(
    case: Case,
    slide: Slide,
    detector: Detector,
    config: PathologyConfig,
    *,
    precision: Precision = "float32",
    encoder: Encoder | None = None,
    stages: Stages | None = None,
) -> SlideScores:
    """Score the tiles of one slide, streaming: a few batches of tiles are in memory at a time.

    They are read and normalized in a thread while those before them are scored.
    """
    stages = stages or Stages()
    target = config_of(detector.contract.preparation)[1]
    annotation = case_annotation(case, slide)
    if annotation and case.truth is None:
        case = replace(case, truth=int(annotation.tumor.area > 0))
    with stages.measure("prepare"):
        prepared = prepare_slide(slide, config)
    grid = prepared.grid
    indices: list[npt.NDArray[np.int64]] = []
    lost = LostTiles(case.case_id, grid)
    colors = CaseColors()

    def tiles(batches: Iterator[TileBatch]) -> Iterator[npt.NDArray[Any]]:
        for batch in batches:
            indices.append(batch.indices)
            if detector.decisions:
                colors.add(batch.tiles)
            with stages.measure("score"):
                yield batch.tiles if encoder is None else encoder(batch.tiles)
            report(f"screening {case.case_id}", int(batch.indices[-1]) + 1, len(grid))

    normalized = normalized_tiles(prepared, config.stain, target, lost)
    with read_ahead(stages.timed("read", normalized)) as batches:
        scores = detector.score(tiles(batches), precision=precision)
    grid = grid.subset(np.concatenate(indices))
    shown = most_anomalous(scores.score)
    final = replace(prepared, grid=grid)
    fractions = tumor_fractions(case, annotation, grid)
    _, truth = label_tiles(case, fractions, len(grid), config)
    facts = colors.to_dict() | stain_facts(prepared.stain.to_dict())
    return SlideScores(
        case=case,
        grid=grid,
        scores=scores,
        percentiles=detector.percentile(scores.score),
        threshold=detector.threshold_at(ALARM_PERCENTILE),
        slide_percentile=float(detector.percentile(np.array([slide_score(scores.score)]))[0]),
        truth=None if truth.isna().any() else truth.to_numpy(dtype=np.int8),
        tissue=prepared.tissue,
        precision=precision,
        unreadable=lost.failures,
        decided=decide_slide(
            detector, scores.score, facts, precision, tiling_of(config.model_dump(mode="json"))
        ),
        explanations=explain_tiles(final, config.stain, target, detector, shown),
    )


@dataclass(frozen=True)
class ScreenedSlide:
    """A slide whose results stand in its folder.

    Attributes:
        found: the content of ``slide.json``.
        key: for the journal, what the results hang on.
        seconds: by stage; empty where they stood there already.
    """

    found: dict[str, Any]
    key: str
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SlideScreener:
    """How slides are screened; picklable, so that workers can.

    Attributes:
        detector: what scores the tiles.
        config: how they are made.
        out: the run folder; a slide's results go into its folder there.
        precision: what the networks compute in.
        turn: of the run at its folder.
        encoder: makes the embeddings that the detector was trained on, or None.
    """

    detector: Detector
    config: ScreeningConfig
    out: Path
    precision: Precision
    turn: Turn
    encoder: Encoder | None = None

    def screen(self, item: tuple[Case, str]) -> ScreenedSlide | Failure:
        """Screen a case unless it was completed with the same key; a bad one is a failure.

        Args:
            item: the case, and the key that the journal has for it, empty for none.

        Raises:
            ConfigError: something cannot be written.
        """
        case, done = item
        try:
            with open_case(case, self.config.limits) as slide:
                return self._screen_open(case, slide, done)
        except ConfigError:
            raise  # the output folder, not the case
        except EsadError as error:
            return Failure.of(case.case_id, "screen", error)

    def _screen_open(self, case: Case, slide: Slide, done: str) -> ScreenedSlide:
        key = self._key(case, slide)
        folder, stages = self.out / case.case_id, Stages()
        if key == done:
            try:
                return ScreenedSlide(read_json(folder / "slide.json", CaseError), key)
            except CaseError:
                pass  # missing or damaged since: screen it again
        result = screen_slide(
            case,
            slide,
            self.detector,
            self.config,
            precision=self.precision,
            encoder=self.encoder,
            stages=stages,
        )
        self.turn.check()
        with stages.measure("write"):
            exports = partial(
                write_exports,
                result=result,
                slide=slide,
                detector=self.detector,
                spec=self.config.exports,
            )
            write_slide_results(folder, result, slide, self.detector, exports=exports)
        return ScreenedSlide(read_json(folder / "slide.json", ConfigError), key, stages.seconds)

    def _key(self, case: Case, slide: Slide) -> str:
        annotation = identity(case.annotation, digest_file)
        digest, mpp = self.detector.digest, slide.mpp
        facts = (digest, slide.fingerprint, mpp, case.truth, case.patient_id, annotation)
        rounded = [] if self.precision == "float32" else [self.precision.encode()]
        if self.encoder:  # a detector may know its encoder's name only
            rounded.append(str(self.encoder.identity.digest).encode())
        settings = self.config.model_dump_json(exclude={"limits"})
        return digest_bytes(repr(facts).encode(), settings.encode(), *rounded)
