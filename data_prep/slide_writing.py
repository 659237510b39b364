"""What a composed slide is written as: a pyramidal TIFF, an ASAP XML and a manifest."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
import shapely

from data_prep.color import Bytes
from esad_med.base.cases import MANIFEST_COLUMNS, Case
from esad_med.base.runs import atomic_file, write_csv, write_text

_TIFF_TILE = 256
Polygon = tuple[str, Sequence[Sequence[float]]]  # group, vertices (x, y) in level-0 pixels


def write_pyramid(
    path: Path, rgb: Bytes, *, mpp: float, levels: int, description: str, quality: int = 90
) -> None:
    """Write a flat tiled JPEG TIFF, each level half of the one before, that OpenSlide opens.

    Args:
        path: the file.
        rgb: level 0, (h, w, 3); sides are cropped to whole pixels of the last level.
        mpp: µm per pixel of level 0, kept in the resolution tags.
        levels: number of levels.
        description: the ImageDescription.
        quality: of the JPEG.
    """
    import tifffile

    step = 2 ** (levels - 1)
    rgb = rgb[: rgb.shape[0] // step * step, : rgb.shape[1] // step * step]
    with (
        atomic_file(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=False) as writer,
    ):
        for level in range(levels):
            pixels_per_cm = 1e4 / (mpp * 2**level)
            writer.write(
                rgb,
                tile=(_TIFF_TILE, _TIFF_TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=1 if level else 0,
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                description=description if level == 0 else None,
                software=False,
                metadata=None,
            )
            wide = rgb.astype(np.uint16)
            total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
            rgb = (total + 2 >> 2).astype(np.uint8)


def write_asap(path: Path, polygons: Iterable[Polygon]) -> None:
    """Write polygons as ASAP XML with Camelyon16's groups: ``Tumor``, and ``_2`` for exclusions."""
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "  <Annotations>"]
    for number, (group, vertices) in enumerate(polygons):
        lines.append(
            f'    <Annotation Name="Annotation {number}" Type="Polygon"'
            f' PartOfGroup={quoteattr(group)} Color="#F4FA58"><Coordinates>'
        )
        lines += [
            f'      <Coordinate Order="{order}" X="{x:.1f}" Y="{y:.1f}" />'
            for order, (x, y) in enumerate(vertices)
        ]
        lines.append("    </Coordinates></Annotation>")
    lines += ["  </Annotations>", "  <AnnotationGroups>"]
    lines += [
        f'    <Group Name="{group}" PartOfGroup="None" Color="{color}"><Attributes /></Group>'
        for group, color in (("Tumor", "#F4FA58"), ("_2", "#00FF00"))
    ]
    write_text(path, "\n".join([*lines, "  </AnnotationGroups>", "</ASAP_Annotations>", ""]))


def write_manifest(path: Path, cases: Sequence[Case]) -> None:
    """Write cases as a manifest; files are named relative to it."""
    write_csv(
        path,
        MANIFEST_COLUMNS,
        [
            (
                case.path.name,
                case.case_id,
                case.patient_id,
                case.split,
                {0: "normal", 1: "tumor", None: ""}[case.truth],
                case.annotation.name if case.annotation else "",
                "" if case.mpp is None else case.mpp,
            )
            for case in cases
        ],
    )


def cell_outlines(cells: npt.NDArray[np.bool_], size: int) -> list[Polygon]:
    """Outlines of square cells (rows, columns) of ``size`` pixels; holes as group ``_2``."""
    boxes = [
        shapely.box(column * size, row * size, (column + 1) * size, (row + 1) * size)
        for row, column in np.argwhere(cells)
    ]
    union = shapely.union_all(boxes)
    parts = [part for part in shapely.get_parts(union) if isinstance(part, shapely.Polygon)]
    outer: list[Polygon] = [("Tumor", list(part.exterior.coords)[:-1]) for part in parts]
    return outer + [("_2", list(hole.coords)[:-1]) for part in parts for hole in part.interiors]
