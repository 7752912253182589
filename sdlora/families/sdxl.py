"""Stable Diffusion XL: two text encoders, their second's pooled output, and the sizes of the picture.

Podell et al. 2023. The UNet is told the original size, the crop's place and the target size in pixels; text
is taken before the last layer, and is not normalised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdlora.base import prompts as prompt_tokens
from sdlora.base.autoencoder import Autoencoder, load_autoencoder
from sdlora.base.files import ModelFiles, native_size, weights_hash
from sdlora.base.networks import encode, load_projected_text_encoder, load_text_encoder, load_unet
from sdlora.base.targets import PRESETS
from sdlora.contracts import Conditioning, LatentFormat, Tokens
from sdlora.families import FAMILIES
from sdlora.noise import NoiseProcess


@FAMILIES.register("sdxl")
@dataclass(kw_only=True)
class StableDiffusionXL:
    """A loaded SDXL model."""

    name: ClassVar[str] = "sdxl"
    title: ClassVar[str] = "Stable Diffusion XL"
    file_prefixes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    )
    presets: ClassVar[Mapping[str, tuple[str, ...]]] = PRESETS

    source: Path
    native_size: int
    hash: str
    unet: nn.Module
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    autoencoder: Autoencoder
    noise: NoiseProcess
    device: torch.device
    dtype: torch.dtype
    components: Mapping[str, nn.Module] = field(init=False)
    networks: Mapping[str, nn.Module] = field(init=False)
    latent: LatentFormat = field(init=False)

    def __post_init__(self) -> None:
        self.components = {
            "unet": self.unet,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
        }
        self.networks = {**self.components, "vae": self.autoencoder.vae}
        self.latent = self.autoencoder.format

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """Two text encoders, and a UNet that is told sizes."""
        return (
            files.components == {"unet", "vae", "text_encoder", "text_encoder_2"}
            and files.config("unet").get("addition_embed_type") == "text_time"
        )

    @classmethod
    def load(cls, files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> "StableDiffusionXL":
        """The model on `device`, frozen. Raises ModelError when files are missing or damaged."""
        return cls(
            source=files.path,
            native_size=native_size(files),
            hash=weights_hash(files),
            noise=NoiseProcess.of_scheduler(files.config("scheduler")),
            tokenizers=(files.tokenizer("tokenizer"), files.tokenizer("tokenizer_2")),
            unet=load_unet(files, device=device, dtype=dtype),
            text_encoder=load_text_encoder(files, "text_encoder", device=device, dtype=dtype),
            text_encoder_2=load_projected_text_encoder(files, "text_encoder_2", device=device, dtype=dtype),
            autoencoder=load_autoencoder(files, device=device, dtype=dtype),
            device=device,
            dtype=dtype,
        )

    def tokenize(
        self,
        prompts: Sequence[str],
        *,
        weighted: bool = False,
        words: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> Tokens:
        """Ids [B,2,77*chunks] on the CPU; `weighted` understands emphasis and BREAK, `words` are ids."""
        return prompt_tokens.tokenize(self.tokenizers, prompts, weighted=weighted, words=words)

    def encode_text(self, tokens: Tokens, *, clip_skip: int = 1) -> Conditioning:
        """States [B,77*chunks,D1+D2] and the first chunk's pooled output [B,P]; differentiable.

        `clip_skip` counts layers from the end; the last one, which the model never saw, is the one before it.
        """
        batch, _, length = tokens.ids.shape
        first, second = tokens.ids.unbind(dim=1)
        outputs = [
            encode(self.text_encoder, first.reshape(-1, 77)),
            encode(self.text_encoder_2, second.reshape(-1, 77)),
        ]
        layer = max(clip_skip, 2)
        parts = [output.hidden_states[-layer].reshape(batch, length, -1) for output in outputs]
        if tokens.weights is not None:
            weights = tokens.weights.unbind(dim=1)
            parts = [part * weight[..., None].to(part) for part, weight in zip(parts, weights, strict=True)]
        pooled = outputs[1].text_embeds.reshape(batch, length // 77, -1)[:, 0]
        return Conditioning(torch.cat(parts, dim=-1), pooled)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] -> latents [B,4,h,w], fp32."""
        return self.autoencoder.encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B,4,h,w] -> pixels [B,3,H,W] in [-1,1], fp32, finite."""
        return self.autoencoder.decode(latents)

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's raw output, fp32, for noisy latents [B,4,h,w] at timesteps [B]; differentiable."""
        if conditioning.pooled is None or conditioning.sizes is None:
            raise ValueError("SDXL needs the pooled text and the sizes")
        output: Tensor = self.unet(
            noisy.to(self.dtype),
            timestep,
            conditioning.states.to(self.dtype),
            added_cond_kwargs={
                "text_embeds": conditioning.pooled.to(self.dtype),
                # never in half precision, where 1023 is 1024
                "time_ids": conditioning.sizes.float(),
            },
            return_dict=False,
        )[0]
        return output.float()

    def sizes(
        self,
        original: Sequence[tuple[int, int]],
        crops: Sequence[tuple[int, int]],
        target: Sequence[tuple[int, int]],
    ) -> Tensor | None:
        """Size ids [B,6] on the CPU: original height, width; crop top, left; target height, width."""
        rows = zip(original, crops, target, strict=True)
        return torch.tensor([(*size, *crop, *goal) for size, crop, goal in rows])
