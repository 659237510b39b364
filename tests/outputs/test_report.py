"""The slide report: self-contained, safe against what stands in names, and true to its numbers."""

import base64
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from esad_med.outputs.heatmap import colorize, quantize
from esad_med.outputs.pages import format_number, format_percentile
from esad_med.outputs.report import (
    SlideReport,
    TilePicture,
    _scale_bar,
    draw_overlay,
    render_report,
    shrink_overview,
    write_report,
)


def make_report(**changes):
    random = np.random.default_rng(0)
    xy = np.array([(x, y) for y in (256, 512) for x in (256, 512, 768)])
    tiles = random.integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    values = {
        "case_id": "s07",
        "slide_score": 2.5,
        "slide_rule": "mean of the 10 highest tile scores (top 1 %, at least 10)",
        "slide_percentile": 99.97,
        "maximum": 3.25,
        "threshold": 1.75,
        "threshold_rule": "99th percentile of held-out normal tiles",
        "area_above_mm2": 0.0125,
        "area_tiled_mm2": 0.05,
        "xy_level0": xy,
        "edge_level0": 256.0,
        "score": np.array([1.0, 1.5, 2.0, 2.5, 3.0, 3.25], dtype=np.float32),
        "percentile": np.array([50, 70, 99, 99.9, 100, 100], dtype=np.float32),
        "reconstruction": np.full(6, 0.25, dtype=np.float32),
        "norm": np.full(6, 0.5, dtype=np.float32),
        "thumbnail": np.full((160, 200, 3), 240, dtype=np.uint8),
        "downsample": 8.0,
        "slide_size": (1600, 1280),
        "slide_mpp": 0.25,
        "normal_quantiles": {0.5: 1.0, 0.95: 1.5, 0.99: 1.75},
        "most": [TilePicture(5, tiles[5]), TilePicture(4, tiles[4])],
        "least": [TilePicture(0, tiles[0])],
        "provenance": {"Detector": "abc123", "Version of torch": "2.13.0"},
        "created": "2026-01-02",
    }
    return SlideReport(**(values | changes))


class Collector(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    collector = Collector()
    collector.feed(page)
    return collector


def visible(page):
    return re.sub(r"\s+", " ", " ".join(parse(page).text))


def test_page_refers_to_nothing_outside_and_forbids_scripts():
    page = parse(render_report(make_report()))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "a"}
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 7  # slide, overlay, legend, three tiles, histogram
    assert all(source.startswith("data:image/") for source in sources)
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "url(" not in render_report(make_report())


def test_page_shows_the_numbers_it_was_given():
    text = visible(render_report(make_report()))
    for wanted in (
        "Slide score 2.500",
        "99.9 percentile",  # 99.97 is not rounded up to "above all"
        "Highest tile 3.250",
        "0.01250 mm²",
        "(25.0 %)",
        "at 0.25 µm/px",
        "512, 512",  # the position of tile 4
        "abc123",
        "2026-01-02",
        "not for diagnosis",
    ):
        assert wanted in text, wanted
    assert "could not be read" not in text


def test_tile_pictures_are_kept_to_the_pixel():
    report = make_report()
    images = [a for tag, a in parse(render_report(report)).tags if tag == "img"]
    shown = [a["src"] for a in images if a["alt"].startswith("Tile")]
    data = base64.b64decode(shown[0].split(",")[1])
    assert (np.asarray(Image.open(io.BytesIO(data))) == report.most[0].picture).all()


def test_overlay_colors_lie_where_the_tiles_are():
    report = make_report()
    overlay = draw_overlay(report, report.thumbnail, report.downsample).astype(float)
    limits = (1.0, 2.5)  # median, and twice as far as the 99th percentile
    for (x, y), score in zip(report.xy_level0, report.score, strict=True):
        wanted = 0.62 * colorize(quantize([score], limits=limits))[0] + 0.38 * 240
        at = overlay[int((y + 128) / 8), int((x + 128) / 8)]
        assert np.abs(at - wanted).max() <= 1
    assert (overlay[:32] == 240).all()
    assert (overlay[96:] == 240).all()


