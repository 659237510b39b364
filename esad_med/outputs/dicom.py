"""The DICOM results of a triaged study: a structured report and an overlay as Secondary Capture."""

import datetime
import io
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from esad_med.base.errors import ConfigError
from esad_med.base.runs import atomic_file
from esad_med.outputs.dicom_identity import IDENTIFIERS, copy_identifiers, read_text, read_uid

if TYPE_CHECKING:
    from highdicom.sr import (
        AlgorithmIdentification,
        Measurement,
        MeasurementReport,
        MeasurementsAndQualitativeEvaluations,
        ObservationContext,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )

NOT_FOR_DIAGNOSIS = "Research use only, not for diagnosis"
SCHEME = "99ESAD"  # private schemes begin with 99; the reports say whose it is
PERCENTILE = Code("PERCENTILE", SCHEME, "Anomaly score percentile among normal images")
SCORE = Code("SCORE", SCHEME, "Anomaly score")
RECONSTRUCTION = Code("RECONSTRUCTION", SCHEME, "Reconstruction term")
NORM = Code("NORM", SCHEME, "Latent norm term")
SCOPE = Code("SCOPE", SCHEME, "Scope of the measurements")
WHOLE_STUDY = Code("STUDY", SCHEME, "Whole study")
ONE_IMAGE = Code("IMAGE", SCHEME, "One image")
P_VALUE = Code("P_VALUE", SCHEME, "Conformal p-value among normals")
DECISION = Code("DECISION", SCHEME, "Decision at the calibrated operating point")
OUTCOMES = {
    "alarm": Code("ALARM", SCHEME, "Alarm"),
    "review": Code("REVIEW", SCHEME, "Review"),
    "no alarm": Code("NO_ALARM", SCHEME, "No alarm"),
    "not decided": Code("NOT_DECIDED", SCHEME, "Not decided"),
}
DECISION_RULE = Code("DECISION_RULE", SCHEME, "Rule of the decision")
CAVEAT = Code("CAVEAT", SCHEME, "What speaks against relying on the decision")
RULE = Code("RULE", SCHEME, "Rule of the study's score")
INTENDED_USE = Code("INTENDED_USE", SCHEME, "Intended use")
RESEARCH = Code("RESEARCH", SCHEME, NOT_FOR_DIAGNOSIS)
_CHEST_XRAY = Code("399208008", "SCT", "Plain chest X-ray")
_VIEWS = {"PA": codes.SCT.PosteroAnterior, "AP": codes.SCT.AnteroPosterior}

MAKER = "esad-med"
ALGORITHM = "esad-med ESAD"
# A modality counts its series from 1; results stand behind them.
_REPORT_SERIES, _CAPTURE_SERIES = 9101, 9102
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_LARGEST_EDGE_PX = 65535
_DERIVATION = (
    "Squared residual of the ESAD reconstruction, in color over the radiograph. "
    f"{NOT_FOR_DIAGNOSIS}."
)
_NO_RESIDUAL = (
    "The radiograph with a frame around what an encoder saw; an embedding has no residual map. "
    f"{NOT_FOR_DIAGNOSIS}."
)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageResult:
    """One scored image, as plain values; checked when made.

    Attributes:
        source: header of the image; its pixels are not needed.
        view: "PA", "AP", or "" where unknown.
        score: Eq. 17; higher is more anomalous.
        percentile: 0-100, the score among the normals held out from the detector's training.
        reconstruction: first term of the score.
        norm: second term of the score.
        detector: SHA-256 of the detector that scored it, as hexadecimal.
        residual: whether a picture made of it can show a residual; of embeddings there is none.

    Raises:
        CaseError: the source lacks one of the four UIDs that a reference to it is made of.
    """

    source: Dataset
    view: str
    score: float
    percentile: float
    reconstruction: float
    norm: float
    detector: str
    residual: bool = True

    def __post_init__(self) -> None:
        """Refuse values that no detector gives, and sources that cannot be referred to."""
        if self.view not in ("", *_VIEWS):
            raise ValueError(f"expected view PA, AP or none, found {self.view!r}")
        if not all(map(math.isfinite, (self.score, self.reconstruction, self.norm))):
            raise ValueError("expected finite scores")
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"expected a percentile in 0-100, found {self.percentile}")
        if not re.fullmatch("[0-9a-f]{64}", self.detector):
            raise ValueError("expected the detector's SHA-256 as 64 hexadecimal digits")
        for keyword in UIDS:
            read_uid(self.source, keyword)


