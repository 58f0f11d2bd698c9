"""Winograd convolutions against PyTorch's own in float64."""
import pytest
import torch
from torch import nn

from models import winograd


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 8, 13, 7), (1, 8, 41, 200)])
def test_it_is_the_convolution(kernel, shape):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 6, kernel, padding=kernel // 2).requires_grad_(False), torch.randn(shape)
    found = winograd.WinogradConv2d(conv)(x)
    expected = conv.double()(x.double())
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_only_convolutions_of_that_form_are_replaced():
    network = nn.Sequential(nn.Conv2d(1, 4, 11, stride=4, padding=2), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), nn.Conv2d(4, 4, 3),
                            nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    x = torch.randn(1, 1, 64, 64)
    before = network(x)
    winograd.speed_up(network)
    assert [isinstance(module, winograd.WinogradConv2d) for module in network.modules()].count(True) == 1
    assert isinstance(network[1][0], winograd.WinogradConv2d) and torch.allclose(network(x), before, atol=1e-5)
