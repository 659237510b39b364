"""The normal training samples a detector keeps: which, how they are found, what is refused."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from esad_med.base.config import load_config
from esad_med.base.errors import ConfigError, ModelError
from esad_med.method.config import TrainConfig
from esad_med.method.detector import Detector
from esad_med.method.examples import EXAMPLES, Examples, choose_examples
from esad_med.method.trainer import train

RANDOM = np.random.default_rng(0)
TILES = RANDOM.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


class ByBrightness:
    """A detector whose vector is a tile's mean color and whose score is its brightness."""

    def embed(self, samples):
        return samples.mean(axis=(1, 2)).astype(np.float32)

    def score(self, batches):
        return SimpleNamespace(score=batches.mean(axis=(1, 2, 3)))

    def percentile(self, score):
        return np.where(score > 200, 99.0, 50.0).astype(np.float32)


def plain_tiles(values):
    return np.stack([np.full((4, 4, 3), value, np.uint8) for value in values])


def choose(values, groups, count, **changes):
    samples = plain_tiles(values)
    rows = np.arange(len(values))
    settings = {"value_range": (0, 255), "seed": 0, "count": count, **changes}
    groups = np.array(groups, object)
    return choose_examples(samples, rows, groups, ByBrightness(), **settings)


def test_examples_cover_the_normals():
    """Of eleven levels of gray the middle and both ends are taken first."""
    found = choose(list(range(0, 110, 10)), ["a"] * 11, 3, seed=1)
    few = sorted(found.pictures[:, 0, 0, 0].tolist())
    assert len(few) == 3
    many = choose(list(range(0, 110, 10)), ["a"] * 11, 11)
    assert many.pictures[:, 0, 0, 0].tolist() == list(range(0, 110, 10))
    assert max(few) - min(few) >= 50  # spread, not three alike
    assert len(choose([7] * 5, ["a"] * 5, 5)) == 1  # equal ones are one


