"""Programs of torch.export as encoders: only trusted ones, and then like the same model in ONNX."""

import pickle

import numpy as np
import pytest
import torch

from esad_med.base.errors import ModelError
from esad_med.method.encoder import load_encoder

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """One small network as .pt2 and as .onnx."""
    folder = tmp_path_factory.mktemp("programs")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        ).eval()
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "m.pt2")
    torch.onnx.export(program, f=folder / "m.onnx", external_data=False, verbose=False)
    return folder


def test_a_trusted_program_gives_what_the_model_gives_in_onnx(programs):
    encoder = load_encoder(programs / "m.pt2", trusted=True)
    other = load_encoder(programs / "m.onnx")
    assert encoder.spec.size_px == 32
    np.testing.assert_allclose(encoder(PICTURES), other(PICTURES), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder(PICTURES[:1]), other(PICTURES[:1]), rtol=1e-4, atol=1e-5)
    assert encoder.identity.digest != other.identity.digest  # other files, other bits


def test_it_is_read_again_in_another_process(programs):
    encoder = load_encoder(programs / "m.pt2", trusted=True)
    again = pickle.loads(pickle.dumps(encoder))
    assert again.identity == encoder.identity


def test_without_trust_it_is_not_read(programs):
    with pytest.raises(ModelError, match="--trust-encoder"):
        load_encoder(programs / "m.pt2")


def test_what_is_no_program_is_refused_and_so_are_other_files(tmp_path):
    path = tmp_path / "m.pt2"
    path.write_bytes(b"no program")
    with pytest.raises(ModelError, match=r"not a program of torch\.export"):
        load_encoder(path, trusted=True)
    other = tmp_path / "m.pt"
    other.write_bytes(b"no program")
    with pytest.raises(ModelError, match="can run programs"):
        load_encoder(other, trusted=True)


def test_tiles_are_embedded_by_a_trusted_program(programs, composed, run_command, tmp_path):
    slide = sorted(composed.glob("*.tif"))[0]
    arguments = ("tile", slide, "--encoder", programs / "m.pt2", "--out", tmp_path / "store")
    size = ("--set", "tiles.size_px=64")
    refused = run_command(*arguments, *size)
    assert refused.code == 4
    assert "--trust-encoder" in refused.err
    assert not (tmp_path / "store").exists()
    assert run_command(*arguments, *size, "--trust-encoder").code == 0
    assert np.load(tmp_path / "store" / "samples.npy").shape[1] == 8