@dataclass(frozen=True)
class StudyDecision:
    """What calibrated detectors decide about a study.

    Attributes:
        outcome: one of `OUTCOMES`.
        p_value: 0-1; None where nothing is decided.
        rule: how it comes about and what it promises.
        caveats: what speaks against relying on it.
    """

    outcome: str
    p_value: float | None
    rule: str
    caveats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an outcome without a code."""
        if self.outcome not in OUTCOMES:
            raise ValueError(f"expected one of {', '.join(OUTCOMES)}, found {self.outcome!r}")


@dataclass(frozen=True)
class StudyResult:
    """All scored images of one study; checked when made.

    Attributes:
        images: at least one, all of one study.
        driving: index of the image that gives the study its percentile.
        rule: how the study's score comes about, in words.
        version: of esad-med.
        created: when the study was scored; its clock time is written as it stands, as is usual
            in DICOM for the time of the place.
        decision: of calibrated detectors, or None.
    """

    images: tuple[ImageResult, ...]
    driving: int
    rule: str
    version: str
    created: datetime.datetime
    decision: StudyDecision | None = None

    def __post_init__(self) -> None:
        """Refuse images of several studies, and a driving image that is not among them."""
        if not 0 <= self.driving < len(self.images):
            raise ValueError(f"no image {self.driving} among {len(self.images)}")
        if len({read_uid(image.source, "StudyInstanceUID") for image in self.images}) > 1:
            raise ValueError("expected the images of one study")
        if not self.rule or not self.version:
            raise ValueError("expected a rule and a version")

    @property
    def driver(self) -> ImageResult:
        """The image that gives the study its percentile."""
        return self.images[self.driving]


def build_structured_report(result: StudyResult) -> Dataset:
    """A Comprehensive SR (TID 1500) with the study's score and each image's.

    The first measurement group holds the study's values, then one group follows per image. The
    document is complete, preliminary and not verified: nobody has read it.

    Raises:
        ConfigError: highdicom is not installed.
    """
    require_highdicom()
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import ComprehensiveSR

    created = result.created
    report = ComprehensiveSR(
        evidence=[_evidence(image) for image in result.images],
        content=_report_content(result)[0],
        series_instance_uid=_make_uid(result, "report series"),
        series_number=_REPORT_SERIES,
        series_description="ESAD anomaly scores (research use only)",
        sop_instance_uid=_make_uid(result, "report"),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=result.version,
        is_complete=True,
        is_final=False,
        is_verified=False,
        content_date=created.date(),
        content_time=created.time(),
        coding_schemes=[
            CodingSchemeIdentificationItem(
                SCHEME, name="Concepts of esad-med", responsible_organization=MAKER
            )
        ],
    )
    return _file_under_study(report, result)


def build_secondary_capture(result: StudyResult, picture: Bytes) -> Dataset:
    """A picture made of the driving image, such as its residual overlay, as RGB of 8 bits.

    Args:
        result: the study; the object refers to its driving image as its source.
        picture: (h, w, 3) uint8, without anything that identifies the patient.

    Raises:
        ConfigError: highdicom is not installed.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"expected (h, w, 3) uint8, found {picture.shape} {picture.dtype}")
    if not 0 < min(picture.shape) <= max(picture.shape) <= _LARGEST_EDGE_PX:
        raise ValueError(f"expected edges of 1 to {_LARGEST_EDGE_PX} pixels, found {picture.shape}")
    require_highdicom()
    from highdicom.sc import SCImage

    created = result.created
    image = SCImage(
        pixel_array=np.ascontiguousarray(picture),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # demanded here, taken back below
        study_instance_uid=read_uid(result.driver.source, "StudyInstanceUID"),
        series_instance_uid=_make_uid(result, "capture series"),
        series_number=_CAPTURE_SERIES,
        series_description=(
            f"ESAD {'residual overlay' if result.driver.residual else 'scored part'}"
            " (research use only)"
        ),
        sop_instance_uid=_make_uid(result, "capture"),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=result.version,
        content_date=created.date(),
        content_time=created.time(),
    )
    _describe_derivation(image, result)
    return _file_under_study(image, result)


