"""`esad-med camelyon16`: equal to numbers by hand and to MONAI's LesionFROC; bad input is named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from monai.apps.pathology.metrics import LesionFROC

from data_prep.slide_writing import write_asap
from esad_med.base.config import load_config
from pipelines.camelyon16_scoring import Camelyon16Config
from pipelines.detections import to_probability

EDGE = 4096  # level 0; 128 pixels of 8 µm at level 5
SETTINGS = ("--set", "mpp=0.25")
# Boxes (top, left, bottom, right) in pixels of level 5, whose outlines grow by 4 pixels.
LESIONS = {
    "test_001": [
        (10, 10, 20, 60),  # found twice
        (60, 10, 75, 40),  # merges with the next: 8 pixels apart
        (60, 48, 75, 80),
        (100, 100, 103, 103),  # isolated tumor cells
    ],
    "test_002": [(40, 40, 80, 100)],
    "test_005": [(40, 40, 80, 100)],
}
# (probability, x, y) in pixels of level 5; sixteenths, which float32 and text keep exactly
DETECTIONS = {
    "test_001": [
        (15 / 16, 30, 15),
        (9 / 16, 55, 12),
        (10 / 16, 44, 70),  # in the closed gap
        (1.0, 101, 101),
        (11 / 16, 100, 20),
    ],
    "test_002": [(8 / 16, 5, 5)],
    "test_003": [(15 / 16, 60, 60), (5 / 16, 90, 90)],
    "test_004": [],
    "test_005": [(2 / 16, 127, 127), (6 / 16, 99, 79)],
}
NORMAL = ("test_003", "test_004")


def write_mask(path, boxes, *, edge=EDGE, levels=6):
    coarse = np.zeros((edge // 32, edge // 32), np.uint8)
    for top, left, bottom, right in boxes:
        coarse[top:bottom, left:right] = 1
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            step = 2 ** (5 - level)
            writer.write(
                np.repeat(np.repeat(coarse, step, 0), step, 1)[..., None].repeat(3, -1),
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                compressionargs={"level": 1},
                subfiletype=1 if level else 0,
                metadata=None,
            )


@pytest.fixture(scope="module")
def challenge(tmp_path_factory) -> Path:
    """Masks, a key and detections of five slides, in the challenge's layout."""
    root = tmp_path_factory.mktemp("challenge")
    (root / "masks").mkdir()
    (root / "csv").mkdir()
    for name in DETECTIONS:
        write_mask(root / "masks" / f"{name}_Mask.tif", LESIONS.get(name, []))
        rows = [f"{p},{32 * x + 16},{32 * y + 16}\n" for p, x, y in DETECTIONS[name]]
        (root / "csv" / f"{name.title()}.csv").write_text("".join(rows))
    kinds = [f"{n},{'Normal' if n in NORMAL else 'Tumor'},IDC,None\n" for n in DETECTIONS]
    (root / "reference.csv").write_text("".join(kinds))
    return root


@pytest.fixture
def score(challenge, run_command, tmp_path):
    def run(*more, results=None, masks="masks", reference="reference.csv", out=None):
        return run_command(
            "camelyon16",
            results or challenge / "csv",
            "--masks",
            challenge / masks,
            "--reference",
            challenge / reference,
            "--out",
            out or tmp_path / "out",
            *SETTINGS,
            *more,
        )

    return run


