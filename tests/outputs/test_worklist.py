"""The worklist: in order, self-contained, safe against what stands in names."""

import base64
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from esad_med.outputs.worklist import (
    Picture,
    Worklist,
    WorklistRow,
    render_worklist,
    write_worklist,
)

EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
VOID = {"meta", "img", "input", "br", "link"}


def make_row(rank=1, **changes):
    random = np.random.default_rng(rank)
    gray = np.repeat(np.linspace(0, 255, 40).astype(np.uint8)[:, None], 30, axis=1)
    colored = np.repeat(gray[..., None], 3, axis=2)
    colored[10:20, 10:20] = (220, 90, 20)
    values = {
        "rank": rank,
        "case_id": f"study-{random.integers(16**8):08x}",
        "percentile": 100.0 - rank / 10,
        "score": 4.0 - rank,
        "reconstruction": 2.25,
        "norm": -0.5,
        "view": "PA",
        "images": 1,
        "set_aside": 0,
        "thumbnail": np.repeat(gray[..., None], 3, axis=2),
        "overlay": colored,
        "notes": (),
        "identifiers": {},
        "above": True,
        "detector": "3f9a1b2c",
    }
    values |= changes
    pictures = {name: Picture.of(values[name]) for name in ("thumbnail", "overlay")}
    return WorklistRow(**(values | pictures))


def make_worklist(rows=None, **changes):
    values = {
        "rows": tuple(rows) if rows is not None else (make_row(1), make_row(2)),
        "set_aside": (),
        "rule": "a study ranks by its image with the highest percentile",
        "alarm_percentile": 99.0,
        "provenance": {"Program": "esad-med 0.1.0"},
        "created": "2026-01-02",
        "identified": False,
        "detectors": ({"Views": "PA", "Detector": "3f9a1b2c", "AUC": "0.751"},),
    }
    return Worklist(**(values | changes))


