"""SEG and ANN of a DICOM slide, read back by highdicom and pydicom and laid over the slide."""

import datetime
import logging
import shutil
import subprocess

import highdicom
import numpy as np
import pytest
import shapely
from dicom_slides import ORIGIN_MM, STRAIGHT, TURNED, write_dicom_slide
from pydicom import dcmread
from scored_tiles import EDGE, MPP, SIZE, covered, scored_tiles

from data_prep.slide_dicom import one_file_per_slide, read_slide_header
from esad_med.base.errors import CaseError, SlideError
from esad_med.outputs.dicom import write_dicom
from esad_med.outputs.lesions import find_lesions
from esad_med.outputs.slide_dicom import Origin, build_annotations, build_segmentation


@pytest.fixture(scope="module", params=[TURNED, STRAIGHT], ids=["turned", "straight"])
def slide(request, tmp_path_factory):
    """A plain slide of three levels, as scanners lay it, and the other way."""
    picture = np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)
    folder = tmp_path_factory.mktemp("dicom")
    return write_dicom_slide(folder, picture, mpp=MPP, levels=3, orientation=request.param)


@pytest.fixture(scope="module")
def origin(slide):
    created = datetime.datetime(2026, 1, 2, 3, 4, 5)
    return Origin(read_slide_header(slide[-1], SIZE), "0" * 64, "0.1", created)


@pytest.fixture(scope="module")
def results(origin, tmp_path_factory):
    folder, tiles = tmp_path_factory.mktemp("results"), scored_tiles()
    lesions = find_lesions(tiles)
    write_dicom(folder / "seg.dcm", build_segmentation(origin, tiles, lesions))
    write_dicom(folder / "ann.dcm", build_annotations(origin, tiles, lesions))
    return folder


def to_pixels(points_mm, orientation):
    """Level-0 pixels of points in mm, by hand: an inverse of what the header says."""
    right, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    axes = np.stack([right, down], axis=1)[:2] * MPP / 1000
    return np.linalg.solve(axes, (points_mm[:, :2] - np.array(ORIGIN_MM)).T).T


def test_the_segmentation_covers_the_lesions(results, slide, origin):
    seg = highdicom.seg.segread(results / "seg.dcm")
    mask = seg.get_total_pixel_matrix(combine_segments=True)
    step = EDGE / 4
    assert mask.shape == (60, 64)
    expected = covered(scored_tiles(), step)
    assert (mask[: expected.shape[0]].astype(bool) == expected).all()
    spacing = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert list(spacing) == [step * MPP / 1000] * 2
    place = seg.TotalPixelMatrixOriginSequence[0]
    first = [[place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem]]
    center = to_pixels(np.array(first, float), origin.source.ImageOrientationSlide)
    assert center[0] == pytest.approx([step / 2, step / 2], abs=0.01)


def test_annotations_lie_on_their_tiles_and_carry_their_numbers(results, origin):
    ann = highdicom.ann.annread(results / "ann.dcm")
    tiles = scored_tiles()
    group, outlines = ann.get_annotation_groups()
    squares = group.get_graphic_data(coordinate_type="3D")
    orientation = origin.source.ImageOrientationSlide
    for square, (left, top) in zip(squares, tiles.xy_level0[tiles.above], strict=True):
        corners = to_pixels(square, orientation)
        expected = [(0, 0), (EDGE, 0), (EDGE, EDGE), (0, EDGE)]
        np.testing.assert_allclose(corners, np.add(expected, (left, top)), atol=0.05)  # px
    names, values, _ = group.get_measurements()
    assert [name.meaning for name in names][:2] == [
        "Anomaly score",
        "Anomaly score percentile among normal images",
    ]
    for column, name in enumerate(("score", "percentile", "reconstruction", "norm")):
        np.testing.assert_array_equal(values[:, column], tiles.measurements[name][tiles.above])
    lesions = find_lesions(tiles)
    rings = outlines.get_graphic_data(coordinate_type="3D")
    for ring, lesion in zip(rings, lesions, strict=True):
        outline = shapely.Polygon(to_pixels(ring, orientation))
        outer = shapely.Polygon(lesion.polygon.exterior)
        assert outline.symmetric_difference(outer).area < 1e-3 * outer.area
    _, areas, _ = outlines.get_measurements()
    np.testing.assert_allclose(areas[:, 0], [lesion.area_mm2 for lesion in lesions], rtol=1e-6)


