"""Stable Diffusion 1.x: one CLIP text encoder, a UNet on 4-channel latents, an eightfold VAE.

Rombach et al. 2022. Stable Diffusion 2.x is the same with OpenCLIP's encoder, taken before its last layer,
which its files therefore leave out; its larger models predict v.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sdlora.base import prompts as prompt_tokens
from sdlora.base.autoencoder import Autoencoder, load_autoencoder
from sdlora.base.files import ModelFiles, native_size, weights_hash
from sdlora.base.networks import encode, load_text_encoder, load_unet, measured_prediction
from sdlora.base.original import SD2_SIDES
from sdlora.base.targets import PRESETS
from sdlora.contracts import Conditioning, LatentFormat, Tokens
from sdlora.families import FAMILIES
from sdlora.noise import NoiseProcess


@FAMILIES.register("sd1")
@dataclass(kw_only=True)
class StableDiffusion1:
    """A loaded SD 1.x model."""

    name: ClassVar[str] = "sd1"
    title: ClassVar[str] = "Stable Diffusion 1.x"
    file_prefixes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"unet": "lora_unet", "text_encoder": "lora_te"}
    )
    presets: ClassVar[Mapping[str, tuple[str, ...]]] = PRESETS
    layers_left_out: ClassVar[int] = 0  # at the end of the text encoder

    source: Path
    native_size: int
    hash: str
    unet: nn.Module
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    autoencoder: Autoencoder
    noise: NoiseProcess
    device: torch.device
    dtype: torch.dtype
    components: Mapping[str, nn.Module] = field(init=False)
    networks: Mapping[str, nn.Module] = field(init=False)
    latent: LatentFormat = field(init=False)

    def __post_init__(self) -> None:
        self.components = {"unet": self.unet, "text_encoder": self.text_encoder}
        self.networks = {**self.components, "vae": self.autoencoder.vae}
        self.latent = self.autoencoder.format

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """One text encoder, and a UNet that projects by convolutions."""
        return files.components == {"unet", "vae", "text_encoder"} and not files.config("unet").get(
            "use_linear_projection"
        )

    @classmethod
    def load(cls, files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> "StableDiffusion1":
        """The model on `device`, frozen. Raises ModelError when files are missing or damaged."""
        unet = load_unet(files, device=device, dtype=dtype)
        scheduler, side = dict(files.config("scheduler")), native_size(files)
        if not scheduler.get("prediction_type", "epsilon"):  # a single file that says nothing of it
            measured = measured_prediction(unet, files.config("unet"), device=device, dtype=dtype)
            scheduler["prediction_type"] = measured
            side = side * SD2_SIDES[measured] // SD2_SIDES["v_prediction"]
        return cls(
            source=files.path,
            native_size=side,
            hash=weights_hash(files),
            noise=NoiseProcess.of_scheduler(scheduler),
            tokenizer=files.tokenizer("tokenizer"),
            unet=unet,
            text_encoder=load_text_encoder(files, "text_encoder", device=device, dtype=dtype),
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
        """Ids [B,1,77*chunks] on the CPU; `weighted` understands emphasis and BREAK, `words` are ids."""
        return prompt_tokens.tokenize([self.tokenizer], prompts, weighted=weighted, words=words)

    def encode_text(self, tokens: Tokens, *, clip_skip: int = 1) -> Conditioning:
        """States [B,77*chunks,D] of the `clip_skip`-th layer from the end, normalised; differentiable.

        A layer that is left out stands for the last one that is there.
        """
        ids = tokens.ids[:, 0]
        output = encode(self.text_encoder, ids.reshape(-1, 77))
        layer = max(clip_skip - self.layers_left_out, 1)
        states = self.text_encoder.final_layer_norm(output.hidden_states[-layer])
        states = states.reshape(*ids.shape, -1)
        if tokens.weights is not None:
            states = states * tokens.weights[:, 0, :, None].to(states)
        return Conditioning(states)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] -> latents [B,4,h,w], fp32."""
        return self.autoencoder.encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B,4,h,w] -> pixels [B,3,H,W] in [-1,1], fp32, finite."""
        return self.autoencoder.decode(latents)

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's raw output, fp32, for noisy latents [B,4,h,w] at timesteps [B]; differentiable."""
        states = conditioning.states.to(self.dtype)
        output: Tensor = self.unet(noisy.to(self.dtype), timestep, states, return_dict=False)[0]
        return output.float()

    def sizes(
        self,
        original: Sequence[tuple[int, int]],
        crops: Sequence[tuple[int, int]],
        target: Sequence[tuple[int, int]],
    ) -> Tensor | None:
        """None: this family knows no size ids."""
        return None


@FAMILIES.register("sd2")
@dataclass(kw_only=True)
class StableDiffusion2(StableDiffusion1):
    """A loaded SD 2.x model."""

    name: ClassVar[str] = "sd2"
    title: ClassVar[str] = "Stable Diffusion 2.x"
    layers_left_out: ClassVar[int] = 1

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """One text encoder, and a UNet that projects linearly."""
        return files.components == {"unet", "vae", "text_encoder"} and bool(
            files.config("unet").get("use_linear_projection")
        )
