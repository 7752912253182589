"""The loop to compare with: a LoRA by peft, trained as diffusers' `train_text_to_image_lora.py` does it.

Every picture is encoded anew at each step, as is its caption; timesteps are independent draws, the
error is not weighted, the rate is constant, the text encoder stays as it is. Data, base, rank, batch
and learning rate are ours.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from peft import LoraConfig
from PIL import Image

from .painter import Painter

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, kw_only=True)
class PlainRun:
    """What a plain run was given and took: it ends after `steps`, or after `seconds` if that is first."""

    rank: int
    rate: float
    batch: int
    steps: int
    seconds: float = float("inf")


def train(painter: Painter, dataset: Path, run: PlainRun, *, seed: int = 0) -> dict[str, float]:
    """The painter's UNet carries the new adapter; says the steps made and the seconds they took."""
    torch.manual_seed(seed)
    order = Random(seed)
    pictures = [
        (_pixels(path).to(painter.unet.device), path.with_suffix(".txt").read_text().strip())
        for path in sorted(dataset.glob("*.png"))
    ]
    unet = painter.unet
    unet.add_adapter(
        LoraConfig(
            r=run.rank, lora_alpha=run.rank, init_lora_weights="gaussian", target_modules=list(TARGETS)
        )
    )
    learned = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=run.rate)
    noiser = DDPMScheduler.from_pretrained(painter.folder / "scheduler")
    unet.train()
    started, steps = time.monotonic(), 0
    while steps < run.steps and time.monotonic() - started < run.seconds:
        batch = order.sample(pictures, run.batch)
        loss = _loss(painter, noiser, torch.stack([p for p, _ in batch]), [c for _, c in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # as it does, to tell of its progress
        steps += 1
    unet.eval()
    return {"steps": steps, "seconds": round(time.monotonic() - started, 1)}


def _loss(painter: Painter, noiser: DDPMScheduler, pixels: torch.Tensor, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        clean = painter.vae.encode(pixels).latent_dist.sample() * painter.vae.config.scaling_factor
        told = painter.embed(texts)
    noise = torch.randn_like(clean)
    t = torch.randint(0, noiser.config.num_train_timesteps, (len(clean),), device=clean.device)
    predicted = painter.unet(noiser.add_noise(clean, noise, t), t, told).sample
    return F.mse_loss(predicted, noise)


def _pixels(path: Path) -> torch.Tensor:
    """[3,H,H] in [-1,1]."""
    values = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)