def refused(outcome, message):
    assert outcome.code == 4, outcome.out + outcome.err
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_by_hand(score, tmp_path):
    """Four lesions, five slides; hits at 15, 10 and 6 sixteenths, false ones at 15, 11, 8, 5, 2."""
    outcome = score("--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["slides"], found["lesions"]) == (5, 4)
    # (false positives, sensitivity): (0.2, 1/4) (0.4, 1/4) (0.4, 1/2) (0.6, 1/2) (0.6, 3/4) (0.8, …
    expected = [1 / 4, 1 / 2, 3 / 4, 3 / 4, 3 / 4, 3 / 4]
    np.testing.assert_allclose(list(found["sensitivity_at"].values()), expected)
    assert found["froc"] == pytest.approx(np.mean(expected))
    assert found["auc"] == pytest.approx(4 / 6)  # 16, 8 and 6 against 15 and 0
    cases = pd.read_csv(tmp_path / "out" / "cases.csv").set_index("case_id")
    assert cases["lesions"].tolist() == [2, 1, 0, 0, 1]
    assert cases["isolated"].tolist() == [1, 0, 0, 0, 0]
    assert cases["ignored"].tolist() == [1, 0, 0, 0, 0]
    assert cases["false_positives"].tolist() == [1, 1, 2, 0, 1]
    lesions = pd.read_csv(tmp_path / "out" / "lesions.csv")
    assert lesions["probability"].tolist() == [15 / 16, 10 / 16, 0, 0, 6 / 16]


@pytest.mark.filterwarnings("ignore:.*major_axis_length.*:FutureWarning")  # MONAI's call
def test_equal_to_monai(challenge, score, tmp_path):
    data = []
    for name, found in DETECTIONS.items():
        heat = np.zeros((EDGE // 32, EDGE // 32))
        for probability, x, y in found:
            heat[y, x] = probability
        np.save(tmp_path / f"{name}.npy", heat)
        mask = challenge / "masks" / f"{name}_Mask.tif"
        data.append(
            {
                "prob_map": str(tmp_path / f"{name}.npy"),
                "tumor_mask": str(mask),
                "level": 5,
                "pixel_spacing": 0.25,
            }
        )
    theirs = LesionFROC(data, nms_prob_threshold=0.0, nms_box_size=1, image_reader_name="OpenSlide")
    ours = json.loads(score("--json").out)
    false, hits, targets, slides = theirs.compute_fp_tp()
    assert ours["froc"] == pytest.approx(theirs.evaluate(), abs=1e-12)
    assert (ours["slides"], ours["lesions"]) == (slides, targets)
    cases = pd.read_csv(tmp_path / "out" / "cases.csv")
    assert cases["false_positives"].sum() == len(false)
    lesions = pd.read_csv(tmp_path / "out" / "lesions.csv")
    assert sorted(hits[hits > 0]) == sorted(lesions["probability"][lesions["probability"] > 0])


def test_outlines_score_as_masks(challenge, score, run_command, tmp_path):
    outlines = tmp_path / "xml"
    outlines.mkdir()
    for name, boxes in LESIONS.items():
        rings = [
            [
                (32 * x, 32 * y)
                for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))
            ]
            for top, left, bottom, right in boxes
        ]
        write_asap(outlines / f"{name}.xml", [("Tumor", ring) for ring in rings])
    of_masks, of_outlines = tmp_path / "a", tmp_path / "b"
    assert score(out=of_masks).code == 0
    assert score(masks=outlines, out=of_outlines).code == 0
    for name in ("camelyon16.json", "cases.csv", "lesions.csv"):
        assert (of_masks / name).read_bytes() == (of_outlines / name).read_bytes()


def test_what_is_written_scores_the_same_again(score, tmp_path):
    assert score(out=tmp_path / "a").code == 0
    again = score(
        "--slide-scores",
        tmp_path / "a" / "slide_probabilities.csv",
        results=tmp_path / "a" / "detections",
        out=tmp_path / "b",
    )
    assert again.code == 0, again.err
    first, second = (json.loads((tmp_path / n / "camelyon16.json").read_text()) for n in "ab")
    assert {**first, "notes": []} == {**second, "notes": []}
    lines = (tmp_path / "a" / "detections" / "test_001.csv").read_text().splitlines()
    assert lines[0] == "0.9375,976,496"  # the challenge's: no header, whole pixels


def test_slides_can_be_left_out(score):
    found = json.loads(score("--json", "--set", "exclude=[test_002]").out)
    assert found["left_out"] == ["test_002"]
    assert (found["slides"], found["lesions"]) == (4, 3)


def test_a_screening_is_scored(composed, trained, run_command, tmp_path):
    slides = [composed / "normal_2.tif", composed / "tumor_2.tif"]
    screened = run_command("screen", *slides, "--detector", trained, "--out", tmp_path / "s")
    assert screened.code == 0, screened.err
    (tmp_path / "key.csv").write_text("name,label\nnormal_2,Normal\ntumor_2,Tumor\n")
    outcome = run_command(
        *("camelyon16", tmp_path / "s", "--masks", composed, "--reference", tmp_path / "key.csv"),
        *("--out", tmp_path / "out", "--set", "mpp=0.5", "--set", "detections.floor=0.1"),
        *("--set", "isolated_um=100", "--json"),
    )
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["lesions"] >= 1
    rows = pd.read_csv(tmp_path / "out" / "detections" / "tumor_2.csv", header=None)
    tiles = pd.read_csv(tmp_path / "s" / "tumor_2" / "scores.csv")
    facts = json.loads((tmp_path / "s" / "tumor_2" / "slide.json").read_text())
    best = tiles.loc[tiles["score"].idxmax()]
    half = facts["geometry"]["edge_level0"] / 2
    assert rows.iloc[0, 1:].tolist() == [best["x_level0"] + half, best["y_level0"] + half]
    assert rows[0].is_monotonic_decreasing
    xy = rows[[1, 2]].to_numpy()
    apart = np.hypot(*(xy[:, None] - xy[None]).T)[~np.eye(len(xy), dtype=bool)]
    assert apart.min() > 200 / 0.5  # of suppression
    assert len(rows) < len(tiles) / 4

    masks = tmp_path / "masks"  # outlines that screen wrote of another slide
    masks.mkdir()
    (masks / "tumor_2.geojson").write_bytes(
        (tmp_path / "s" / "normal_2" / "lesions.geojson").read_bytes()
    )
    arguments = ("camelyon16", tmp_path / "s", "--reference", tmp_path / "key.csv")
    refused = run_command(*arguments, "--masks", masks, "--out", tmp_path / "other")
    assert refused.code == 4
    assert "was made for a slide of" in refused.err
    absent = run_command(*arguments, "--masks", tmp_path / "none", "--out", tmp_path / "other")
    assert "none: no such folder" in absent.err


def test_probabilities_keep_the_order_and_are_a_half_at_the_threshold():
    score = np.array([-1e6, 0, 2.9, 3, 3.1, 1e3, 1e6])
    probability = to_probability(score, 3.0)
    assert (np.diff(probability) > 0).all()
    assert (probability > 0).all()
    assert (probability < 1).all()
    assert probability[3] == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0.5,10\n", "2 columns, expected probability,x,y"),
        ("score,left,top\n0.5,1,1\n", "expected probability,x,y in this order"),
        ("0.5,1,one\n", "'one', expected a number"),
        ("0.5,1,nan\n", "expected a number"),
        ("1.5,1,1\n", "expected above 0 and at most 1"),
        ("0,1,1\n", "expected above 0"),
        ("0.5,-1,1\n", "expected level-0 pixels from 0 on"),
        ("0.5,5000,1\n", "expected within the slide's 4096x4096 level-0 pixels"),
    ],
)
def test_bad_detections_are_refused(challenge, score, tmp_path, content, message):
    folder = tmp_path / "bad"
    folder.mkdir()
    for file in (challenge / "csv").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "Test_001.csv").write_text(content)
    refused(score(results=folder), message)


