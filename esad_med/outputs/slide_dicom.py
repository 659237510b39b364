"""Lesions and tiles of a DICOM slide as DICOM: a Segmentation, and Bulk Simple Annotations.

Both lie in the source's frame of reference, so that a viewer lays them over every level.
"""

import datetime
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from esad_med.base.errors import CaseError
from esad_med.outputs.dicom import (
    ALGORITHM,
    MAKER,
    NORM,
    NOT_FOR_DIAGNOSIS,
    P_VALUE,
    PERCENTILE,
    RECONSTRUCTION,
    SCHEME,
    SCORE,
    UIDS,
    moment,
    require_highdicom,
)
from esad_med.outputs.dicom_identity import IDENTIFIERS, copy_identifiers, read_uid
from esad_med.outputs.lesions import Lesion, SlideTiles

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.ann import AnnotationGroup

_SEGMENTATION_SERIES, _ANNOTATION_SERIES = 9201, 9202
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_LESION = Code("52988006", "SCT", "Lesion")
_TILE = Code("TILE", SCHEME, "Tile above the threshold")
_AREA = Code("42798000", "SCT", "Area")
_MM2 = Code("mm2", "UCUM", "square millimeter")
_MAXIMUM = Code("MAXIMUM", SCHEME, "Maximum anomaly score")
_MEAN = Code("MEAN", SCHEME, "Mean anomaly score")
_OF_TILES = {
    "score": (SCORE, codes.UCUM.NoUnits),
    "percentile": (PERCENTILE, codes.UCUM.Percent),
    "reconstruction": (RECONSTRUCTION, codes.UCUM.NoUnits),
    "norm": (NORM, codes.UCUM.NoUnits),
    "p_value": (P_VALUE, codes.UCUM.NoUnits),
}
_PIXELS_PER_TILE = 4  # of the segmentation, as of the heat map
# What the results need to know of the source; the rest is not copied, valid or not.
_GEOMETRY = (
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "ImageOrientationSlide"),
    *("TotalPixelMatrixOriginSequence", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
    *("Rows", "Columns", "NumberOfFrames", "SharedFunctionalGroupsSequence", "ImageType"),
    *("DimensionOrganizationType", "ImagedVolumeWidth", "ImagedVolumeHeight", "ImagedVolumeDepth"),
    *("SamplesPerPixel", "Modality", "ContainerIdentifier", "ContainerTypeCodeSequence"),
    *("IssuerOfTheContainerIdentifierSequence", "SpecimenDescriptionSequence"),
)
_REQUIRED = ("FrameOfReferenceUID", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence")

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Origin:
    """What the results are made of, and by what; checked when made.

    Attributes:
        source: header of the slide's finest level, without pixels.
        detector: SHA-256 of the detector, as hexadecimal.
        version: of esad-med.
        created: the time of the place, as is usual in DICOM.

    Raises:
        CaseError: the source lacks what a reference to it is made of, or says not where it lies.
    """

    source: Dataset
    detector: str
    version: str
    created: datetime.datetime

    def __post_init__(self) -> None:
        """Refuse a source that nothing can be laid over."""
        if not re.fullmatch("[0-9a-f]{64}", self.detector):
            raise ValueError("expected the detector's SHA-256 as 64 hexadecimal digits")
        for keyword in UIDS:
            read_uid(self.source, keyword)
        for keyword in _REQUIRED:
            if not self.source.get(keyword):
                raise CaseError(
                    f"{keyword} of the source slide is missing; DICOM results cannot be laid over"
                    " it, repair the header first"
                )

    def uid(self, kind: str, content: bytes) -> str:
        """The same UID for the same slide, detector, version and content."""
        parts = (MAKER, self.version, kind, read_uid(self.source, "SOPInstanceUID"), self.detector)
        return generate_uid(entropy_srcs=["\n".join(parts), hashlib.sha256(content).hexdigest()])

    def evidence(self) -> Dataset:
        """What highdicom wants to know of the source; identifiers are filled in afterwards."""
        evidence = Dataset()
        for keyword in UIDS:
            setattr(evidence, keyword, read_uid(self.source, keyword))
        for keyword in IDENTIFIERS:
            setattr(evidence, keyword, None)
        for keyword in _GEOMETRY:
            if keyword in self.source:
                evidence[keyword] = self.source[keyword]
        return evidence

    def to_slide(self) -> Callable[[Points], Points]:
        """From level-0 pixels, (n, 2), to (n, 3) mm in the slide's frame of reference."""
        from highdicom.spatial import ImageToReferenceTransformer

        return ImageToReferenceTransformer.for_image(self.source, for_total_pixel_matrix=True)


def build_segmentation(origin: Origin, tiles: SlideTiles, lesions: Sequence[Lesion]) -> Dataset:
    """A binary Segmentation of one segment, the lesions; a quarter of a tile's edge per pixel.

    Where nothing lies above the threshold it is empty, which says that the slide was screened.

    Raises:
        ConfigError: highdicom is not installed.
    """
    require_highdicom()
    from highdicom import PixelMeasuresSequence, PlanePositionSequence
    from highdicom.seg import Segmentation, SegmentDescription

    source = origin.source
    step = tiles.edge_level0 / _PIXELS_PER_TILE
    mask = _rasterize(lesions, step, tiles.slide_size)
    spacing = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    place = origin.to_slide()(np.array([[step / 2, step / 2]]))[0]  # of the first pixel's center
    content = mask.tobytes()
    dataset = Segmentation(
        source_images=[origin.evidence()],
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=[
            SegmentDescription(
                segment_number=1,
                segment_label="Lesions",
                segmented_property_category=_ABNORMAL,
                segmented_property_type=_LESION,
                algorithm_type="AUTOMATIC",
                algorithm_identification=_algorithm(origin, tiles),
            )
        ],
        pixel_measures=PixelMeasuresSequence(
            pixel_spacing=[float(value) * step for value in spacing], slice_thickness=0.001
        ),
        plane_positions=[PlanePositionSequence("SLIDE", place, (1, 1))],
        tile_pixel_array=True,
        dimension_organization_type="TILED_SPARSE",
        omit_empty_frames=bool(mask.any()),
        content_label="LESIONS",
        content_description=_description(tiles),
        sop_instance_uid=origin.uid("segmentation", content),
        series_instance_uid=origin.uid("segmentation series", content),
        series_number=_SEGMENTATION_SERIES,
        **_common(origin),
    )
    dataset.PatientOrientation = None  # demanded of a slide, too, where it means nothing
    return _file_under_study(dataset, origin, "ESAD lesions (research use only)")


def build_annotations(origin: Origin, tiles: SlideTiles, lesions: Sequence[Lesion]) -> Dataset:
    """Microscopy Bulk Simple Annotations: the tiles above the threshold, and lesions' outer rings.

    Each with its measurements. Annotations know no holes: those are in the Segmentation.

    Raises:
        ConfigError: highdicom is not installed.
        ValueError: no tile lies above the threshold; the standard has no empty annotations.
    """
    require_highdicom()
    from highdicom.ann import MicroscopyBulkSimpleAnnotations

    if not tiles.above.any():
        raise ValueError("expected tiles above the threshold")
    groups = [_tile_group(origin, tiles)]
    if lesions:
        groups.append(_lesion_group(origin, tiles, lesions))
    content = b"".join(str(group.AnnotationGroupUID).encode() for group in groups)
    dataset = MicroscopyBulkSimpleAnnotations(
        source_images=[origin.evidence()],
        annotation_coordinate_type="3D",
        annotation_groups=groups,
        content_label="ANOMALIES",
        content_description=_description(tiles),
        sop_instance_uid=origin.uid("annotations", content),
        series_instance_uid=origin.uid("annotations series", content),
        series_number=_ANNOTATION_SERIES,
        **_common(origin),
    )
    return _file_under_study(dataset, origin, "ESAD anomalous tiles (research use only)")


def _tile_group(origin: Origin, tiles: SlideTiles) -> "AnnotationGroup":
    from highdicom.ann import AnnotationGroup, Measurements

    above = tiles.above
    edge = tiles.drawn_edge
    square = np.array([[0, 0], [edge, 0], [edge, edge], [0, edge]])
    corners = (tiles.xy_level0[above][:, None] + square).reshape(-1, 2).astype(np.float64)
    points = origin.to_slide()(corners).reshape(-1, 4, 3).astype(np.float32)
    measured = [
        Measurements(*_named(_OF_TILES[name], values[above].astype(np.float32)))
        for name, values in tiles.measurements.items()
        if name in _OF_TILES
    ]
    return AnnotationGroup(
        number=1,
        uid=origin.uid("tiles", points.tobytes() + tiles.measurements["score"][above].tobytes()),
        label="Tiles above the threshold",
        annotated_property_category=_ABNORMAL,
        annotated_property_type=_TILE,
        graphic_type="RECTANGLE",
        graphic_data=list(points),
        algorithm_type="AUTOMATIC",
        algorithm_identification=_algorithm(origin, tiles),
        measurements=measured,
        description=_description(tiles),
    )


def _lesion_group(
    origin: Origin, tiles: SlideTiles, lesions: Sequence[Lesion]
) -> "AnnotationGroup":
    from highdicom.ann import AnnotationGroup, Measurements

    to_slide = origin.to_slide()
    rings = [
        to_slide(np.array(lesion.rings[0][:-1], dtype=np.float64)).astype(np.float32)
        for lesion in lesions
    ]
    none = codes.UCUM.NoUnits
    measured = [
        Measurements(*_named(kind, np.array(values, dtype=np.float32)))
        for kind, values in (
            ((_AREA, _MM2), [lesion.area_mm2 for lesion in lesions]),
            ((_MAXIMUM, none), [lesion.maximum for lesion in lesions]),
            ((_MEAN, none), [lesion.mean for lesion in lesions]),
        )
    ]
    return AnnotationGroup(
        number=2,
        uid=origin.uid("lesions", b"".join(ring.tobytes() for ring in rings)),
        label="Lesions, outer outlines",
        annotated_property_category=_ABNORMAL,
        annotated_property_type=_LESION,
        graphic_type="POLYGON",
        graphic_data=rings,
        algorithm_type="AUTOMATIC",
        algorithm_identification=_algorithm(origin, tiles),
        measurements=measured,
        description=_description(tiles),
    )


def _named(kind: tuple[Code, Code], values: npt.NDArray[np.float32]) -> tuple[Any, ...]:
    """The arguments of highdicom's Measurements: name, values, unit."""
    return kind[0], values, kind[1]


def _rasterize(
    lesions: Sequence[Lesion], step: float, slide_size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """(h, w) bool: the pixels of ``step`` level-0 pixels whose centers lie in a lesion."""
    width, height = (max(1, int(np.ceil(round(side / step, 6)))) for side in slide_size)
    mask = np.zeros((height, width), dtype=np.bool_)
    for lesion in lesions:
        left, top, right, bottom = (round(value / step) for value in lesion.polygon.bounds)
        ys, xs = slice(max(0, top - 1), bottom + 1), slice(max(0, left - 1), right + 1)
        y, x = np.mgrid[ys, xs].astype(np.float64)
        shapely.prepare(lesion.polygon)
        inside = shapely.contains_xy(lesion.polygon, (x + 0.5) * step, (y + 0.5) * step)
        part = mask[ys, xs]
        part |= inside[: part.shape[0], : part.shape[1]]
    return mask


def _algorithm(origin: Origin, tiles: SlideTiles) -> "AlgorithmIdentificationSequence":
    from highdicom import AlgorithmIdentificationSequence

    return AlgorithmIdentificationSequence(
        name=ALGORITHM,
        version=origin.version,
        family=codes.DCM.ArtificialIntelligence,
        parameters={
            "detector SHA-256": origin.detector,
            "threshold of the score": f"{tiles.threshold:.6g}",
        },
    )


def _description(tiles: SlideTiles) -> str:
    """An LO: 64 characters."""
    return f"{NOT_FOR_DIAGNOSIS}; score above {tiles.threshold:.4g}"[:64]


def _common(origin: Origin) -> dict[str, Any]:
    return {
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": origin.version,
        "device_serial_number": origin.version,
    }


def _file_under_study(dataset: Dataset, origin: Origin, series: str) -> Dataset:
    """Give an object the study's identifiers, and the caller's time for highdicom's own clock."""
    date, time = moment(origin.created)
    dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = date
    dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = time
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = date + time
    dataset.SeriesDescription = series
    dataset.update(copy_identifiers(origin.source, beside=series))
    return dataset
