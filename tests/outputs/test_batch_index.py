"""The batch's index: small for a thousand slides, safe, and read without its script."""

import re

import numpy as np
import pytest
from PIL import Image
from test_report import make_report, parse, visible

from esad_med.outputs.batch_index import Batch, BatchRow, render_batch_index, write_thumbnail

EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'"


def make_row(case_id="s01", **changes):
    values = {
        "case_id": case_id,
        "slide_score": 2.5,
        "slide_percentile": 99.97,
        "maximum": 3.25,
        "area_above_mm2": 0.0125,
        "tiles": 1234,
        "unreadable": 2,
        "above": True,
        "decision": "",
        "p_value": None,
        "thumbnail": True,
        "report": True,
        "viewer": False,
    }
    return BatchRow(**(values | changes))


def make_batch(rows, **changes):
    values = {
        "rows": rows,
        "set_aside": [("s09", "the file is empty")],
        "slide_rule": "mean of the highest 1 %",
        "threshold_rule": "99th percentile of held-out normal tiles",
        "detector": "abc123",
        "created": "2026-01-02",
    }
    return Batch(**(values | changes))


def test_the_page_shows_its_numbers_without_running_anything():
    page = render_batch_index(make_batch([make_row()]))
    text = visible(page)
    for wanted in ("s01", "2.500", "99.9", "3.250", "0.01250", "1,234", "1 set aside", "s09"):
        assert wanted in text
    assert "Decision" not in text
    tags = parse(page).tags
    assert ("form", {"class": "filter", "hidden": None}) in tags  # the script shows it
    assert {a["href"] for t, a in tags if t == "a"} == {"s01/report.html", "#set-aside"}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import", page)


def test_decisions_are_shown_where_there_are_some_and_mark_the_rows():
    rows = [make_row("a", decision="alarm", p_value=0.004), make_row("b", decision="no alarm")]
    page = render_batch_index(make_batch([*rows, make_row("c", above=False)]))
    assert "0.004000" in visible(page)
    options = re.search(r'<select id="decision".*?</select>', page)[0]
    assert re.findall(r"<option>(.*?)</option>", options) == ["alarm", "no alarm"]
    assert page.count('<tr class="marked"') == 1


def test_texts_are_escaped_and_names_quoted():
    row = make_row("50% #1?&.svs", decision=EVIL)
    page = render_batch_index(make_batch([row], set_aside=[(EVIL, EVIL)], detector=EVIL))
    tags = parse(page).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert [a["src"] for t, a in tags if t == "img"] == ["50%25%20%231%3F%26.svs/thumbnail.jpg"]


def test_a_thousand_slides_are_a_page_of_a_few_hundred_kilobytes():
    rows = [make_row(f"case_{i:04d}", decision="review", p_value=i / 1000) for i in range(1000)]
    page = render_batch_index(make_batch(rows))
    assert len(page.encode()) < 1.6e6
    assert "data:image" not in page


def test_a_thumbnail_is_a_small_picture_with_the_scores_in_color(tmp_path):
    report = make_report(thumbnail=np.full((800, 1000, 3), 240, np.uint8), downsample=1.6)
    write_thumbnail(tmp_path / "t.jpg", report)
    assert (tmp_path / "t.jpg").stat().st_size < 20_000
    with Image.open(tmp_path / "t.jpg") as picture:
        assert max(picture.size) == 288
        colors = np.asarray(picture).astype(int)
    assert (np.ptp(colors, axis=2) > 40).any()


@pytest.mark.parametrize("rows", [[], [make_row(thumbnail=False, report=False)]])
def test_pages_with_little_in_them(rows):
    page = render_batch_index(make_batch(rows, set_aside=[], detector=""))
    assert "<img" not in page
    assert ("No slide was screened" in page) == (not rows)