@pytest.mark.parametrize("field", ["case_id", "slide_rule", "threshold_rule", "created"])
def test_markup_in_names_is_shown_not_run(field):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)> %"
    page = render_report(make_report(**{field: evil}))
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "alert(1)" in visible(page)


def test_markup_in_tables_is_shown_not_run():
    evil = "</td><script>alert(1)</script>"
    page = render_report(make_report(provenance={evil: evil}, failures=[(evil, evil)]))
    assert "<script" not in page


def test_failures_are_counted_and_the_first_listed():
    failures = [(f"tile {i}", f"message {i}") for i in range(25)]
    text = visible(render_report(make_report(failures=failures)))
    assert "25 could not be read" in text
    assert "The first 20 of 25 are listed" in text
    assert "message 19" in text
    assert "message 20" not in text


def test_same_report_same_page_and_large_thumbnails_shrink(tmp_path):
    random = np.random.default_rng(1)
    large = random.integers(0, 255, (1500, 2400, 3), dtype=np.uint8)
    report = make_report(thumbnail=large, downsample=2 / 3)
    write_report(tmp_path / "a.html", report)
    write_report(tmp_path / "b.html", report)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "b.html").read_text(encoding="utf-8")
    source = next(a["src"] for tag, a in parse(page).tags if tag == "img")
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        assert image.size == (900, 562)


def test_a_shrunk_overview_keeps_its_frame():
    thumbnail = np.full((1280, 1600, 3), 240, dtype=np.uint8)
    report = make_report(thumbnail=thumbnail, downsample=1.0)
    small, downsample = shrink_overview(report.thumbnail, report.downsample)
    assert small.shape == (720, 900, 3)
    colored = (draw_overlay(report, small, downsample) != 240).any(axis=2)
    rows, columns = np.flatnonzero(colored.any(axis=1)), np.flatnonzero(colored.any(axis=0))
    scale = 900 / 1600  # tiles reach from 256 to 1024 across and to 768 down
    assert (columns[0], columns[-1] + 1) == (round(256 * scale), round(1024 * scale))
    assert (rows[0], rows[-1] + 1) == (round(256 * scale), round(768 * scale))


def test_a_page_without_tile_pictures_still_stands():
    assert "Most anomalous tiles" in visible(render_report(make_report(most=[], least=[])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": np.zeros(5)}, "three values per score"),
        ({"xy_level0": np.zeros((6, 3), dtype=int)}, "one position"),
        ({"thumbnail": np.zeros((4, 4, 3))}, "uint8"),
        ({"most": [TilePicture(6, np.zeros((64, 64, 3), dtype=np.uint8))]}, "among 6 tiles"),
        ({"normal_quantiles": {0.5: 1.0}}, "0.99"),
    ],
)
def test_reports_that_contradict_themselves(changes, message):
    with pytest.raises(ValueError, match=message):
        make_report(**changes)


@pytest.mark.parametrize(
    ("size", "mpp", "text", "share"),
    [((1600, 1200), 0.25, "50 µm", 0.125), ((100_000, 80_000), 0.25, "5 mm", 0.2)],
)
def test_scale_bar_is_round_and_true(size, mpp, text, share):
    bar = _scale_bar(dataclasses.replace(make_report(), slide_size=size, slide_mpp=mpp))
    assert bar == (text, pytest.approx(share))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.97, "0.9700"), (1234.0, "1234"), (123456.7, "123,457"), (1e-5, "1.000e-05"), (0, "0.000")],
)
def test_numbers(value, text):
    assert format_number(value) == text


def test_percentiles_round_down():
    assert [format_percentile(v) for v in (99.99, 100.0, 0.0, 99.9)] == [
        "99.9",
        "100.0",
        "0.0",
        "99.9",
    ]


def test_the_policy_names_the_page_s_style_and_nothing_else():
    page = render_report(make_report())
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(a["content"] for _, a in parse(page).tags if "http-equiv" in a)
    assert f"style-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert not [name for _, attrs in parse(page).tags for name in attrs if name == "style"]
