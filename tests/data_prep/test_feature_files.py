"""Feature files: what CLAM and TRIDENT write is read; damaged and hostile ones are refused."""

import json

import h5py
import numpy as np
import pytest

from data_prep.features import ENCODER, open_features
from esad_med.base.errors import CaseError
from esad_med.base.limits import Limits
from esad_med.outputs.exchange import coordinate_attributes
from esad_med.outputs.feature_files import FeatureWriter

N, D = 6, 4
VECTORS = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
CORNERS = np.stack([np.arange(N) * 512, np.zeros(N, int)], 1)


@pytest.fixture
def make(tmp_path):
    """Write a file of these data sets and attributes of ``coords``."""

    def write(features=VECTORS, coords=CORNERS, *, chunks=None, **attributes):
        path = tmp_path / "s07.h5"
        with h5py.File(path, "w") as file:
            if features is not None:
                file.create_dataset("features", data=features, chunks=chunks)
            if coords is not None:
                file["coords"] = coords
                file["coords"].attrs.update(attributes)
        return path

    return write


def read(path, **limits):
    with open_features(path, limits=Limits(**limits)) as file:
        return file.header, np.concatenate(list(file.blocks()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("chunks", [None, 1])
def test_vectors_of_any_precision_and_both_shapes(make, dtype, axes, chunks):
    features = VECTORS.astype(dtype) if axes == 2 else VECTORS.astype(dtype)[None]
    shape = None if chunks is None else (1,) * (axes - 1) + (D,)
    header, found = read(make(features, chunks=shape))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VECTORS.astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(header.xy_level0, CORNERS)
    assert (header.dim, header.mpp, header.tile_px, header.encoder) == (D, None, None, None)


def test_blocks_are_small_and_whole(make, monkeypatch):
    monkeypatch.setattr("data_prep.features._BLOCK_BYTES", 2 * D * 4)
    with open_features(make()) as file:
        assert [len(block) for block in file.blocks()] == [2, 2, 2]


def test_attributes_of_trident_are_told(make):
    known = {"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20}
    header, _ = read(make(**known, level0_magnification=40, overlap=32))
    assert (header.tile_px, header.edge_level0, header.mpp) == (256, 512, 0.5)
    assert header.overlap_px == 32
    assert header.slide_size is None


def test_what_is_written_is_read_back(tmp_path):
    attributes = coordinate_attributes(
        patch_size=64,
        patch_level=1,
        patch_size_level0=256.0,
        slide_size=(4096, 2048),
        level_size=(1024, 512),
        slide_mpp=0.25,
        name="s07",
    )
    facts = {ENCODER: {"name": "e", "dim": D}}
    path = tmp_path / "s07.h5"
    with FeatureWriter(path, dim=D, attributes=attributes, facts=facts) as writer:
        writer.append(VECTORS[:4], CORNERS[:4])
        writer.append(VECTORS[4:], CORNERS[4:])
    header, found = read(path)
    np.testing.assert_array_equal(found, VECTORS)
    np.testing.assert_array_equal(header.xy_level0, CORNERS)
    assert header.encoder == {"name": "e", "dim": D}
    assert (header.mpp, header.slide_size) == (1.0, (4096, 2048))


def test_a_broken_off_file_does_not_appear(tmp_path):
    writer = FeatureWriter(tmp_path / "s.h5", dim=D, attributes={"name": "s"})
    with pytest.raises(TypeError, match="broadcast"), writer:
        writer.append(VECTORS, CORNERS[:, :1].repeat(3, axis=1))
    assert list(tmp_path.iterdir()) == []


def changed(values, place, value):
    out = np.array(values, dtype=np.float64)
    out[place] = value
    return out


BAD = {
    "no vectors": ({"features": None}, "no data set 'features', found coords"),
    "no corners": ({"coords": None}, "no data set 'coords'"),
    "whole numbers": ({"features": VECTORS.astype(int)}, "features are int64"),
    "texts": ({"features": np.full((N, D), b"x")}, "features are |S1"),
    "one axis": ({"features": VECTORS[:, 0]}, "shape (6)"),
    "two slides": ({"features": np.stack([VECTORS] * 2)}, "shape (2, 6, 4)"),
    "no rows": ({"features": VECTORS[:0], "coords": CORNERS[:0]}, "no vectors"),
    "no values": ({"features": VECTORS[:, :0]}, "0 values"),
    "other count": ({"coords": CORNERS[:5]}, "(5, 2) beside 6 vectors"),
    "three columns": ({"coords": np.zeros((N, 3), int)}, "(6, 3)"),
    "texts for corners": ({"coords": np.full((N, 2), b"x")}, "coords are |S1"),
    "duplicates": ({"coords": np.zeros((N, 2), int)}, "one corner"),
    "negative": ({"coords": changed(CORNERS, (1, 0), -1)}, "corner 1 is [-1.0"),
    "half a pixel": ({"coords": changed(CORNERS, (2, 1), 0.5)}, "corner 2 is [1024.0, 0.5]"),
    "no number": ({"coords": changed(CORNERS, (2, 1), np.nan)}, "corner 2 is [1024.0, nan]"),
    "holes": ({"features": changed(VECTORS, (3, 1), np.nan)}, "vector 3 holds nan"),
    "infinite": ({"features": changed(VECTORS, (3, 1), np.inf)}, "vector 3 holds inf"),
    "beyond float32": ({"features": changed(VECTORS, (5, 0), 1e300)}, "vector 5 holds 1e+300"),
    "other slide": ({"level0_width": 512, "level0_height": 512}, "another slide"),
    "odd attribute": ({"patch_size": "big"}, "'patch_size' is no number"),
    "broken JSON": ({ENCODER: "{"}, "no JSON"),
    "deep JSON": ({ENCODER: "[" * 40 + "]" * 40}, "nested more than 8"),
    "a list": ({ENCODER: "[1]"}, "no JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(make, name):
    values, words = BAD[name]
    with pytest.raises(CaseError) as found:
        read(make(**values))
    assert str(found.value).startswith("s07.h5: ")
    assert words in str(found.value)


def test_a_long_attribute_is_not_read(make):
    path = make(**{ENCODER: json.dumps({"x": "y" * (1 << 19)})})
    with pytest.raises(CaseError, match="longer than 256 KiB"):
        read(path)


def test_links_out_of_a_file_are_refused(make, tmp_path):
    secret = tmp_path / "other.h5"
    with h5py.File(secret, "w") as file:
        file["features"] = VECTORS
    for link in (h5py.ExternalLink("other.h5", "/features"), h5py.SoftLink("/coords")):
        path = make(features=None)
        with h5py.File(path, "a") as file:
            file["features"] = link
        with pytest.raises(CaseError, match="link to elsewhere"):
            read(path)


def test_data_in_other_files_are_refused(make, tmp_path):
    raw = tmp_path / "raw.bin"
    raw.write_bytes(VECTORS.tobytes())
    path = make(features=None)
    with h5py.File(path, "a") as file:
        outside = [(str(raw), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("features", (N, D), np.float32, external=outside)
    with pytest.raises(CaseError, match="lies in other files"):
        read(path)
    layout = h5py.VirtualLayout((N, D), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "features", (N, D))
    path = make(features=None)
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("features", layout)
    with pytest.raises(CaseError, match="lies in other files"):
        read(path)


def test_objects_are_refused(make):
    path = make(features=None)
    with h5py.File(path, "a") as file:
        kind = h5py.vlen_dtype(np.float32)
        file.create_dataset("features", (N, D), kind)
    with pytest.raises(CaseError, match="features are object"):
        read(path)
    path = make(features=None)
    with h5py.File(path, "a") as file:
        file.create_group("features")
    with pytest.raises(CaseError, match="is a group"):
        read(path)


def test_bombs_are_refused_before_they_are_read(make):
    path = make(features=None)
    with h5py.File(path, "a") as file:  # 190 GiB of zeros in 2 KiB
        file.create_dataset("features", (50_000_000, 1024), np.float32, chunks=(1024, 1024))
    with pytest.raises(CaseError, match=r"limits\.features_mib"):
        read(path)
    with pytest.raises(CaseError, match="never written"):
        read(path, features_mib=1e9)
    path = make(np.zeros((1000, 64), np.float32), np.zeros((1000, 2)), chunks=(1000, 64))
    with pytest.raises(CaseError, match="a chunk of 'features' takes"):
        read(path, unpacked_mib=0.1)
    with pytest.raises(CaseError, match=r"limits\.features_mib"):
        read(path, features_mib=0.1)


def test_what_is_no_hdf5_is_refused(tmp_path, make):
    whole = make().read_bytes()
    for content in (b"", b"not HDF5", whole[:100], whole[: len(whole) // 2]):
        path = tmp_path / "broken.h5"
        path.write_bytes(content)
        with pytest.raises(CaseError, match=r"broken\.h5"):
            read(path)
    with pytest.raises(CaseError, match="not a regular file"):
        read(tmp_path)


def test_damage_anywhere_is_an_error_or_data(make):
    """A flipped byte gives a `CaseError` or a whole set of finite vectors, never anything else."""
    whole = make(features=VECTORS.astype(np.float64)).read_bytes()
    path, random = make(), np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= int(random.integers(1, 256))
        path.write_bytes(data)
        try:
            header, found = read(path)
        except CaseError:
            continue
        assert found.shape == (len(header), header.dim)
        assert np.isfinite(found).all()
