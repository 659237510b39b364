"""Encoders from elsewhere: preparation, outputs, identity; hostile models are refused."""

import pickle
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import conv_nodes, write_encoder, write_graph
from PIL import Image

from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.limits import Limits
from esad_med.method.contract import InputContract, check_input
from esad_med.method.encoder import load_encoder
from esad_med.method.encoder_identity import (
    VALUE_RANGE,
    EncoderIdentity,
    EncoderSpec,
    check_encoder,
)

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
N = "n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.onnx"


def expected(x, channels=3, dim=12, seed=0):
    """The same network by torch, on prepared pictures (n, c, h, w)."""
    kernel, linear = (
        torch.from_numpy(numpy_helper.to_array(w).copy())
        for w in conv_nodes(channels, dim, seed)[1]
    )
    maps = torch.relu(torch.nn.functional.conv2d(torch.from_numpy(x), kernel, stride=2))
    return (maps.mean((2, 3)) @ linear).numpy()


def standardized(pictures, mean, std):
    x = (pictures.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def test_embeddings_are_the_network_s_of_standardized_pictures(path):
    encoder = load_encoder(write_encoder(path))
    x = standardized(PICTURES, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    found = encoder(PICTURES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(x), rtol=1e-4, atol=1e-5)
    assert (encoder.dim, encoder.identity.name) == (12, "m")
    assert encoder(PICTURES[:0]).shape == (0, 12)


def test_embeddings_do_not_depend_on_the_batch(path):
    whole = load_encoder(write_encoder(path))(PICTURES)
    (path.with_suffix(".yaml")).write_text("batch_size: 2\n")
    np.testing.assert_allclose(load_encoder(path)(PICTURES), whole, rtol=1e-5)


def test_metadata_and_the_file_beside_say_how_pictures_are_prepared(path):
    told = {"esad.mean": "[0.5, 0.5, 0.5]", "esad.std": "[1, 1, 1]", "esad.name": "tiny v1"}
    encoder = load_encoder(write_encoder(path, metadata={**told, "other": "x"}))
    assert (encoder.spec.mean, encoder.identity.name) == ((0.5, 0.5, 0.5), "tiny v1")
    path.with_suffix(".yaml").write_text("std: [0.5, 0.5, 0.5]\n")
    both = load_encoder(path)
    assert (both.spec.mean, both.spec.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    x = standardized(PICTURES, 0.5, 0.5)
    np.testing.assert_allclose(both(PICTURES), expected(x), rtol=1e-4, atol=1e-5)
    assert both.identity.digest != encoder.identity.digest
    assert both.identity.model == encoder.identity.model


def test_pictures_are_resized_to_the_model_s_edge(path):
    encoder = load_encoder(write_encoder(path, edge=16))
    assert encoder.spec.size_px == 16
    small = np.stack(
        [
            np.asarray(Image.fromarray(p).resize((16, 16), Image.Resampling.BILINEAR))
            for p in PICTURES
        ]
    )
    np.testing.assert_array_equal(encoder(PICTURES), encoder(small))


def test_gray_pictures_are_repeated_or_taken_as_they_are(path, tmp_path):
    gray = PICTURES[..., :1]
    color = load_encoder(write_encoder(path))
    np.testing.assert_array_equal(color(gray), color(gray.repeat(3, axis=3)))
    own = load_encoder(write_encoder(tmp_path / "gray.onnx", channels=1))
    assert len(own.spec.mean) == 1
    assert own(gray).shape == (5, 12)
    with pytest.raises(ModelError, match=r"1 channel\(s\), found 3"):
        own(PICTURES)


def test_a_model_of_a_fixed_batch_is_filled_up(path, tmp_path):
    fixed = load_encoder(write_encoder(path, batch=2))
    free = load_encoder(write_encoder(tmp_path / "free.onnx"))
    np.testing.assert_allclose(fixed(PICTURES), free(PICTURES), rtol=1e-5)


def tokens(path, settings="", **options):
    """A model that gives (n, 3, 4) tokens: the first of means, the others of maxima and minima."""
    nodes = [
        helper.make_node("ReduceMean", ["pictures"], ["a"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMax", ["pictures"], ["b"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMin", ["pictures"], ["c"], axes=[2, 3], keepdims=0),
        *(helper.make_node("Unsqueeze", [x, "one"], [x + x]) for x in "abc"),
        helper.make_node("Concat", ["aa", "bb", "cc"], ["embedding"], axis=1),
    ]
    one = numpy_helper.from_array(np.array([1]), "one")
    write_graph(path, nodes, [one], [N, 3, "h", "w"], [N, 3, 3], **options)
    path.with_suffix(".yaml").write_text(f"mean: [0, 0, 0]\nstd: [1, 1, 1]\n{settings}")
    return load_encoder(path)(PICTURES)


def test_tokens_become_one_embedding(path):
    x = PICTURES.astype(np.float32) / 255
    first, rest = x.mean((1, 2)), (x.max((1, 2)) + x.min((1, 2))) / 2
    np.testing.assert_allclose(tokens(path), first, atol=1e-6)
    np.testing.assert_allclose(tokens(path, "tokens: mean\n"), rest, atol=1e-6)
    both = tokens(path, "tokens: cls_mean\n")
    np.testing.assert_allclose(both, np.concatenate([first, rest], 1), atol=1e-6)
    with pytest.raises(ModelError, match="none from first_token 3 on"):
        tokens(path, "tokens: mean\nfirst_token: 3\n")


def test_to_another_process_goes_the_file_s_name(path):
    encoder = load_encoder(write_encoder(path))
    sent = pickle.dumps(encoder)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)(PICTURES), encoder(PICTURES))
    path.with_suffix(".yaml").write_text("mean: [0, 0, 0]\n")
    from esad_med.method.encoder import _load_again

    _load_again.cache_clear()
    with pytest.raises(ModelError, match="was changed while it was in use"):
        pickle.loads(sent)


def test_digests_decide_and_names_where_there_is_none(path):
    own = load_encoder(write_encoder(path)).identity
    check_encoder(own.model_copy(update={"name": "renamed"}), own, "x")
    check_encoder(None, None, "x")
    named = EncoderIdentity(name="m", dim=12)
    check_encoder(named, own, "x")
    for other in (named.model_copy(update={"name": "n"}), named.model_copy(update={"dim": 13})):
        with pytest.raises(ModelError, match="known by its name only"):
            check_encoder(other, own, "x")
    with pytest.raises(ModelError, match="--encoder"):
        check_encoder(None, own, "x")
    with pytest.raises(ModelError, match="without an encoder"):
        check_encoder(own, None, "x")


def test_the_range_of_embeddings_is_any_finite_number():
    contract = InputContract(
        modality="histology", sample_shape=(12,), dtype="float32", value_range=VALUE_RANGE
    )
    again = InputContract.model_validate_json(contract.model_dump_json())
    assert again.value_range == VALUE_RANGE
    assert np.float32(VALUE_RANGE[1]) == np.finfo(np.float32).max
    facts = {"channels": 12, "size": None, "value_range": VALUE_RANGE, "mpp": None}
    rest = {"stain": None, "stain_target": None, "modality": "histology"}
    check_input(again, source="x", **facts, **rest)


def refused(path, words, *, error=ModelError, **limits):
    with pytest.raises(error) as found:
        load_encoder(path, limits=Limits(**limits))
    assert path.name in str(found.value)
    assert words in str(found.value)


def test_what_is_no_model_is_refused(path, tmp_path):
    for content in (b"", b"no model", write_encoder(path).read_bytes()[:200]):
        path.write_bytes(content)
        refused(path, "not an ONNX model")
    refused(tmp_path / "missing.onnx", "No such file")
    refused(tmp_path, "not a regular file")
    write_encoder(path)
    refused(path, "limits.weights_mib", weights_mib=0.001)


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".pth", ".pkl", ".bin"])
def test_files_of_torch_are_not_read(tmp_path, suffix):
    """`torch.export.load` unpickles: a planted program must not run."""
    path, mark = tmp_path / f"m{suffix}", tmp_path / "ran"
    path.write_bytes(pickle.dumps(_Program(mark)))
    refused(path, "can run programs when they are read")
    assert not mark.exists()


