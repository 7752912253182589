"""The autoencoder is finite at any precision and any size."""

import pytest
import torch
from torch import Tensor

from sdlora.base.autoencoder import Autoencoder
from sdlora.contracts import Family
from sdlora.errors import ModelError
from sdlora.loading import load_family
from tests.models import make_vae


@pytest.fixture
def vae() -> torch.nn.Module:
    """A tiny autoencoder of a fixed seed."""
    torch.manual_seed(0)
    return make_vae(scaling_factor=0.13025).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sound_vae_decodes_in_half_precision(vae: torch.nn.Module, dtype: torch.dtype) -> None:
    latents = torch.randn(1, 4, 8, 8)
    expected = Autoencoder(vae, dtype=torch.float32).decode(latents)
    half = Autoencoder(vae, dtype=dtype)
    assert torch.allclose(half.decode(latents), expected, atol=0.05)
    assert half.dtype == dtype


def test_pixels_stay_between_black_and_white(vae: torch.nn.Module) -> None:
    pixels = Autoencoder(vae, dtype=torch.float32).decode(torch.randn(1, 4, 8, 8) * 1000)
    assert (pixels.min(), pixels.max()) == (-1, 1)


def test_a_vae_that_overflows_in_fp16_goes_on_in_fp32(vae: torch.nn.Module) -> None:
    latents = torch.randn(2, 4, 8, 8)
    # GroupNorm takes the factor away again, but fp16 ends at 65504
    for parameter in vae.decoder.conv_in.parameters():
        parameter.mul_(1e6)
    expected = Autoencoder(vae, dtype=torch.float32).decode(latents)
    autoencoder = Autoencoder(vae, dtype=torch.float16)
    pixels = autoencoder.decode(latents)
    assert torch.isfinite(pixels).all() and pixels.std() > 0.01
    assert autoencoder.dtype == torch.float32
    assert torch.allclose(pixels, expected, atol=1e-5)


def test_latents_are_fp32_whatever_the_precision(vae: torch.nn.Module) -> None:
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = Autoencoder(vae, dtype=torch.float32).encode(pixels)
    assert torch.equal(Autoencoder(vae, dtype=torch.float16).encode(pixels), expected)


def test_damaged_weights_are_told(vae: torch.nn.Module) -> None:
    autoencoder = Autoencoder(vae, dtype=torch.float32)
    vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="a picture that is not finite"):
        autoencoder.decode(torch.zeros(1, 4, 8, 8))
    vae.encoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="latents that are not finite"):
        autoencoder.encode(torch.zeros(1, 3, 64, 64))


def smooth(family: Family) -> Tensor:
    """Latents of a picture of 256 pixels a side with soft shapes."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return family.encode_images(torch.nn.functional.interpolate(coarse, size=256, mode="bicubic"))


def jumps(pixels: Tensor) -> Tensor:
    """By how much each column differs from the one before, on average, in steps of 1/255."""
    return pixels.diff(dim=-1).abs().mean(dim=(0, 1, 2)) * 127.5


def test_large_pictures_are_decoded_in_tiles_without_seams() -> None:
    family = load_family("builtin", device="cpu", dtype=torch.float32)
    vae, latents = family.networks["vae"], smooth(family)
    whole = Autoencoder(vae, dtype=torch.float32).decode(latents)
    tiled = Autoencoder(vae, dtype=torch.float32, whole=100, tiles=(128,)).decode(latents)
    assert tiled.shape == whole.shape == (1, 3, 256, 256)
    assert 0 < (tiled - whole).abs().mean() * 127.5 < 16
    assert (jumps(tiled) - jumps(whole)).max() < 10  # 41 where tiles are not blended


def test_what_does_not_fit_whole_is_decoded_in_tiles(
    vae: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def full(latents: Tensor) -> None:
        tried.append(latents.shape[-1])
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")

    latents = torch.randn(1, 4, 20, 28)
    tiled = Autoencoder(vae, dtype=torch.float32, whole=100, tiles=(64,)).decode(latents)
    monkeypatch.setattr(vae, "_decode", full)
    assert torch.equal(Autoencoder(vae, dtype=torch.float32, tiles=(512, 64)).decode(latents), tiled)
    with pytest.raises(torch.OutOfMemoryError):
        Autoencoder(vae, dtype=torch.float32).decode(latents)
    assert tried == [28, 28]
