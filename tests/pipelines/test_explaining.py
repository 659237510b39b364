"""Explanations in reports: the residual of the very tile, normal tiles that are found again."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_prep.slides import open_slide
from data_prep.xray import read_xray
from data_prep.xray_chain import XraySpec, xray_chain
from esad_med.base.config import load_config
from esad_med.method.detector import Detector
from esad_med.method.examples import Examples
from pipelines.explaining import explain_tiles, most_anomalous
from pipelines.pathology import LostTiles, config_of, normalized_tiles, prepare_slide
from pipelines.triage import triage
from pipelines.triage_intake import TriageConfig
from pipelines.triage_scoring import load_detectors


def with_examples(detector, samples):
    vectors = detector.embed(samples)
    pictures = samples if samples.dtype == np.uint8 else np.rint(255 * samples).astype(np.uint8)
    examples = Examples(pictures, vectors, np.maximum(vectors.std(axis=0), 1e-3))
    return Detector(detector.contract, detector.weights, device="cpu", examples=examples)


def test_a_report_shows_half_of_few_tiles():
    assert most_anomalous(np.array([1.0, 5, 3, 5, 2])).tolist() == [1, 3, 2]
    assert len(most_anomalous(np.arange(100.0))) == 12


def test_tiles_are_explained_by_their_own_residual_and_the_most_alike(composed, trained):
    detector = Detector.load(trained, device="cpu")
    config, target = config_of(detector.contract.preparation)
    with open_slide(composed / "normal_2.tif") as slide:
        prepared = prepare_slide(slide, config)
        lost = LostTiles("x", prepared.grid)
        batches = normalized_tiles(prepared, config.stain, target, lost)
        tiles = np.concatenate([batch.tiles for batch in batches])
        own = with_examples(detector, tiles[:20])
        chosen = np.array([11, 4, 17])
        found = explain_tiles(prepared, config.stain, target, own, chosen)
        assert set(found) == {11, 4, 17}
        for index, told in found.items():
            assert (told.nearest[0] == tiles[index]).all()  # itself is among them
            assert told.distances[0] == pytest.approx(0, abs=0.02)
            assert list(told.distances) == sorted(told.distances)
            expected = detector.residual_map(tiles[index][None])[0]
            np.testing.assert_allclose(told.residual, expected, atol=1e-5)
        plain = explain_tiles(prepared, config.stain, target, detector, chosen)
        assert plain[4].nearest == []
        assert (plain[4].residual == found[4].residual).all()


def test_screening_puts_them_into_the_report(composed, trained, run_command, tmp_path):
    detector = Detector.load(trained, device="cpu")
    samples = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    for name, own in (("with", with_examples(detector, samples)), ("without", detector)):
        own.save(tmp_path / f"{name}-detector")
        outcome = run_command(
            *("screen", composed / "tumor_2.tif", "--out", tmp_path / name),
            *("--detector", tmp_path / f"{name}-detector"),
        )
        assert outcome.code == 0, outcome.err
    shown, bare = (
        (tmp_path / name / "tumor_2" / "report.html").read_text() for name in ("with", "without")
    )
    assert shown.count('alt="Normal training tile"') == 3 * 12
    assert bare.count("Normal training tile") == 0
    assert bare.count('alt="Residual of the tile') == 12
    for file in ("scores.csv", "heatmap.tif", "slide.json"):
        first, second = (tmp_path / name / "tumor_2" / file for name in ("with", "without"))
        assert first.read_bytes() == second.read_bytes()  # they change no number


def test_a_triage_shows_the_nearest_radiographs(xray_detectors, write_dicom, tmp_path):
    by_view = load_detectors(list(xray_detectors.values()), device="cpu")
    path = write_dicom(tmp_path / "in" / "a.dcm", seed=3)
    sample = xray_chain(XraySpec())(read_xray(path).pixels)
    samples = np.stack([np.asarray(sample), np.asarray(sample)[::-1].copy()])
    own = replace(by_view["PA"], detector=with_examples(by_view["PA"].detector, samples))
    summary = triage(
        [tmp_path / "in"],
        {**by_view, "PA": own},
        tmp_path / "out",
        load_config(TriageConfig),
        say=lambda _: None,
    )
    study = summary.studies[0]
    folder = tmp_path / "out" / "studies" / study["case_id"]
    with Image.open(next(folder.glob("*_nearest.png"))) as strip:
        assert strip.size == (128 + 6 + 128, 128)
    told = (folder / "study.json").read_text()
    assert "nearest_distances" in told
    assert "Nearest normal training images, at 0.0, " in (
        (tmp_path / "out" / "worklist.html").read_text()
    )