def write_dicom(path: Path, dataset: Dataset) -> None:
    """Write a DICOM file with preamble and file meta information, atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    # In memory first: pydicom reports a value it cannot encode, patient's or not, as an OSError.
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def require_highdicom() -> None:
    """Ask for the extra, and keep what highdicom says of images out of the log.

    Raises:
        ConfigError: highdicom is not installed.
    """
    if find_spec("highdicom") is None:
        raise ConfigError("DICOM results need highdicom; run: pip install 'esad-med[dicom]'")
    # It tells which image it copies from: identifiers have no place in a log.
    logging.getLogger("highdicom.base").setLevel(logging.WARNING)


def _make_uid(result: StudyResult, kind: str) -> str:
    """The same UID for the same study, images, detectors, version and kind."""
    images = sorted(f"{read_uid(i.source, 'SOPInstanceUID')} {i.detector}" for i in result.images)
    driver = read_uid(result.driver.source, "SOPInstanceUID")
    study = read_uid(result.driver.source, "StudyInstanceUID")
    parts = (MAKER, result.version, kind, study, driver, *images)
    return generate_uid(entropy_srcs=["\n".join(parts)])


# --- the structured report ---------------------------------------------------------------------


def _evidence(image: ImageResult) -> Dataset:
    """What highdicom wants to know of a referenced image; identifiers are filled in afterwards.

    Not the source itself: highdicom copies what stands there, valid or not, and its warnings about
    names repeat them.
    """
    evidence = Dataset()
    for keyword in UIDS:
        setattr(evidence, keyword, read_uid(image.source, keyword))
    for keyword in IDENTIFIERS:
        setattr(evidence, keyword, None)
    return evidence


def _report_content(result: StudyResult) -> "MeasurementReport":
    from highdicom.sr import MeasurementReport

    return MeasurementReport(
        observation_context=_observer(result),
        procedure_reported=_CHEST_XRAY,
        imaging_measurements=[_study_group(result), *_image_groups(result)],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _observer(result: StudyResult) -> "ObservationContext":
    """TID 1001: this program, in this version, made the observations."""
    from highdicom.sr import (
        CodedConcept,
        DeviceObserverIdentifyingAttributes,
        ObservationContext,
        ObserverContext,
    )

    device = DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[f"{MAKER}\n{result.version}\ndevice"]),
        name=MAKER,
        manufacturer_name=MAKER,
        model_name=f"{MAKER} {result.version}",
    )
    observer = ObserverContext(CodedConcept.from_code(codes.DCM.Device), device)
    return ObservationContext(observer_device_context=observer)


def _study_group(result: StudyResult) -> "MeasurementsAndQualitativeEvaluations":
    """TID 1501: the driving image's values as the study's, the rule, and what it is not for."""
    from highdicom.sr import (
        FindingSite,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        RelationshipTypeValues,
        TextContentItem,
    )

    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(result, "Study"),
        finding_sites=[FindingSite(codes.SCT.Chest)],
        algorithm_id=_algorithm(result, result.driver),
        measurements=[*_measurements(result.driver)[:2], *_p_value(result.decision)],
        qualitative_evaluations=[
            QualitativeEvaluation(INTENDED_USE, RESEARCH),
            QualitativeEvaluation(SCOPE, WHOLE_STUDY),
            *(QualitativeEvaluation(DECISION, code) for code in _outcome(result.decision)),
        ],
        source_images=[_reference(result.driver)],
    )
    for name, text in _texts(result):
        group[0].ContentSequence.append(
            TextContentItem(
                name=name, value=text, relationship_type=RelationshipTypeValues.CONTAINS
            )
        )
    return group


def _p_value(decision: StudyDecision | None) -> "list[Measurement]":
    from highdicom.sr import Measurement

    if decision is None or decision.p_value is None:
        return []
    return [Measurement(P_VALUE, float(decision.p_value), codes.UCUM.NoUnits)]


def _outcome(decision: StudyDecision | None) -> list[Code]:
    return [] if decision is None else [OUTCOMES[decision.outcome]]


def _texts(result: StudyResult) -> "Iterator[tuple[Code, str]]":
    """What the study's numbers and decision rest on, in words."""
    yield RULE, result.rule
    if result.decision:
        yield DECISION_RULE, result.decision.rule
        for caveat in result.decision.caveats:
            yield CAVEAT, caveat