class _Program:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_a_damaged_sidecar_or_metadata_names_its_key(path):
    write_encoder(path, metadata={"esad.meen": "[1, 1, 1]"})
    refused(path, "did you mean 'mean'")
    write_encoder(path, metadata={"esad.std": "[0, 1, 1]"})
    refused(path, "above 0")
    write_encoder(path, metadata={"esad.std": "[" * 3000})
    refused(path, "std")
    write_encoder(path)
    path.with_suffix(".yaml").write_text("size_pixel: 224\n")
    with pytest.raises(ConfigError, match="size_pixel: unknown key; did you mean 'size_px'"):
        load_encoder(path)
    path.with_suffix(".yaml").write_text("output: other\n")
    refused(path, "no output 'other'; found embedding")
    path.with_suffix(".yaml").write_text("mean: [0.5]\nstd: [0.5]\n")
    refused(path, "3 channel(s), but 1 means")
    write_encoder(path, edge=16)
    path.with_suffix(".yaml").write_text("size_px: 32\n")
    refused(path, "takes pictures of 16 pixels")


def outside(path, location):
    """A model whose kernel lies in another file."""
    write_encoder(path)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return data


def test_weights_beside_a_model_are_part_of_it(path, tmp_path):
    inside = load_encoder(write_encoder(tmp_path / "inside.onnx"))
    data = outside(path, "m.data")
    (tmp_path / "m.data").write_bytes(data)
    encoder = load_encoder(path)
    np.testing.assert_array_equal(encoder(PICTURES), inside(PICTURES))
    (tmp_path / "m.data").write_bytes(bytes(len(data)))
    assert load_encoder(path).identity.model != encoder.identity.model