def test_slides_that_one_file_has_and_another_lacks_are_named(challenge, score, tmp_path):
    key = (challenge / "reference.csv").read_text()
    more = tmp_path / "more.csv"
    more.write_text(key + "test_114,Tumor\n")
    refused(score(reference=more), "no results of slide 'test_114'")
    assert score("--set", "absent=leave out", reference=more).code == 0
    assert score("--set", "exclude=[test_114]", reference=more).code == 0
    refused(score("--set", "exclude=[test_9]"), "'test_9' is not in")
    fewer = tmp_path / "fewer.csv"
    fewer.write_text(key.replace("test_003,Normal,IDC,None\n", ""))
    refused(score(reference=fewer), "slide 'test_003' is not in")
    (tmp_path / "twice.csv").write_text(key + key)
    refused(score(reference=tmp_path / "twice.csv"), "'test_001' a second time")
    (tmp_path / "odd.csv").write_text(key + "test_009,maybe\n")
    refused(score(reference=tmp_path / "odd.csv"), "label 'maybe'")
    (tmp_path / "p.csv").write_text("test_001,0.5\n")
    refused(score("--slide-scores", tmp_path / "p.csv"), "slide 'test_002' is missing")
    (tmp_path / "empty").mkdir()
    refused(score(masks=tmp_path / "empty"), "no mask or outlines of tumor slide 'test_001'")
    refused(score(results=tmp_path / "empty"), "nor CSVs inside")


def test_a_mask_must_hold_the_level_and_two_values(challenge, score, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for file in (challenge / "masks").iterdir():
        (masks / file.name).symlink_to(file)
    other = masks / "test_001_Mask.tif"
    other.unlink()
    write_mask(other, LESIONS["test_001"], levels=4)  # every fourth pixel of level 3
    whole, sparse = (json.loads(score("--json", masks=m).out)["froc"] for m in ("masks", masks))
    assert sparse == whole
    other.unlink()
    write_mask(other, LESIONS["test_001"], levels=1)
    refused(score("--set", "limits.mask_megapixels=10", masks=masks), "write coarser levels")
    other.write_bytes(b"II*\0damaged")
    refused(score(masks=masks), "not a readable mask image")
    tifffile.imwrite(other, np.arange(4096 * 64, dtype=np.uint8).reshape(512, 512))
    refused(score(masks=masks), "expected 0 and one other value")


def test_other_folders_are_not_written_into(challenge, score, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    refused(score(out=tmp_path / "x"), "is no result of `camelyon16`")
    refused(score(out=challenge / "csv"), "holds the results that are to be scored")


def test_settings_are_the_challenges():
    config = load_config(Camelyon16Config)
    assert (config.level, config.mpp, config.growth_um, config.isolated_um) == (5, 0.243, 75, 275)
    assert config.false_positives == (0.25, 0.5, 1, 2, 4, 8)


@pytest.mark.data
def test_the_published_key_and_outlines_score(data_root, run_command, tmp_path):
    """Perfect detections of the slides whose outlines are here: every lesion at no false alarm."""
    folder = data_root / "camelyon16"
    names = [path.stem for path in (folder / "xml").glob("test_*.xml")]
    key = (folder / "reference.csv").read_text().splitlines()
    assert set(names) <= {line.split(",")[0] for line in key}
    for line in key:
        name = line.split(",")[0]
        if name in names or ",Normal," in line:
            (tmp_path / "csv").mkdir(exist_ok=True)
            (tmp_path / "csv" / f"{name}.csv").write_text("" if name not in names else "0.5,1,1\n")
    outcome = run_command(
        *("camelyon16", tmp_path / "csv", "--masks", folder / "xml"),
        *("--reference", folder / "reference.csv", "--out", tmp_path / "out", "--json"),
        *("--set", "absent=leave out"),
    )
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["slides"] == 80 + len(names)
    assert found["froc"] == 0
    assert found["auc"] == 1
    assert found["lesions"] >= 1
