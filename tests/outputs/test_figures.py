"""Figures: both formats, the same bytes, and what is drawn."""

import numpy as np
import pytest
from defusedxml import ElementTree
from PIL import Image

from esad_med.outputs.figures import _bin_edges, histogram_svg, write_histogram, write_roc
from esad_med.outputs.quality import write_tiling_picture

CURVES = {"score": ([0, 0, 0.5, 1], [0, 0.6, 0.9, 1]), "norm": ([0, 1], [0, 1])}


def check_pair(paths):
    svg, png = paths
    assert (svg.suffix, png.suffix) == (".svg", ".png")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    with Image.open(png) as image:
        picture = np.asarray(image.convert("RGB"))
    assert picture.std() > 10  # something is drawn
    return svg.read_bytes(), png.read_bytes()


def test_roc_and_histogram_repeat_their_bytes(tmp_path):
    random = np.random.default_rng(0)
    classes = {"normal": random.normal(size=200), "anomalous": random.normal(2, 1, size=50)}
    first, second = (
        (
            check_pair(write_roc(tmp_path / f"roc{run}", CURVES, title="T", specificities=[0.9])),
            check_pair(
                write_histogram(tmp_path / f"h{run}", classes, title="T", marks={"P99": 2.3})
            ),
        )
        for run in range(2)
    )
    assert first == second
    assert b"<dc:date>" not in first[0][0]


def test_dots_in_the_name_stay(tmp_path):
    svg, _ = write_roc(tmp_path / "roc.v1.5", CURVES, title="")
    assert svg.name == "roc.v1.5.svg"


def test_a_title_is_text_not_a_formula(tmp_path):
    write_roc(tmp_path / "roc", CURVES, title=r"$\frac{")  # as mathtext this would raise
    assert (tmp_path / "roc.png").exists()


@pytest.mark.parametrize(
    ("scores", "mark", "scale"),
    [
        ([3.0], -7.0, "linear"),
        ([3.0] * 50, 3.0, "linear"),
        (list(range(100)), -7.0, "linear"),
        ([0.1] * 99 + [50.0], 0.2, "log"),
        ([0.0] * 99 + [50.0], 0.2, "linear"),
    ],
)
def test_bins_hold_every_score_and_mark(scores, mark, scale):
    edges, found = _bin_edges(np.array(scores, dtype=float), [mark])
    assert found == scale
    assert edges[0] < min(*scores, mark)
    assert edges[-1] > max(*scores, mark)
    assert 11 <= len(edges) <= 61
    assert (np.diff(edges) > 0).all()


def test_slide_histogram_is_an_svg_with_its_marks():
    plain = histogram_svg(np.arange(50.0), marks={})
    marked = histogram_svg(np.arange(50.0), marks={"P50": 20.0, "P99": 45.0})
    assert ElementTree.fromstring(marked).tag.endswith("svg")
    assert marked.count(b"stroke-dasharray") == plain.count(b"stroke-dasharray") + 2


def draw_quality(path, **changes):
    thumbnail = np.full((40, 60, 3), 230, dtype=np.uint8)
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 10:50] = True
    settings = {
        "mask": mask,
        "downsample": 16.0,
        "xy_level0": [(160, 160), (320, 160), (480, 160)],
        "edge_level0": 160.0,
        "tumor": [False, True, False],
        "title": "s07",
        "caption": "64 px at 1.0 µm per pixel",
    }
    write_tiling_picture(path, thumbnail, **(settings | changes))
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def count_red(picture):
    red = (picture[..., 0] - picture[..., 1] > 60) & (picture[..., 0] - picture[..., 2] > 60)
    return int(red.sum())


def test_quality_picture_marks_tumor_tiles_red(tmp_path):
    one = count_red(draw_quality(tmp_path / "one.png"))
    two = count_red(draw_quality(tmp_path / "two.png", tumor=[True, True, False]))
    none = count_red(draw_quality(tmp_path / "none.png", tumor=None))
    assert none == 0
    assert one > 500
    assert two == pytest.approx(2 * one, rel=0.15)


def test_quality_picture_repeats_its_bytes_and_takes_no_tiles(tmp_path):
    draw_quality(tmp_path / "a.png")
    draw_quality(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    empty = draw_quality(tmp_path / "c.png", xy_level0=np.empty((0, 2)), tumor=None)
    assert empty.shape[2] == 3


def test_quality_picture_refuses_a_mask_of_another_size(tmp_path):
    with pytest.raises(ValueError, match="do not match"):
        draw_quality(tmp_path / "a.png", mask=np.zeros((3, 3), dtype=bool))
