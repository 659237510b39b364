"""Explanations of tiles on the report: residual, bars of both terms, nearest normal tiles."""

import dataclasses

import numpy as np
import pytest
from test_report import make_report, parse, visible

from esad_med.outputs.explain import TileExplanation, describe_explanation, strip, term_shares
from esad_med.outputs.report import render_report

RANDOM = np.random.default_rng(0)
NEAREST = RANDOM.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)


def explained_report(nearest=3, **changes):
    residual = np.zeros((64, 64), np.float32)
    residual[20:40, 20:40] = 1
    told = TileExplanation(
        residual, (0.1, 0.9), list(NEAREST[:nearest]), [0.5, 0.75, 1.25][:nearest]
    )
    report = make_report(
        reconstruction=np.array([0, 1, 2, 3, 4, 10], dtype=np.float32),
        norm=np.array([1, 1, 1, 1, 6, 1], dtype=np.float32),
        **changes,
    )
    most = [dataclasses.replace(tile, explanation=told) for tile in report.most]
    return dataclasses.replace(report, most=most)


def test_each_flagged_tile_stands_beside_normal_ones():
    page = parse(render_report(explained_report()))
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert sum(alt == "Normal training tile" for alt in alts) == 6
    assert sum(alt.startswith("Residual of the tile") for alt in alts) == 2
    assert sum(alt.startswith("Tile at") for alt in alts) == 3  # the least anomalous one, too
    assert all(a["src"].startswith("data:image/") for tag, a in page.tags if tag == "img")
    text = visible(render_report(explained_report()))
    for wanted in ("Nearest normal training tiles", "0.50", "0.75", "1.25", "residual"):
        assert wanted in text
    assert not {"script", "link", "a"} & {tag for tag, _ in page.tags}


def test_bars_tell_both_terms_apart():
    page = parse(render_report(explained_report()))
    widths = [float(a["width"]) for tag, a in page.tags if tag == "rect" and a["class"] == "part"]
    # tile 5: reconstruction is the highest, norm is the median's; tile 4: (4 - 2.5) / 7.5, highest
    assert widths == pytest.approx([100, 0, 20, 100])
    shares = term_shares(np.ones(4), np.array([0.0, 1, 2, 3]))
    assert shares[0].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(shares[1], [0, 0, 1 / 3, 1])


def test_a_detector_without_examples_shows_residuals_only():
    text = visible(render_report(explained_report(nearest=0)))
    assert "Nearest normal training tiles" not in text
    assert "Residual: where the reconstruction differs" in text
    plain = visible(render_report(make_report()))
    assert "Residual" not in plain


def test_the_residual_lies_where_it_is():
    gray = np.full((64, 64, 3), 90, np.uint8)
    told = describe_explanation(TileExplanation(np.eye(64, dtype=np.float32), (0.0, 1.0)), gray)
    assert told["nearest"] == []
    assert str(told["residual"]).startswith("data:image/png;base64,")
    with pytest.raises(ValueError, match="one distance per picture"):
        TileExplanation(np.eye(4), (0.0, 1.0), [NEAREST[0]], [])


def test_a_strip_of_pictures():
    row = strip([NEAREST[0], NEAREST[1][:, :32], NEAREST[2][..., :1]], height_px=32, gap_px=4)
    assert row.shape == (32, 32 + 4 + 16 + 4 + 32, 3)
    assert (row[:, 32:36] == 255).all()
