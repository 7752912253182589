"""Pixels to latents and back, finite at any precision.

Weights are fp32. Decoding computes in the model's precision; some autoencoders (SDXL's first) overflow in
fp16, which no name tells, so the result is looked at, and one that overflowed computes in fp32 from then on.
Encoding is always fp32, for latents are cached.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from sdlora.base.files import ModelFiles
from sdlora.base.networks import filled, hollow, placed
from sdlora.base.strips import in_strips
from sdlora.contracts import LatentFormat
from sdlora.errors import ModelError
from sdlora.runtime import allocating, release

WHOLE = 1536 * 1536  # pixels that are decoded in one piece
TILES = (1024, 512)  # pixels a side of tiles: those of larger pictures, and where memory does not suffice


class Autoencoder:
    """A VAE that encodes in fp32 and decodes in `dtype` where that is finite.

    Pictures of more than `whole` pixels are decoded in overlapping `tiles`, which bounds the memory, and so
    are those for which it does not suffice. Tiles differ a little from the whole: each is normalised alone.
    """

    def __init__(
        self,
        vae: Any,  # Any: diffusers' AutoencoderKL is untyped
        *,
        dtype: torch.dtype,
        whole: int = WHOLE,
        tiles: Sequence[int] = TILES,
    ) -> None:
        self.vae, self.dtype, self.whole, self.tiles = vae, dtype, whole, tiles
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.format = LatentFormat(vae.config.latent_channels, factor, scale, shift, preview=())
        self.format = replace(self.format, preview=_preview(self))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] -> latents [B,C,h,w], fp32. Raises ModelError when not finite."""
        vae = self.vae
        with in_strips(vae.encoder):
            moments = vae.encoder(pixels.to(vae.encoder.conv_in.weight))
        if vae.quant_conv is not None:
            moments = vae.quant_conv(moments)
        mean: Tensor = moments.chunk(2, dim=1)[0]
        if not torch.isfinite(mean).all():
            raise ModelError(
                "The model's VAE gave latents that are not finite.",
                "Its weights are damaged: copy or download the model again.",
            )
        return (mean - self.format.shift) * self.format.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B,C,h,w] -> pixels [B,3,H,W] in [-1,1], fp32. Raises ModelError when not finite."""
        latents = latents / self.format.scale + self.format.shift
        pixels = self._decoded(latents)
        if not torch.isfinite(pixels).all() and self.dtype != torch.float32:
            self.dtype = torch.float32
            pixels = self._decoded(latents)
        if not torch.isfinite(pixels).all():
            raise ModelError(
                "The model's VAE gave a picture that is not finite.",
                "The latents or the VAE's weights are damaged: try without adapters, or another model.",
            )
        return pixels.clamp(-1, 1)

    def _decoded(self, latents: Tensor) -> Tensor:
        height, width = (side * self.format.factor for side in latents.shape[-2:])
        tiles = [side for side in self.tiles if side < max(height, width)]
        return self._decoded_as(latents, [0, *tiles] if height * width <= self.whole else tiles)

    def _decoded_as(self, latents: Tensor, sides: Sequence[int]) -> Tensor:
        """Pixels, decoded in tiles of the first of `sides` (0: whole) for which the memory suffices."""
        side, *smaller = sides
        try:
            with allocating():
                return self._decoded_in(latents, side)
        except torch.OutOfMemoryError:
            if not smaller:
                raise
        # outside the handler, whose traceback would keep the tensors alive
        release(latents.device)
        return self._decoded_as(latents, smaller)

    def _decoded_in(self, latents: Tensor, side: int) -> Tensor:
        self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = side, side // self.format.factor
        decode = self.vae.tiled_decode if side else self.vae._decode
        half = self.dtype != torch.float32
        with torch.autocast(latents.device.type, self.dtype, enabled=half), in_strips(self.vae.decoder):
            return torch.cat([decode(one).sample.float() for one in torch.split(latents, 1)])


def load_autoencoder(files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The frozen autoencoder, decoding in `dtype` where that is finite."""
    vae = hollow(AutoencoderKL, files.config("vae"))
    tensors = ((_current_name(name), tensor) for name, tensor in placed(files, "vae", device, torch.float32))
    return Autoencoder(filled(vae, tensors, what=f"the VAE of {files.path}"), dtype=dtype)


def _preview(autoencoder: Autoencoder) -> tuple[tuple[float, float, float], ...]:
    """The least-squares map [channels + 1, 3] from latents and 1 to RGB in [-1,1].

    Fitted on squares of strong colours, so that it suits every autoencoder, also one that nobody has seen.
    On pictures of the built-in base it is off by 0.20 where the best linear map is off by 0.18.
    """
    if autoencoder.vae.device.type == "meta":
        return ()  # it has no content
    factor = autoencoder.format.factor
    colours = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 6 - 3
    pixels = functional.interpolate(colours.clamp(-1, 1), size=8 * factor)
    latents = autoencoder.encode(pixels).cpu()
    known = latents.movedim(1, -1).flatten(0, -2)
    wanted = functional.avg_pool2d(pixels, factor).movedim(1, -1).flatten(0, -2)
    known = torch.cat([known, torch.ones(len(known), 1)], dim=1)
    fitted = torch.linalg.lstsq(known, wanted).solution
    return tuple((row[0], row[1], row[2]) for row in fitted.tolist())


def _current_name(name: str) -> str:
    """The name of a tensor as diffusers has it since 0.17."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
    return name
