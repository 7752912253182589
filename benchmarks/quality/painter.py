"""A base loaded with diffusers' own classes, and pictures from it: the benchmark's neutral ground.

N prompts, L tokens, h latents a side, H=8h pixels. Nothing of `sdlora` is used here, so a fault
there cannot hide in the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True, kw_only=True)
class Painter:
    """The parts of one Stable Diffusion folder, in float32 unless asked otherwise."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    words: CLIPTokenizer
    folder: Path

    @torch.no_grad()
    def paint(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        steps: int = 20,
        guidance: float = 4.0,
        batch: int = 64,
    ) -> torch.Tensor:
        """[N,3,H,H] in [-1,1] on the CPU; picture i depends on its prompt and `seed + i` alone."""
        parts = [
            self._paint(prompts[start : start + batch], seed + start, steps, guidance)
            for start in range(0, len(prompts), batch)
        ]
        return torch.cat(parts)

    def _paint(self, prompts: Sequence[str], seed: int, steps: int, guidance: float) -> torch.Tensor:
        device, n = self.unet.device, len(prompts)
        side = self.unet.config.sample_size
        noise = [
            torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed + i)) for i in range(n)
        ]
        latents = torch.stack(noise).to(device, self.unet.dtype)
        conditioning = torch.cat([self.embed([""] * n), self.embed(prompts)])
        solver = DPMSolverMultistepScheduler.from_pretrained(self.folder / "scheduler")
        solver.set_timesteps(steps, device=device)
        for t in solver.timesteps:
            out = self.unet(torch.cat([latents, latents]), t, conditioning).sample
            free, bound = out.chunk(2)
            latents = solver.step(free + guidance * (bound - free), t, latents).prev_sample
        return self.decode(latents)

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """[N,L,D] of the prompts, each padded to the full length."""
        tokens = self.words(
            list(prompts), padding="max_length", truncation=True, max_length=self.words.model_max_length
        )
        return self.text(torch.tensor(tokens["input_ids"], device=self.unet.device))[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels [N,3,H,H] in [-1,1] on the CPU, of scaled latents [N,4,h,h]."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float().clamp(-1, 1).cpu()

    @torch.no_grad()
    def rebuilt(self, pixels: torch.Tensor) -> torch.Tensor:
        """The pictures after the autoencoder: the best that any denoiser on it could paint."""
        return self.vae.decode(self.vae.encode(pixels).latent_dist.mode()).sample.float().clamp(-1, 1)


def load(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Painter:
    """The painter of a Stable Diffusion folder."""
    folder = Path(folder)
    models = {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype),
        "vae": AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype),
        "text": CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=dtype),
    }
    models = {name: model.to(device).eval().requires_grad_(False) for name, model in models.items()}
    return Painter(**models, words=CLIPTokenizer.from_pretrained(folder / "tokenizer"), folder=folder)
