"""The page of an audit: self-contained, safe against what stands in names, complete."""

import base64
import dataclasses
import io
import re

import numpy as np
from PIL import Image

from esad_med.outputs.audit_page import (
    AuditPage,
    Card,
    CheckLine,
    Section,
    render_audit_page,
    thumbnail,
    write_audit_page,
)

EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'"


def make_page(**changes):
    picture = thumbnail(np.full((16, 16, 3), (200, 90, 160), np.uint8))
    pair = Card((picture, picture), "near copy", {"first": "a", "second": "b"}, "train | test")
    rank = Card((picture,), "rank 1", {"sample": "s1", "case": "slide 3"})
    values = {
        "name": "my-store",
        "facts": "2026-11-29 · 10 tiles",
        "figures": (("Leaks", "1", "between splits", True), ("Copies", "2", "1 exact", False)),
        "checks": (
            CheckLine("patients across splits", "not checked", 0, "no patient ids"),
            CheckLine("near copies", "done", 1, ""),
        ),
        "leaks": ({"What": "case", "Splits": "test | train", "Samples": "2"},),
        "leaks_found": 7,
        "sections": (
            Section("copies", "Copies", "How.", 30, "duplicates.csv", (pair,)),
            Section("pollution", "Likely pollution", "How.", 1, "pollution.csv", (rank,)),
            Section("quality", "Blank", "How.", 0, "quality.csv", (), "Not checked: rows."),
        ),
        "provenance": {"Seed": "0"},
        "created": "Made on 2026-11-29.",
    }
    return AuditPage(**{**values, **changes})


def test_the_page_shows_what_was_found_and_what_was_not_checked():
    html = render_audit_page(make_page())
    for text in ("my-store", "no patient ids", "Not checked: rows.", "train | test", "rank 1"):
        assert text in html
    assert "The first 1 of 30 are shown; duplicates.csv lists them." in html
    assert "leaks.csv lists all 7" in html
    assert html.count('src="data:image/jpeg;base64,') == 3
    assert "None was found among what could be checked." in render_audit_page(make_page(leaks=()))


def test_a_check_that_was_not_made_shows_no_number():
    row = re.search(r"<tr><th[^>]*>patients.*?</tr>", render_audit_page(make_page()), re.DOTALL)
    assert row
    assert "–" in row[0]
    assert "<td>0</td>" not in row[0]


def test_nothing_is_loaded_and_nothing_runs():
    html = render_audit_page(make_page())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert policy[1].startswith("default-src &#39;none&#39;; img-src data:")
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "<script" not in html


def test_names_cannot_break_out():
    section = Section(EVIL, EVIL, EVIL, 1, EVIL, (Card((), EVIL, {EVIL: EVIL}, EVIL),))
    page = make_page(
        name=EVIL,
        checks=(CheckLine(EVIL, "done", 1, EVIL),),
        leaks=({EVIL: EVIL},),
        sections=(section,),
        provenance={EVIL: EVIL},
    )
    html = render_audit_page(page)
    assert "<script" not in html
    assert "<img src=x" not in html


def test_light_and_dark_are_told_apart():
    html = render_audit_page(make_page())
    assert "prefers-color-scheme: dark" in html
    assert 'content="light dark"' in html


def test_equal_findings_give_equal_bytes(tmp_path):
    write_audit_page(tmp_path / "a.html", make_page())
    assert (tmp_path / "a.html").read_text("utf-8") == render_audit_page(make_page())
    other = dataclasses.replace(make_page(), created="Made on 2026-11-30.")
    assert render_audit_page(other) != render_audit_page(make_page())


def test_thumbnails_are_small_and_keep_their_colors():
    def decoded(picture):
        return Image.open(io.BytesIO(base64.b64decode(thumbnail(picture).partition(",")[2])))

    large = decoded(np.full((300, 200, 3), (200, 90, 160), np.uint8))
    assert max(large.size) == 128
    assert np.abs(np.asarray(large).astype(int) - (200, 90, 160)).max() < 8
    assert decoded(np.full((28, 28, 1), 77, np.uint8)).mode == "L"
    assert decoded(np.full((28, 28, 2), 77, np.uint8)).size == (28, 28)