def _image_groups(result: StudyResult) -> "Iterator[MeasurementsAndQualitativeEvaluations]":
    """TID 1501 for each image, in the given order."""
    from highdicom.sr import (
        FindingSite,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
    )

    for number, image in enumerate(result.images, start=1):
        evaluations = [
            QualitativeEvaluation(INTENDED_USE, RESEARCH),
            QualitativeEvaluation(SCOPE, ONE_IMAGE),
        ]
        if image.view:
            evaluations.append(QualitativeEvaluation(codes.DCM.ImageView, _VIEWS[image.view]))
        yield MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(result, f"Image {number}"),
            finding_sites=[FindingSite(codes.SCT.Chest)],
            algorithm_id=_algorithm(result, image),
            measurements=_measurements(image),
            qualitative_evaluations=evaluations,
            source_images=[_reference(image)],
        )


def _tracking(result: StudyResult, name: str) -> "TrackingIdentifier":
    from highdicom.sr import TrackingIdentifier

    return TrackingIdentifier(uid=_make_uid(result, f"measurements of {name}"), identifier=name)


def _algorithm(result: StudyResult, image: ImageResult) -> "AlgorithmIdentification":
    """TID 4019: the program and the detector, which together decide the numbers."""
    from highdicom.sr import AlgorithmIdentification

    return AlgorithmIdentification(
        name=ALGORITHM,
        version=result.version,
        parameters=[f"detector SHA-256 {image.detector}"],
        manufacturer=MAKER,
    )


def _measurements(image: ImageResult) -> "list[Measurement]":
    """TID 300: percentile and score, then the score's two terms."""
    from highdicom.sr import Measurement

    none = codes.UCUM.NoUnits
    return [
        Measurement(PERCENTILE, float(image.percentile), codes.UCUM.Percent),
        Measurement(SCORE, float(image.score), none),
        Measurement(RECONSTRUCTION, float(image.reconstruction), none),
        Measurement(NORM, float(image.norm), none),
    ]


def _reference(image: ImageResult) -> "SourceImageForMeasurementGroup":
    from highdicom.sr import SourceImageForMeasurementGroup

    return SourceImageForMeasurementGroup(
        read_uid(image.source, "SOPClassUID"), read_uid(image.source, "SOPInstanceUID")
    )


# --- the Secondary Capture ---------------------------------------------------------------------


def _describe_derivation(image: Dataset, result: StudyResult) -> None:
    """Say what the picture shows, of which image, and what it does not tell."""
    from highdicom.sr import CodedConcept

    source = Dataset()
    source.ReferencedSOPClassUID = read_uid(result.driver.source, "SOPClassUID")
    source.ReferencedSOPInstanceUID = read_uid(result.driver.source, "SOPInstanceUID")
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    source.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(purpose)]
    image.SourceImageSequence = [source]
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.DerivationDescription = _DERIVATION if result.driver.residual else _NO_RESIDUAL
    image.BodyPartExamined = "CHEST"
    # Of identifying information: the caption holds none, the radiograph as the source says.
    burned_in = read_text(result.driver.source, "BurnedInAnnotation", ["ascii"]).strip()
    if burned_in in {"YES", "NO"}:
        image.BurnedInAnnotation = burned_in
    image.ConversionType = "WSD"
    image.DateOfSecondaryCapture, image.TimeOfSecondaryCapture = moment(result.created)
    # The picture may have been turned and cropped: a wrong left and right is worse than none.
    image.PatientOrientation = None
    if read_text(result.driver.source, "LossyImageCompression", ["ascii"]).strip() == "01":
        image.LossyImageCompression = "01"  # once lost is lost for good


# --- both --------------------------------------------------------------------------------------


def _file_under_study(dataset: Dataset, result: StudyResult) -> Dataset:
    """Give an object the study's identifiers, and the caller's time for highdicom's own clock."""
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = moment(result.created)
    dataset.SeriesDate, dataset.SeriesTime = moment(result.created)
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = "".join(moment(result.created))
    dataset.update(copy_identifiers(result.driver.source, beside=result.rule))
    return dataset


def moment(time: datetime.datetime) -> tuple[str, str]:
    """Date and time as DICOM writes them."""
    return time.strftime("%Y%m%d"), time.strftime("%H%M%S.%f")
