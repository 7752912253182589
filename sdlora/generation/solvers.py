"""The table of solvers: rows over diffusers' schedulers, on the base's own noise process.

Names are A1111's. A row is a scheduler's class and its settings; everything about the noise comes from the
family, so that training, previews and generating agree.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from sdlora.errors import ConfigError
from sdlora.noise import NoiseProcess


@dataclass(frozen=True)
class Solver:
    """A row: the name of a diffusers class, its settings, and the most steps it can take."""

    scheduler: str
    settings: Mapping[str, object]
    most_steps: int = 1000

    def build(self, noise: NoiseProcess, steps: int) -> Any:  # Any: diffusers' schedulers are untyped
        """The scheduler on the noise process, its timesteps set. Raises ConfigError for too many steps."""
        import diffusers

        if steps > self.most_steps:
            raise ConfigError(
                f"steps = {steps} is more than this solver can take.", f"Allowed: up to {self.most_steps}."
            )
        kind = getattr(diffusers, self.scheduler)
        scheduler = kind(
            trained_betas=_betas(noise),
            num_train_timesteps=len(noise.alphas_bar),
            prediction_type=noise.prediction,
            **{**self.settings, **_zero_terminal(noise)},
        )
        scheduler.set_timesteps(steps)
        return scheduler


def _row(scheduler: str, *, most_steps: int = 1000, **settings: object) -> Solver:
    return Solver(scheduler, settings, most_steps)


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        "DPM++ 2M Karras": _row("DPMSolverMultistepScheduler", use_karras_sigmas=True),
        "DPM++ 2M": _row("DPMSolverMultistepScheduler"),
        "DPM++ 2M SDE Karras": _row(
            "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
        ),
        "DPM++ 2M SDE": _row("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
        "Euler": _row("EulerDiscreteScheduler"),
        "Euler Karras": _row("EulerDiscreteScheduler", use_karras_sigmas=True),
        "Euler a": _row("EulerAncestralDiscreteScheduler"),
        "UniPC": _row("UniPCMultistepScheduler"),
        "DDIM": _row("DDIMScheduler", clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"),
        "DDPM": _row("DDPMScheduler", clip_sample=False, timestep_spacing="trailing"),
        "LCM": _row("LCMScheduler", clip_sample=False, set_alpha_to_one=False, most_steps=50),
    }
)
"""Name -> solver; the first is the default. LCM is for adapters distilled for it, at guidance 1 to 2."""


def takes_generator(scheduler: Any) -> bool:  # Any: as above
    """Whether the solver draws noise of its own at its steps."""
    return "generator" in inspect.signature(scheduler.step).parameters


def _betas(noise: NoiseProcess) -> list[float]:
    """beta_t = 1 - abar_t / abar_(t-1), by which schedulers are told a noise process."""
    alphas_bar = noise.alphas_bar.double()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar[:-1]])
    betas: list[float] = (1 - alphas_bar / before).tolist()
    return betas


def _zero_terminal(noise: NoiseProcess) -> dict[str, object]:
    """Settings for a process that ends in pure noise: start there (Lin et al. 2023, sec. 3.3)."""
    if not noise.zero_terminal:
        return {}
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
