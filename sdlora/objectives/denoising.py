"""The objective of Stable Diffusion: say which noise was added to the latents.

Per-sample losses [B]; the target (noise or velocity) is the family's. Everything is arithmetic on static
tensors, so that a step can be captured as a CUDA graph.

Huber on diffusion: Khrapov et al. 2024. Min-SNR: Hang et al. 2023. Noise offset: Guttenberg 2023.
Preservation: Li and Hoiem 2016, "Learning without Forgetting"; with captions that lack their trigger word it
is ai-toolkit's differential output preservation.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdlora.contracts import Family, Step
from sdlora.errors import ConfigError
from sdlora.noise import NoiseProcess
from sdlora.objectives import OBJECTIVES
from sdlora.options import option

TIMESTEPS = 1000


@OBJECTIVES.register("denoising")
@dataclass(frozen=True, kw_only=True)
class Denoising:
    """The distance between what the UNet predicts and its target."""

    kind: ClassVar[str] = "denoising"

    distance: str = option(
        "mse",
        "Distance of prediction and target; huber and smooth_l1 forgive outliers",
        label="Loss",
        choices=("mse", "huber", "smooth_l1"),
    )
    huber_c: float = option(
        0.1,
        "Where huber and smooth_l1 turn from square to linear",
        low=1e-6,
        high=10,
        label="Huber threshold",
    )
    huber_schedule: str = option(
        "snr",
        "How that threshold follows the noise level",
        choices=("constant", "exponential", "snr"),
    )
    min_snr_gamma: float = option(
        5.0,
        "Limit of the weight of nearly clean steps (min-SNR); 0 weighs all alike",
        label="Min-SNR gamma",
        low=0,
        high=100,
    )
    noise_offset: float = option(
        0.0,
        "Strength of a constant added to each channel's noise; helps very dark or bright pictures",
        low=0,
        high=1,
    )
    preservation: float = option(
        0.0,
        "How strongly what the base makes of captions without their trigger word is kept, so that the adapter"
        " shows only where it is called; steps take about a third longer, and 0 is off",
        low=0,
        high=10,
    )
    timestep_min: int = option(0, "Lowest timestep that is trained", low=0, high=TIMESTEPS - 1)
    timestep_max: int = option(TIMESTEPS - 1, "Highest timestep that is trained", low=0, high=TIMESTEPS - 1)

    def __post_init__(self) -> None:
        if self.timestep_min > self.timestep_max:
            raise ConfigError(
                f"objective.timestep_min = {self.timestep_min} is above objective.timestep_max ="
                f" {self.timestep_max}.",
                "Give a minimum that is not above the maximum.",
            )

    def prediction(self, family: Family, step: Step) -> Tensor:
        """What the UNet says of the noisy latents [B,C,h,w], fp32."""
        if step.conditioning is None:
            raise ValueError("a step reaches its objective with its conditioning")
        noisy = family.noise.add(step.latents, step.noise, step.timesteps)
        return family.predict(noisy, step.timesteps, step.conditioning).float()

    def loss(self, family: Family, step: Step) -> Tensor:
        """Loss of each sample [B], weighted by its mask, its noise level and its own weight."""
        noise = family.noise
        target = step.target
        if target is None:
            target = noise.target(step.latents, step.noise, step.timesteps)
        distance = self._distance(self.prediction(family, step) - target, noise, step.timesteps)
        if step.mask is not None:
            distance = distance * step.mask
        return distance.flatten(1).mean(1) * self._weight(noise, step.timesteps) * step.weight

    def timesteps(self, generator: torch.Generator, count: int) -> Tensor:
        """Timesteps [count], int64, even over [timestep_min, timestep_max], on the CPU."""
        return torch.randint(self.timestep_min, self.timestep_max + 1, (count,), generator=generator)

    def shape_noise(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """`noise` [C,h,w] with one random offset a channel."""
        if not self.noise_offset:
            return noise
        return noise + self.noise_offset * torch.randn(noise.shape[0], 1, 1, generator=generator)

    def _distance(self, error: Tensor, noise: NoiseProcess, timesteps: Tensor) -> Tensor:
        """mse d^2; huber 2c(sqrt(d^2+c^2)-c); smooth_l1 2(sqrt(d^2+c^2)-c)."""
        if self.distance == "mse":
            return error.square()
        c = self._threshold(noise, timesteps).view(-1, 1, 1, 1)
        rounded = 2 * ((error.square() + c.square()).sqrt() - c)
        return c * rounded if self.distance == "huber" else rounded

    def _threshold(self, noise: NoiseProcess, timesteps: Tensor) -> Tensor:
        """The threshold c of each sample [B]."""
        if self.huber_schedule == "snr":
            sigma = noise.snr(timesteps).rsqrt()
            return (1 - self.huber_c) / (1 + sigma).square() + self.huber_c
        if self.huber_schedule == "exponential":
            return torch.exp(timesteps * (math.log(self.huber_c) / TIMESTEPS))
        return torch.full_like(timesteps, self.huber_c, dtype=torch.float32)

    def _weight(self, noise: NoiseProcess, timesteps: Tensor) -> Tensor:
        """Min-SNR weight of each sample [B]: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v."""
        if not self.min_snr_gamma:
            return torch.ones_like(timesteps, dtype=torch.float32)
        snr = noise.snr(timesteps)
        limited = snr.clamp(max=self.min_snr_gamma)
        return limited / (snr if noise.prediction == "epsilon" else snr + 1)