@pytest.mark.parametrize(
    "location", ["../m.data", "/etc/passwd", "sub/m.data", "", "..", "a\\..\\..\\x", "m\0.data"]
)
def test_weights_elsewhere_are_refused(path, tmp_path, location):
    data = outside(path, location)
    (tmp_path.parent / "m.data").write_bytes(data)
    with pytest.raises(ModelError, match="its weights"):
        load_encoder(path)


def test_weights_behind_a_link_are_refused(path, tmp_path):
    data = outside(path, "m.data")
    folder = tmp_path / "far"
    folder.mkdir()
    (folder / "real").write_bytes(data)
    (tmp_path / "m.data").symlink_to(folder / "real")
    refused(path, "no regular file")


def test_weights_in_an_inner_graph_are_found(path):
    inner = numpy_helper.from_array(np.ones(1, np.float32), "w")
    inner.ClearField("raw_data")
    inner.data_location = TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="../secret")
    node = helper.make_node("Constant", [], ["c"], value=inner)
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "inner", [], [out])
    nodes, weights = conv_nodes(3, 12, 0)
    choice = helper.make_node("If", ["yes"], ["unused"], then_branch=graph, else_branch=graph)
    yes = numpy_helper.from_array(np.array(True), "yes")
    write_graph(path, [*nodes, choice], [*weights, yes], [N, 3, "h", "w"], [N, 12])
    refused(path, "'../secret'")


def test_operations_of_strangers_and_endless_loops_are_refused(path):
    nodes, weights = conv_nodes(3, 12, 0)
    custom = helper.make_node("RunProgram", ["flat"], ["out"], domain="evil.org")
    shape = [N, 3, "h", "w"]
    write_graph(path, [*nodes, custom], weights, shape, [N, 12], domains=("evil.org",))
    refused(path, "operation 'RunProgram' of domain 'evil.org'")
    unknown = helper.make_node("NoSuchThing", ["flat"], ["out"])
    write_graph(path, [*nodes, unknown], weights, shape, [N, 12])
    refused(path, "ONNX Runtime cannot use it")
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
    ]
    same = helper.make_node("Identity", ["go"], ["on"])
    on = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    body = helper.make_graph([same], "body", inputs, [on])
    loop = helper.make_node("Loop", ["", "yes"], [], body=body)
    yes = numpy_helper.from_array(np.array(True), "yes")
    write_graph(path, [*nodes, loop], [*weights, yes], shape, [N, 12])
    refused(path, "holds a Loop")


def test_inputs_and_outputs_that_are_no_pictures_and_vectors_are_refused(path):
    nodes, weights = conv_nodes(3, 12, 0)
    write_graph(path, nodes, weights, [N, 3, 32], [N, 12])
    refused(path, "cannot use it")
    flat = [helper.make_node("Flatten", ["pictures"], ["embedding"])]
    write_graph(path, flat, [], [N, 3, 8], [N, 24])
    refused(path, "expected pictures of four axes")
    write_graph(path, flat, [], [N, 3, 8, 8], [N, 192], kind=TensorProto.DOUBLE)
    refused(path, "cannot use it")
    write_graph(path, flat, [], [N, 7, 8, 8], [N, 448])
    refused(path, "has 7 channels")
    write_graph(path, flat, [], [N, 3, 8, 16], [N, 384])
    refused(path, "expected a square")
    size = [helper.make_node("Shape", ["pictures"], ["embedding"])]
    graph_out = [4]
    write_graph(path, size, [], [N, 3, 8, 8], graph_out)
    refused(path, "m.onnx")
    broken = [
        helper.make_node("Flatten", ["pictures"], ["flat"]),
        helper.make_node("Log", ["flat"], ["embedding"]),
    ]
    write_graph(path, broken, [], [N, 3, 8, 8], [N, 192])
    path.with_suffix(".yaml").write_text("mean: [1, 1, 1]\n")
    refused(path, "not finite")


def test_a_model_that_asks_for_too_much_memory_is_refused(path):
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["embedding"]),
    ]
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 26]), "shape")
    write_graph(path, nodes, [shape], [N, 3, 8, 8], [N, 8])
    refused(path, "m.onnx")


def test_without_onnx_runtime_the_remedy_is_told(path, monkeypatch):
    write_encoder(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime is missing.*esad-med\[onnx\]"):
        load_encoder(path)


def test_no_device_is_made_up(path):
    write_encoder(path)
    with pytest.raises(ConfigError, match="no CUDA"):
        load_encoder(path, device="cuda")


def test_the_preparation_is_what_decides_embeddings():
    told = EncoderSpec(name="x", batch_size=7).preparation()
    assert set(EncoderSpec.model_fields) - set(told) == {"name", "batch_size"}