def test_suspects_are_not_shown_as_normal():
    found = choose([10, 20, 250, 30], list("abcd"), 4)
    assert found.pictures[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert choose([250, 251], list("ab"), 2) is None


def test_no_patient_fills_the_examples():
    """Of 90 tiles of one patient and 5 each of two, two thirds of the candidates are theirs."""
    values = list(range(100))
    groups = ["big"] * 90 + ["b"] * 5 + ["c"] * 5
    found = choose(values, groups, 5)  # ten candidates: 4 of big, 3 of each other, or so
    assert (found.pictures[:, 0, 0, 0] >= 90).sum() >= 2


def test_floats_become_pictures_and_large_ones_shrink():
    ramp = np.linspace(0, 1, 256, dtype=np.float32)
    samples = np.stack([np.tile(part * ramp, (256, 1)) for part in (1, 0.5, 0.25)])[..., None]
    found = choose_examples(
        samples.astype(np.float32),
        np.arange(3),
        np.array(list("abc"), object),
        ByBrightness(),
        count=3,
        value_range=(0, 1),
        seed=0,
    )
    assert found.pictures.shape == (3, 128, 128, 1)
    assert found.pictures.dtype == np.uint8
    assert (found.pictures[0, 0, 0, 0], found.pictures[0, 0, -1, 0]) == (0, 254)  # means of two


def test_the_nearest_are_found_with_their_distance():
    vectors = np.array([[0, 0], [3, 4], [6, 8]], np.float32)
    examples = Examples(TILES[:3], vectors, np.array([1, 2], np.float32))
    order, distances = examples.nearest(np.array([[3, 4], [0, 1]], np.float32), count=2)
    assert order.tolist() == [[1, 0], [0, 1]]
    expected = [0, np.sqrt((9 + 4) / 2), np.sqrt(0.25 / 2), np.sqrt((9 + 2.25) / 2)]
    np.testing.assert_allclose(distances.ravel(), expected, atol=1e-5)
    assert examples.nearest(vectors)[0].shape == (3, 3)
    standard = RANDOM.normal(size=(400, 30)).astype(np.float32)
    own = Examples(np.repeat(TILES[:1], 400, 0), standard, np.ones(30, np.float32))
    assert own.nearest(standard, count=400)[1].mean() == pytest.approx(np.sqrt(2), abs=0.03)


def test_a_sample_is_most_like_itself(detector):
    vectors = detector.embed(TILES)
    assert vectors.shape == (12, 32)
    np.testing.assert_allclose(detector.embed(TILES[3:5]), vectors[3:5], atol=1e-5)
    examples = Examples(TILES, vectors, vectors.std(0) + 1e-3)
    order, distances = examples.nearest(vectors)
    assert order[:, 0].tolist() == list(range(12))
    assert (distances[:, 0] < 0.05).all()


@pytest.fixture
def with_examples(detector):
    vectors = detector.embed(TILES)
    examples = Examples(TILES, vectors, np.ones(32, np.float32))
    return Detector(detector.contract, detector.weights, device="cpu", examples=examples)


def test_examples_travel_with_the_detector(with_examples, detector, tmp_path):
    with_examples.save(tmp_path / "d")
    loaded = Detector.load(tmp_path / "d", device="cpu")
    assert loaded.digest == detector.digest  # they do not change what it is
    assert (loaded.examples.pictures == TILES).all()
    for one in (loaded, with_examples):  # by name of its folder, or whole
        again = pickle.loads(pickle.dumps(one))
        assert (again.examples.vectors == loaded.examples.vectors).all()
    assert "holds 12 normal training samples" in (tmp_path / "d" / "README.md").read_text()
    (tmp_path / "d" / EXAMPLES).unlink()  # handed on without them
    assert Detector.load(tmp_path / "d").examples is None
    with_examples.save(tmp_path / "d")
    detector.save(tmp_path / "d")
    assert not (tmp_path / "d" / EXAMPLES).exists()
    assert "Training pictures" not in (tmp_path / "d" / "README.md").read_text()
    assert Detector.load(tmp_path / "d").examples is None


def test_damaged_examples_are_refused(with_examples, tmp_path):
    with_examples.save(tmp_path)
    file = tmp_path / EXAMPLES
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"examples\.safetensors: damaged"):
        Detector.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": np.zeros(32, np.float32)},
        {"scale": np.ones(3, np.float32)},
        {"vectors": np.full((12, 32), np.nan, np.float32)},
        {"vectors": np.ones((5, 32), np.float32)},
        {"pictures": TILES[..., :2]},
        {"pictures": TILES.astype(np.float32)},
        {"more": TILES},
    ],
)
def test_examples_that_do_not_fit_are_refused(with_examples, tmp_path, change):
    from esad_med.method.examples import read_examples

    with_examples.save(tmp_path)
    save_file({**load_file(tmp_path / EXAMPLES), **change}, tmp_path / EXAMPLES)
    with pytest.raises(ModelError, match="not a detector's examples"):
        read_examples(tmp_path / EXAMPLES)


def test_training_keeps_them_only_where_asked(image_store, tmp_path):
    quick = ["network.width=0.0625", "members=1", "epochs=1", "test_time_augmentation=1"]
    plain = train(image_store, load_config(TrainConfig, None, quick), tmp_path / "d")
    assert plain.examples is None
    assert not (tmp_path / "d" / EXAMPLES).exists()
    asked = load_config(TrainConfig, None, [*quick, "keep_examples=8"])
    kept = train(image_store, asked, tmp_path / "d", resume=True)  # nothing is trained again
    assert 1 <= len(kept.examples) <= 8
    assert {name: w.tolist() for name, w in kept.weights.items()} == {
        name: w.tolist() for name, w in plain.weights.items()
    }
    normals = {picture.tobytes() for picture in image_store.samples[:48]}
    assert {picture.tobytes() for picture in kept.examples.pictures} <= normals
    with pytest.raises(ConfigError, match="vectors are no pictures"):
        load_config(TrainConfig, None, ["kind=vector", "keep_examples=8"])