@pytest.mark.parametrize("kind", ["seg", "ann"])
def test_results_refer_to_the_slide_and_carry_its_identifiers(results, slide, kind):
    result, source = dcmread(results / f"{kind}.dcm"), dcmread(slide[0])
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
        *("StudyDate", "AccessionNumber", "FrameOfReferenceUID"),
    ):
        assert result[keyword].value == source[keyword].value, keyword
    series = result.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    reference = series.ReferencedInstanceSequence[0]
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert result.SeriesInstanceUID != source.SeriesInstanceUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is missing")
@pytest.mark.parametrize("name", ["seg", "ann", "empty", "source"])
def test_dciodvfy_finds_no_error(results, origin, slide, tmp_path, name):
    path = results / f"{name}.dcm"
    if name == "source":
        path = slide[0]
    elif name == "empty":
        path = tmp_path / "empty.dcm"
        write_dicom(path, build_segmentation(origin, scored_tiles(lesions=False), []))
    run = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    assert "Error" not in run.stderr + run.stdout


def test_an_empty_segmentation_says_that_nothing_was_found(origin):
    mask = build_segmentation(origin, scored_tiles(lesions=False), []).pixel_array
    assert not mask.any()


def test_nothing_of_the_patient_is_logged(origin, caplog):
    caplog.set_level(logging.DEBUG)
    tiles = scored_tiles()
    build_segmentation(origin, tiles, find_lesions(tiles))
    for text in ("Roe", "MRN-0815", origin.source.SOPInstanceUID, origin.source.StudyInstanceUID):
        assert text not in caplog.text


def test_equal_results_have_equal_identifiers(origin):
    tiles = scored_tiles()
    one, two = (build_annotations(origin, tiles, find_lesions(tiles)) for _ in range(2))
    assert one.SOPInstanceUID == two.SOPInstanceUID
    higher = scored_tiles(threshold=2.2)
    other = build_annotations(origin, higher, find_lesions(higher))
    assert other.SOPInstanceUID != one.SOPInstanceUID


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "ImageOrientationSlide"])
def test_a_slide_that_says_not_where_it_lies_is_refused(slide, keyword):
    source = read_slide_header(slide[0], SIZE)
    delattr(source, keyword)
    with pytest.raises(CaseError, match=f"{keyword} of the source slide is missing"):
        Origin(source, "0" * 64, "0.1", datetime.datetime(2026, 1, 1))


def test_of_the_levels_in_a_folder_the_finest_is_taken(slide, results, tmp_path):
    for path in (*slide, results / "seg.dcm"):
        shutil.copy(path, tmp_path)
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    (tmp_path / "other.svs").touch()
    found = one_file_per_slide(sorted(tmp_path.iterdir()))
    assert [path.name for path in found] == ["broken.dcm", "level0.dcm", "other.svs"]


def test_the_finest_level_is_found_by_any_file_or_missed_in_words(slide, tmp_path):
    assert read_slide_header(slide[2], SIZE).InstanceNumber == 1
    alone = shutil.copy(slide[2], tmp_path / "alone.dcm")
    with pytest.raises(SlideError, match="copy all levels of the slide into one folder"):
        read_slide_header(alone, SIZE)
    text = tmp_path / "t.dcm"
    text.write_text("no DICOM at all")
    with pytest.raises(SlideError, match="is no DICOM slide"):
        read_slide_header(text, SIZE)
