"""The autoencoder: trained on scenes, its latents near unit variance in every channel.

B batch, H picture side, C=4 latent channels, h=H/8. Loss: absolute error of pixels and of their
differences at three scales (edges matter in icons), the KL term, and a pull of each channel's mean
to 0 and spread to 1, without which channels come out with spreads from 0.3 to 3.8 and the
denoiser's noise schedule fits none of them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from . import models, scenes
from .clock import Clock
from .icons import PRETRAINING, Textures
from .models import Scale

KL_WEIGHT = 1e-3
SPREAD_WEIGHT = 0.05
EDGE_WEIGHT = 0.6
PEAK_RATE = 1.2e-3


def train(
    textures: Textures, scale: Scale, *, device: str, seconds: float, seed: int, compiled: bool
) -> tuple[AutoencoderKL, dict[str, float]]:
    """An autoencoder that has learned for so many seconds, `scaling_factor` measured and set, and what
    `measure` says of it."""
    torch.manual_seed(seed)
    vae = models.autoencoder(scale).to(device, memory_format=torch.channels_last)
    icons = torch.from_numpy(textures.pixels).to(device)
    stream = _Stream(textures, icons, scale, seed)
    loss_of = _Loss(vae)
    step = torch.compile(loss_of) if compiled else loss_of
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        step(stream.batch())[0].backward()  # compiles, so that the clock counts training alone
    optimizer.zero_grad(set_to_none=True)
    clock = Clock("vae", seconds)
    steps = 0
    while clock.progress < 1:
        rate = PEAK_RATE * min(1, (steps + 1) / 100) * _decay(clock.progress)
        optimizer.param_groups[0]["lr"] = rate
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, error = step(stream.batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        if clock.due():
            clock.say(f"step {steps} loss {loss.item():.4f} L1 {error.item():.4f}")
    vae.eval()
    report = measure(vae, stream.batch())
    vae.register_to_config(scaling_factor=round(1 / report["latent_std"], 5))
    clock.say(f"{steps} steps, {steps * scale.vae_batch} pictures, {report}")
    return vae, {"steps": steps, "pictures": steps * scale.vae_batch, **report}


@torch.no_grad()
def measure(vae: AutoencoderKL, pixels: torch.Tensor) -> dict[str, float]:
    """Mean absolute error in [0,2] units of [-1,1] pixels, and the latents' spread per channel."""
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.sample()
    per_channel = latents.float().std((0, 2, 3)).tolist()
    return {
        "l1": (vae.decode(posterior.mode()).sample - pixels).abs().mean().item(),
        "latent_std": latents.float().std().item(),
        "noise_std": posterior.std.float().mean().item(),
        **{f"channel_{i}": round(value, 3) for i, value in enumerate(per_channel)},
    }


class _Loss(torch.nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(training loss, mean absolute error) of pixels [B,3,H,H]."""
        moments = self.vae.quant_conv(self.vae.encoder(pixels)).float()
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        decoded = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        spread = mean.mean((0, 2, 3)).square() + mean.std((0, 2, 3)).clamp(min=1e-3).log().square()
        error = (decoded - pixels).abs().mean()
        loss = error + EDGE_WEIGHT * _edges(decoded, pixels) + KL_WEIGHT * kl + SPREAD_WEIGHT * spread.mean()
        return loss, error.detach()


def _edges(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of horizontal and vertical differences at scales 1, 2 and 4."""
    total = decoded.new_zeros(())
    difference = decoded - pixels
    for _ in range(3):
        total = total + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total / 3


def _decay(progress: float) -> float:
    """1 until 0.3 of the time, then down in a straight line to nearly 0."""
    return min(1.0, (1.001 - progress) / 0.7)


class _Stream:
    """Endless batches of composed scenes of the pretraining sets, some with their colours turned
    about, so that colours and styles that no icon has are kept as well."""

    def __init__(self, textures: Textures, icons: torch.Tensor, scale: Scale, seed: int) -> None:
        self.textures, self.icons, self.scale = textures, icons, scale
        self.rows = textures.rows(*PRETRAINING)
        self.rng = np.random.default_rng(seed)
        self.ready = torch.empty(0)

    def batch(self) -> torch.Tensor:
        """The next [B,3,H,H] in [-1,1], channels last."""
        if len(self.ready) < self.scale.vae_batch:
            self.ready = self._compose(16 * self.scale.vae_batch)
        taken, self.ready = self.ready[: self.scale.vae_batch], self.ready[self.scale.vae_batch :]
        return taken.contiguous(memory_format=torch.channels_last)

    def _compose(self, count: int) -> torch.Tensor:
        rows = self.rng.choice(self.rows, count)
        made = scenes.sample(self.textures, rows, seed=int(self.rng.integers(2**31)), captioned=False)
        pixels = scenes.compose(self.icons, made, size=self.scale.picture)
        turned = torch.from_numpy(self.rng.random(count) < 0.15).to(pixels.device)
        order = torch.from_numpy(self.rng.permutation(3)).to(pixels.device)
        sign = 1.0 if self.rng.random() < 0.5 else -1.0
        return torch.where(turned[:, None, None, None], sign * pixels[:, order], pixels)
