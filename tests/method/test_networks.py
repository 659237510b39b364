"""Table 6: shapes and parameter counts; the vector twin; folding of batch norms."""

import pytest
import torch
from torch import nn

from esad_med.method.networks import (
    EsadOutput,
    ImageNetwork,
    ImageNetworkSpec,
    VectorNetworkSpec,
    build_network,
    fold_batch_norm,
)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def table6() -> ImageNetwork:
    network = build_network(ImageNetworkSpec())
    assert isinstance(network, ImageNetwork)
    return network.eval()


def test_table_6_has_its_parameter_counts(table6: ImageNetwork) -> None:
    assert count(table6.encoder1) == count(table6.encoder2) == 9_407_936
    assert count(table6.decoder) == 2_399_936
    assert count(table6) == 21_215_808


def test_table_6_has_its_shapes(table6: ImageNetwork) -> None:
    with torch.no_grad():
        z, fine = table6.encoder1(torch.zeros(1, 3, 64, 32))
        output = table6(torch.zeros(1, 3, 64, 32))
    assert [tuple(f.shape[1:]) for f in fine] == [
        (64, 64, 32),
        (128, 32, 16),
        (256, 16, 8),
        (512, 8, 4),
    ]
    assert z.shape == output.z.shape == output.z_hat.shape == (1, 512, 4, 2)
    assert output.x_hat.shape == (1, 3, 64, 32)


def test_decoder_channels_are_those_of_table_6(table6: ImageNetwork) -> None:
    assert [block[0].weight.in_channels for block in table6.decoder.blocks] == [512, 256, 128, 64]
    assert [block[1].weight.out_channels for block in table6.decoder.blocks] == [256, 128, 64, 64]


def test_the_two_encoders_share_no_weight(table6: ImageNetwork) -> None:
    first = {p.data_ptr() for p in table6.encoder1.parameters()}
    assert first.isdisjoint(p.data_ptr() for p in table6.encoder2.parameters())


def test_a_quarter_of_the_width_has_1_3_million_parameters() -> None:
    assert 1.3e6 < count(build_network(ImageNetworkSpec(width=0.25))) < 1.4e6


def test_x_hat_of_pictures_stays_in_range_and_z_hat_comes_from_x_hat() -> None:
    network = build_network(ImageNetworkSpec(width=1 / 16, channels=1)).eval()
    x = torch.randn(3, 1, 32, 16)
    with torch.no_grad():
        output = network(x)
        again, _ = network.encoder2(output.x_hat)  # type: ignore[union-attr]
    assert isinstance(output, EsadOutput)
    assert output.x_hat.abs().max() <= 1
    assert torch.equal(output.z_hat, again)


def test_skip_connections_feed_fine_pictures_to_the_decoder() -> None:
    network = build_network(ImageNetworkSpec(width=1 / 16, skip=True))
    assert isinstance(network, ImageNetwork)
    assert [b[0].weight.in_channels for b in network.decoder.blocks] == [64, 32, 16, 8]
    assert network(torch.randn(2, 3, 16, 16)).x_hat.shape == (2, 3, 16, 16)


def test_vector_network_mirrors_its_encoder() -> None:
    network = build_network(VectorNetworkSpec(features=21, hidden=(32, 16, 8)))
    output = network(torch.randn(5, 21))
    assert output.z.shape == output.z_hat.shape == (5, 8)
    assert output.x_hat.shape == (5, 21)
    linear = [m for m in network.decoder.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(8, 16), (16, 32), (32, 21)]


def test_latent_activation_decides_whether_z_can_be_negative() -> None:
    x = torch.randn(4, 3, 16, 16)
    assert build_network(ImageNetworkSpec(width=1 / 16))(x).z.min() >= 0
    linear = ImageNetworkSpec(width=1 / 16, latent_activation="linear")
    assert build_network(linear)(x).z.min() < 0


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (ImageNetworkSpec(width=1 / 16), (2, 3, 16, 16)),
        (VectorNetworkSpec(features=7), (2, 7)),
    ],
)
def test_folding_batch_norm_changes_nothing(
    spec: ImageNetworkSpec | VectorNetworkSpec, shape: tuple[int, ...]
) -> None:
    network = build_network(spec)
    for _ in range(3):
        network(torch.randn(8, *shape[1:]))  # so that running statistics are not trivial
    x = torch.randn(shape)
    network.eval()
    with torch.no_grad():
        before = network(x)
        after = fold_batch_norm(network)(x)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in network.modules())
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_mean_pooling_is_used_where_asked_for() -> None:
    torch.manual_seed(0)
    network = build_network(ImageNetworkSpec(width=1 / 16, pooling="mean")).eval()
    other = build_network(ImageNetworkSpec(width=1 / 16, pooling="max")).eval()
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert isinstance(network, ImageNetwork)
    block = network.encoder1.blocks[0](x)
    expected = block.unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean((3, 5))
    torch.testing.assert_close(network.encoder1.pool(block), expected)
    assert not torch.allclose(network(x).z, other(x).z)