class Collector(HTMLParser):
    """Every tag with its attributes, all text outside of the style, and whether tags close."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def parse(page):
    collector = Collector()
    collector.feed(page)
    collector.close()
    assert collector.open == []
    return collector


def visible(page):
    return re.sub(r"\s+", " ", " ".join(parse(page).text))


def pictures(page):
    images = [attrs for tag, attrs in parse(page).tags if tag == "img" and "loading" in attrs]
    return [(a, base64.b64decode(a["src"].removeprefix("data:image/jpeg;base64,"))) for a in images]


def full_page():
    row = make_row(1, notes=("age unknown",), identifiers={"Patient ID": "P1"}, set_aside=2)
    worklist = make_worklist(
        [row, make_row(2, above=False)],
        identified=True,
        set_aside=(("study-9", "read", "no pixel data"),),
    )
    return render_worklist(worklist)


def test_page_refers_to_nothing_outside_and_forbids_scripts():
    page = full_page()
    tags = parse(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "form", "base"}
    assert all(attrs["src"].startswith("data:image/jpeg;") for tag, attrs in tags if tag == "img")
    assert {attrs["href"] for tag, attrs in tags if tag == "a"} == {"#set-aside"}
    assert "set-aside" in {attrs.get("id") for _, attrs in tags}
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    policy = next(attrs["content"] for _, attrs in tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "script" not in policy  # so that default-src holds for it
    assert not re.search(r"https?:|url\(|@import", page)


def test_page_shows_the_numbers_it_was_given():
    row = make_row(1, percentile=99.97, score=3.25, images=3, set_aside=2, notes=("age unknown",))
    text = visible(render_worklist(make_worklist([row, make_row(2, above=False)])))
    for wanted in (
        "99.9 percentile",  # 99.97 is not rounded up to "above all"
        "Score 3.250",
        "reconstruction 2.250",
        "norm -0.5000",
        "3 scored, 2 set aside",
        "age unknown",
        "at or above P99",
        "At or above P99 1 of 2",
        "Studies ranked 2",
        "Images scored 4",
        "Set aside 0 everything was scored",
        "studies are named by keyed hashes",
        "a study ranks by its image with the highest percentile",
        "0.751",
        "esad-med 0.1.0",
        "2026-01-02",
        "not for diagnosis",
        "A low rank does not exclude disease",
        "the norm term has no place in the image",
    ):
        assert wanted in text, wanted


def test_studies_stand_in_rank_order():
    rows = [make_row(rank) for rank in range(1, 31)]
    tags = parse(render_worklist(make_worklist(rows))).tags
    ids = [attrs["id"] for tag, attrs in tags if tag == "article"]
    assert ids == [f"rank-{rank}" for rank in range(1, 31)]
    text = visible(render_worklist(make_worklist(rows)))
    places = [text.index(f" {row.case_id} ") for row in rows]
    assert places == sorted(places)


def test_one_line_parts_what_is_above_from_what_is_below():
    rows = [make_row(rank, above=rank <= 2) for rank in range(1, 6)]
    text = visible(render_worklist(make_worklist(rows, alarm_percentile=99.5)))
    assert text.count("below P99.5") == 1
    second, line, third = (text.index(t) for t in (rows[1].case_id, "below P", rows[2].case_id))
    assert second < line < third
    assert text.count(" at or above P99.5") == 2
    for above in (True, False):
        alike = [make_row(rank, above=above) for rank in (1, 2)]
        assert "below P" not in visible(render_worklist(make_worklist(alike)))


def test_pictures_are_the_study_s_own_and_hold_their_place():
    random = np.random.default_rng(0)
    gray = random.integers(100, 130, (40, 30, 1), dtype=np.uint8).repeat(3, axis=2)
    colored = gray.copy()
    colored[:20] = (220, 90, 20)
    row = make_row(1, thumbnail=gray, overlay=colored)
    shown = pictures(render_worklist(make_worklist([row])))
    assert len(shown) == 2
    for (attrs, data), wanted in zip(shown, (gray, colored), strict=True):
        assert (attrs["width"], attrs["height"], attrs["loading"]) == ("30", "40", "lazy")
        with Image.open(io.BytesIO(data)) as image:
            found = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(found - wanted).mean() < 8
    modes = [Image.open(io.BytesIO(data)).mode for _, data in shown]
    assert modes == ["L", "RGB"]


def test_each_study_can_be_enlarged_without_a_script():
    tags = parse(render_worklist(make_worklist())).tags
    boxes = [attrs["id"] for tag, attrs in tags if tag == "input"]
    assert boxes == ["zoom-1", "zoom-2"]
    assert [attrs["for"] for tag, attrs in tags if tag == "label"] == boxes


@pytest.mark.parametrize("field", ["case_id", "view", "detector"])
def test_markup_in_a_row_is_shown_not_run(field):
    check_harmless(render_worklist(make_worklist([make_row(1, **{field: EVIL})])))


@pytest.mark.parametrize("field", ["rule", "created", "residual_scale"])
def test_markup_in_a_sentence_is_shown_not_run(field):
    check_harmless(render_worklist(make_worklist(**{field: EVIL})))


def test_markup_in_lists_and_tables_is_shown_not_run():
    row = make_row(1, notes=(EVIL, EVIL), identifiers={EVIL: EVIL})
    worklist = make_worklist(
        [row],
        identified=True,
        set_aside=((EVIL, EVIL, EVIL),),
        provenance={EVIL: EVIL},
        detectors=({EVIL: EVIL},),
    )
    check_harmless(render_worklist(worklist), times=11)


def check_harmless(page, *, times=1):
    tags = parse(page).tags
    assert not [tag for tag, _ in tags if tag == "script"]
    assert all(attrs["src"].startswith("data:") for tag, attrs in tags if tag == "img")
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert visible(page).count("<script>alert(1)</script>") >= times


def test_identifiers_are_shown_with_a_banner_and_refused_without():
    row = make_row(1, identifiers={"Patient ID": "4711", "File": "/archive/a.dcm"})
    text = visible(render_worklist(make_worklist([row], identified=True)))
    assert "Patient ID 4711 File /archive/a.dcm" in text
    assert "Contains patient identifiers: handle accordingly" in text
    assert "keyed hashes" not in text
    assert "Contains patient identifiers" not in visible(render_worklist(make_worklist()))
    with pytest.raises(ValueError, match="identifiers, expected none") as refused:
        make_worklist([row])
    assert "4711" not in str(refused.value)


def test_a_file_name_that_is_no_text_can_still_be_written(tmp_path):
    name = b"r\xf6ntgen.dcm".decode("utf-8", "surrogateescape")
    row = make_row(1, identifiers={"File": name})
    write_worklist(tmp_path / "worklist.html", make_worklist([row], identified=True))
    page = (tmp_path / "worklist.html").read_text(encoding="utf-8")
    assert "r\\udcf6ntgen.dcm" in visible(page)


def test_every_case_set_aside_is_listed_with_its_reason():
    aside = tuple((f"study-{i}", "read", f"reason {i}") for i in range(60))
    text = visible(render_worklist(make_worklist(set_aside=aside)))
    assert "Set aside 60 not scored, so not ranked" in text
    assert all(f"study-{i} read reason {i}" in text for i in range(60))


def test_a_list_without_studies_says_so():
    empty = make_worklist([], detectors=(), provenance={})
    text = visible(render_worklist(empty))
    assert "No study was ranked." in text
    assert "listed below" not in text
    assert pictures(render_worklist(empty)) == []
    aside = dataclasses.replace(empty, set_aside=(("study-1", "read", "no pixel data"),))
    assert "What could not be scored is listed below." in visible(render_worklist(aside))


def test_detectors_that_say_different_things_share_a_table():
    detectors = ({"Views": "PA", "AUC": "0.7"}, {"Views": "AP", "Held out": "30"})
    text = visible(render_worklist(make_worklist(detectors=detectors)))
    assert "Views AUC Held out PA 0.7 – AP – 30" in text


def test_same_worklist_same_page(tmp_path):
    for name in ("a.html", "b.html"):
        write_worklist(tmp_path / name, make_worklist())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("shape", [(300, 20, 3), (20, 300, 3)])
def test_tall_and_wide_pictures_keep_their_shape(shape):
    picture = np.zeros(shape, dtype=np.uint8)
    page = render_worklist(make_worklist([make_row(1, thumbnail=picture, overlay=picture)]))
    for attrs, data in pictures(page):
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (shape[1], shape[0])
        assert (int(attrs["width"]), int(attrs["height"])) == (shape[1], shape[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"percentile": 100.1}, "percentile 100.1"),
        ({"percentile": -1.0}, "0 to 100"),
        ({"percentile": float("nan")}, "0 to 100"),
        ({"score": float("nan")}, "finite"),
        ({"norm": float("inf")}, "finite"),
        ({"images": 0}, "at least one"),
        ({"thumbnail": np.zeros((40, 30), np.uint8)}, "uint8"),
        ({"overlay": np.zeros((40, 30, 3), np.float32)}, "uint8"),
        ({"overlay": np.zeros((30, 40, 3), np.uint8)}, "one size"),
    ],
)
def test_rows_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        make_row(1, **changes)


@pytest.mark.parametrize("ranks", [(2, 1), (1, 1), (1, 3), (0, 1), (2,)])
def test_ranks_are_one_to_n_in_order(ranks):
    with pytest.raises(ValueError, match="ranks 1 to"):
        make_worklist([make_row(rank) for rank in ranks])


def test_an_alarm_percentile_is_a_percentile():
    with pytest.raises(ValueError, match="alarm percentile"):
        make_worklist(alarm_percentile=101.0)


def test_the_policy_names_the_page_s_style_and_nothing_else():
    page = full_page()
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(attrs["content"] for tag, attrs in parse(page).tags if "http-equiv" in attrs)
    assert f"style-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert not [name for _, attrs in parse(page).tags for name in attrs if name == "style"]
