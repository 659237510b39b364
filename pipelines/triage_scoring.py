"""Radiographs to scores: each image by the detector of its view, studies by their images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.xray_chain import Preparation, XraySpec
from esad_med.base.errors import ConfigError, EsadError, ModelError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import Limits
from esad_med.base.runs import Failure
from esad_med.method.detector import Detector
from esad_med.method.encoder import Encoder
from esad_med.method.scores import Scores
from esad_med.outputs.radiograph import shrink
from pipelines.case_facts import CaseColors, score_facts
from pipelines.chest_xray import (
    PreparedXray,
    chain_of,
    on_threads,
    preparation_of,
    prepare_xray,
)
from pipelines.deciding import CaseScore, caveats_of, decide, sample_p_values
from pipelines.explaining import nearest_examples
from pipelines.triage_intake import Image, Study

STUDY_RULE = (
    "highest percentile of the study's images; between equal ones the higher excess, which is the"
    " score above the median of the detector's held-out normals, as a share of the way from there"
    " to their 99th percentile"
)
NO_RESIDUAL = "scored by an embedding of it: there is no residual map"
PICTURE_PX = 1024
_BLOCK = 32
_FEW_NORMALS = 100


@dataclass(frozen=True)
class ViewDetector:
    """A detector of radiographs and the preparation it was trained with.

    Attributes:
        detector: what scores them.
        digest: its identity.
        spec: from upright pixels to a sample.
        encoder: what makes an embedding of the sample, None where its pixels are scored.
    """

    detector: Detector
    digest: str
    spec: XraySpec
    encoder: Encoder | None = None

    @property
    def chain(self) -> Preparation:
        """From upright pixels to a sample."""
        return chain_of(self.spec)

    @property
    def views(self) -> tuple[str, ...]:
        """The views it was trained on."""
        return tuple(self.detector.input.view_positions or ())

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of every percentile that it gives."""
        count = self.detector.contract.calibration.normals
        few = (f"percentile among {count} normals only",) if count < _FEW_NORMALS else ()
        return few if self.encoder is None else (*few, NO_RESIDUAL)

    def excess(self, score: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Scores on a scale where held-out normals have median 0 and 99th percentile 1."""
        middle, high = (self.detector.threshold_at(p) for p in (50.0, 99.0))
        return np.asarray((score.astype(np.float64) - middle) / max(high - middle, 1e-12))

    def examine(
        self, samples: npt.NDArray[np.uint8]
    ) -> tuple[Scores, Sequence[npt.NDArray[np.float32] | None]]:
        """Scores, and residual maps where the samples' pixels are scored."""
        if self.encoder is None:
            scores, maps = self.detector.examine(samples)
            return scores, list(maps)
        return self.detector.score(self.encoder(samples)), [None] * len(samples)

    @property
    def residual_limits(self) -> tuple[float, float]:
        """From no color to full color: quantiles of held-out normals."""
        low, high = self.detector.contract.calibration.residual_limits or (0.0, 1.0)
        return low, max(high, low + 1e-12)


def load_detectors(
    paths: Sequence[Path], *, device: str = "auto", encoder: Encoder | None = None
) -> dict[str, ViewDetector]:
    """Load detectors and say which one scores which view.

    Args:
        paths: their folders.
        device: auto, cpu or cuda.
        encoder: the one that all of them were trained with, or None.

    Raises:
        ModelError: damaged, or not trained on radiographs, or not with this encoder.
        ConfigError: two detectors for one view.
    """
    by_view: dict[str, ViewDetector] = {}
    for path in paths:
        detector = Detector.load(path, device=device)
        try:
            spec = preparation_of(detector, encoder)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        one = ViewDetector(detector, detector.digest, spec, encoder)
        for view in one.views:
            if view in by_view:
                raise ConfigError(
                    f"{path}: a second detector for view {view}; give one detector per view"
                )
            by_view[view] = one
    return by_view


def specs_of(detectors: Mapping[str, ViewDetector]) -> dict[str, XraySpec]:
    """How the images of each view are prepared."""
    return {view: one.spec for view, one in detectors.items()}


@dataclass(frozen=True)
class ImageScore:
    """One scored image.

    Attributes:
        image: what was scored.
        score: higher is more anomalous.
        percentile: 0 to 100, among held-out normals of its detector.
        excess: see `ViewDetector.excess`.
        reconstruction: first term of the score.
        norm: second term.
        detector: digest of the detector.
        crop_share: central part of each side that was seen.
        picture: (h, w) uint8, the whole radiograph, no side above `PICTURE_PX`.
        shape: (rows, columns) of the radiograph.
        residual: (s, s) float32 squared residual over the central part, None of an embedding.
        residual_limits: from no color to full color.
        p_value: among the calibration's normals; None by a detector that is not calibrated.
        facts: of the image, to be compared with the calibration's; empty likewise.
        nearest: the normal training images most like it, where the detector keeps some.
        distances: of them; see `Examples.nearest`.
    """

    image: Image
    score: float
    percentile: float
    excess: float
    reconstruction: float
    norm: float
    detector: str
    crop_share: float
    picture: npt.NDArray[np.uint8]
    shape: tuple[int, int]
    residual: npt.NDArray[np.float32] | None
    residual_limits: tuple[float, float]
    p_value: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    nearest: tuple[npt.NDArray[np.uint8], ...] = ()
    distances: tuple[float, ...] = ()


@dataclass(frozen=True)
class StudyScore:
    """A study by `STUDY_RULE`.

    Attributes:
        study: the study, with what was set aside counted.
        images: its scored images, at least one.
        failures: of its images that could not be read after all.
        decision: of calibrated detectors; None where none is.
    """

    study: Study
    images: tuple[ImageScore, ...]
    failures: tuple[Failure, ...] = ()
    decision: Mapping[str, Any] | None = None

    @property
    def driving(self) -> int:
        """Index of the image that gives the study its rank."""
        keys = [(image.percentile, image.excess) for image in self.images]
        return keys.index(max(keys))


def score_studies(
    studies: Sequence[Study], detectors: Mapping[str, ViewDetector], limits: Limits
) -> Iterator[tuple[Study, StudyScore | list[Failure]]]:
    """Score a block of studies together; one without a readable image gives failures.

    The scores of a block are those of its images in one batch, whose last digits may depend on it.

    Args:
        studies: of `study_blocks`.
        detectors: by view.
        limits: what may be decoded.
    """

    def prepare(image: Image) -> tuple[PreparedXray, npt.NDArray[np.uint8]]:
        own = detectors[image.header.view]
        found = prepare_xray(image.path, spec=own.spec, limits=limits, chain=own.chain)
        small = shrink(found.xray.pixels, PICTURE_PX)
        return _without_pixels(found), small

    found = []
    for image, result in on_threads(
        prepare, [image for study in studies for image in study.images]
    ):
        raise_if_interrupted()
        found.append((image, result))
    yield from _score_block(studies, found, detectors)


def _without_pixels(found: PreparedXray) -> PreparedXray:
    """Only the shape of the full picture is kept: a block of them would fill the memory."""
    shape = found.xray.pixels.shape
    return replace(found, xray=replace(found.xray, pixels=np.broadcast_to(np.float32(0), shape)))


def study_blocks(studies: Sequence[Study]) -> Iterator[list[Study]]:
    """Whole studies, about `_BLOCK` images at a time."""
    block: list[Study] = []
    for study in studies:
        block.append(study)
        if sum(len(s.images) for s in block) >= _BLOCK:
            yield block
            block = []
    if block:
        yield block


Read = tuple[Image, tuple[PreparedXray, npt.NDArray[np.uint8]] | EsadError]


def _score_block(
    block: Sequence[Study], found: Sequence[Read], detectors: Mapping[str, ViewDetector]
) -> Iterator[tuple[Study, StudyScore | list[Failure]]]:
    scored: dict[str, ImageScore] = {}
    failed: dict[str, EsadError] = {}
    groups: dict[str, list[Any]] = {}
    for image, result in found:
        if isinstance(result, EsadError):
            failed[image.image_id] = result
        else:
            own = detectors[image.header.view]
            groups.setdefault(own.digest, []).append((own, image, *result))
    for group in groups.values():
        scored |= {one.image.image_id: one for one in _score_group(group)}
    for study in block:
        failures = [
            Failure.of(f"{study.case_id}/{image.image_id}", "read", failed[image.image_id])
            for image in study.images
            if image.image_id in failed
        ]
        images = tuple(scored[i.image_id] for i in study.images if i.image_id in scored)
        counted = replace(study, set_aside=study.set_aside + len(failures))
        if images:
            decision = _decide(images, detectors)
            yield study, StudyScore(counted, images, tuple(failures), decision)
        else:
            yield study, failures


def _decide(
    images: Sequence[ImageScore], detectors: Mapping[str, ViewDetector]
) -> dict[str, Any] | None:
    """What a study's detectors decide by its highest image each; None where none is calibrated."""
    used = {one.detector: detectors[one.image.header.view].detector.decisions for one in images}
    if not any(used.values()):
        return None
    scores = {name: [one.score for one in images if one.detector == name] for name in used}
    caveats = [
        caveat
        for one in images
        if (decisions := used[one.detector]) is not None
        for caveat in caveats_of(decisions, one.facts, "float32")
    ]
    found = [CaseScore(max(own), used[name], len(own)) for name, own in scores.items()]
    return decide(found, caveats=dict.fromkeys(caveats))


def _score_group(group: Sequence[Any]) -> Iterator[ImageScore]:
    """Images of one detector as one batch."""
    own: ViewDetector = group[0][0]
    samples = np.stack([prepared.sample for _, _, prepared, _ in group])
    scores, residuals = own.examine(samples)
    alike = nearest_examples(samples, own.detector)
    percentiles = own.detector.percentile(scores.score)
    excess = own.excess(scores.score)
    notes, decisions = own.notes, own.detector.decisions
    p_values = None if decisions is None else sample_p_values(decisions, scores.score)
    for index, (_, image, prepared, picture) in enumerate(group):
        image = replace(image, notes=(*image.notes, *notes))
        rows, columns = prepared.xray.pixels.shape
        yield ImageScore(
            image=image,
            score=float(scores.score[index]),
            percentile=float(percentiles[index]),
            excess=float(excess[index]),
            reconstruction=float(scores.reconstruction[index]),
            norm=float(scores.norm[index]),
            detector=own.digest,
            crop_share=own.spec.crop_share,
            picture=picture,
            shape=(int(rows), int(columns)),
            residual=residuals[index],
            residual_limits=own.residual_limits,
            p_value=None if p_values is None else float(p_values[index]),
            facts={} if decisions is None else _facts(samples[index], float(scores.score[index])),
            nearest=tuple(alike[index][0]),
            distances=tuple(alike[index][1]),
        )


def _facts(sample: npt.NDArray[np.uint8], score: float) -> dict[str, float]:
    colors = CaseColors()
    colors.add(sample[None])
    return colors.to_dict() | score_facts(np.array([score]), single=True)


def ranked(items: Sequence[Any], key: Callable[[Any], tuple[float, float, str]]) -> list[Any]:
    """Highest percentile first, then highest excess, then by name.

    So ranks never depend on the order in which files were found.
    """

    def order(item: Any) -> tuple[float, float, str]:
        percentile, excess, name = key(item)
        return (-percentile, -excess, name)

    return sorted(items, key=order)
