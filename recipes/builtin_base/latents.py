"""The training set of the denoiser: scenes encoded once, captions tokenised once, both kept on the device.

M scenes, C=4, h=H/8, L=77 tokens. Encoding each picture anew in the loop cost the first trial most
of its time; here an epoch is an index_select.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from . import scenes
from .icons import PRETRAINING, Textures
from .models import Scale


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """`latents` [M,C,h,h] scaled to unit spread, `tokens` [M,L] int32, `empty` [L] the empty caption."""

    latents: torch.Tensor
    tokens: torch.Tensor
    empty: torch.Tensor


@torch.no_grad()
def encode(
    textures: Textures, vae: AutoencoderKL, words: CLIPTokenizer, scale: Scale, *, device: str, seed: int
) -> Encoded:
    """Every pretraining icon in `augmentations` different scenes."""
    rows = np.repeat(textures.rows(*PRETRAINING), scale.augmentations)
    made = scenes.sample(textures, rows, seed=seed)
    icons = torch.from_numpy(textures.pixels).to(device)
    kind = torch.bfloat16 if device.startswith("cuda") else torch.float32
    vae = vae.to(kind)
    latents = []
    for start in range(0, len(made), 1024):
        part = _part(made, slice(start, start + 1024))
        pixels = scenes.compose(icons, part, size=scale.picture)
        posterior = vae.encode(pixels.to(kind, memory_format=torch.channels_last)).latent_dist
        latents.append((posterior.sample().float() * vae.config.scaling_factor).half())
    return Encoded(
        latents=torch.cat(latents),
        tokens=tokenise(words, list(made.captions)).to(device),
        empty=tokenise(words, [""])[0].to(device),
    )


def tokenise(words: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """[N,L] token numbers, padded with the end token to the full length."""
    batch = words(texts, padding="max_length", truncation=True, max_length=words.model_max_length)
    return torch.from_numpy(np.asarray(batch["input_ids"], dtype=np.int32))


def _part(whole: scenes.Scenes, rows: slice) -> scenes.Scenes:
    return scenes.Scenes(
        rows=whole.rows[rows],
        places=whole.places[rows],
        backgrounds=whole.backgrounds[rows],
        tints=whole.tints[rows],
        captions=(),
    )
