"""A convolution in strips is the convolution."""

import pytest
import torch
from torch import nn

from sdlora.base.strips import convolved, in_strips
from tests.conftest import TinyModel

LAYERS = [
    nn.Conv2d(3, 8, 3, padding=1),
    nn.Conv2d(8, 4, 3, padding=1, groups=2),
    nn.Conv2d(4, 4, 3, stride=2),
    nn.Conv2d(4, 6, 5, stride=2, padding=2, bias=False),
    nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
]


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("layer", LAYERS)
def test_strips_put_out_what_the_whole_does(layer: nn.Conv2d, rows: int) -> None:
    x = torch.randn(2, layer.in_channels, 17, 12, generator=torch.Generator().manual_seed(rows))
    assert torch.allclose(convolved(layer, x, rows), layer(x), atol=1e-6)


@torch.no_grad()
def test_afterwards_nothing_is_left(tiny_sd1: TinyModel) -> None:
    encoder = tiny_sd1.family.autoencoder.vae.encoder
    before = [vars(module).keys() for module in encoder.modules()]
    pixels = torch.rand(1, 3, 64, 64)
    whole = encoder(pixels)
    with in_strips(encoder):
        assert torch.equal(encoder(pixels), whole)
    assert [vars(module).keys() for module in encoder.modules()] == before


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_the_largest_convolution_needs_less_memory_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1, device="cuda"))
    x = torch.randn(1, 128, 1024, 1024, device="cuda")
    whole, whole_peak = _answer(layer, x)
    with in_strips(layer):
        _, peak = _answer(layer, x)
        assert peak < whole_peak
        # the kernel for a strip may be another one, which else rounds to 10 bits of mantissa in its own way
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        strips, _ = _answer(layer, x)
    exact, _ = _answer(layer, x)
    assert torch.allclose(strips, exact, atol=1e-5)
    assert torch.allclose(strips, whole, atol=1e-2)


def _answer(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What the layer puts out, and the peak of the memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return layer(x).cpu(), torch.cuda.max_memory_reserved()
