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
def test_on_a_gpu_large_pictures_need_less_memory(
    tiny_sd1: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = tiny_sd1.family.autoencoder
    pixels = torch.rand(1, 3, 1024, 1024, device="cuda") * 2 - 1
    ways = (lambda: autoencoder.encode(pixels), lambda: _plainly(autoencoder, pixels))
    try:
        autoencoder.vae.cuda()
        assert _peak(ways[0]) < _peak(ways[1])
        # convolutions of strips may be others, which round to 10 bits of mantissa, each in its own way
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        assert torch.allclose(*(encode() for encode in ways), atol=1e-4)
    finally:
        autoencoder.vae.cpu()


def _peak(work) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_reserved()


@torch.no_grad()
def _plainly(autoencoder, pixels):
    moments = autoencoder.vae.quant_conv(autoencoder.vae.encoder(pixels))
    return (moments.chunk(2, dim=1)[0] - autoencoder.format.shift) * autoencoder.format.scale
