"""The forward noise process of a base model: how much signal and noise there is at a timestep.

    noisy_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise        SNR(t) = abar_t / (1 - abar_t)

DDPM (Ho et al. 2020), sec. 2; v-prediction: Salimans & Ho 2022, app. D; zero-terminal SNR: Lin et al.
2023, alg. 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sdlora.errors import ModelError

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseProcess:
    """`alphas_bar` [T] fp32 on the CPU, falling; `prediction` says what the UNet's output means."""

    alphas_bar: Tensor
    prediction: Prediction
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def scaled_linear(
        cls,
        prediction: Prediction = "epsilon",
        *,
        zero_terminal_snr: bool = False,
        start: float = 0.00085,
        end: float = 0.012,
        steps: int = 1000,
    ) -> "NoiseProcess":
        """Stable Diffusion's schedule.

        Raises ModelError for epsilon with zero-terminal SNR, whose min-SNR weight would be 0/0.
        """
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        alphas_bar = torch.cumprod(1 - betas, dim=0)
        if zero_terminal_snr:
            if prediction == "epsilon":
                raise ModelError(
                    "Epsilon prediction cannot be combined with zero-terminal SNR.",
                    "Choose v-prediction, or switch zero-terminal SNR off.",
                )
            root = alphas_bar.sqrt()
            alphas_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return cls(alphas_bar.float(), prediction)

    @classmethod
    def of_scheduler(
        cls,
        config: Mapping[str, Any],  # Any: values of a foreign JSON file
    ) -> "NoiseProcess":
        """The process that a diffusers scheduler's configuration describes.

        Raises ModelError for what Stable Diffusion never was.
        """
        schedule, prediction = config.get("beta_schedule"), config.get("prediction_type", "epsilon")
        if schedule != "scaled_linear" or prediction not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"The model's noise schedule ({schedule}, {prediction}) is none of Stable Diffusion's.",
                "Choose a Stable Diffusion model.",
            )
        return cls.scaled_linear(
            prediction,
            zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
            start=float(config["beta_start"]),
            end=float(config["beta_end"]),
            steps=int(config.get("num_train_timesteps", 1000)),
        )

    @property
    def zero_terminal(self) -> bool:
        """Whether the last timestep is pure noise."""
        return bool(self.alphas_bar[-1] == 0)

    def snr(self, timesteps: Tensor) -> Tensor:
        """SNR at timesteps [B] -> [B] on their device."""
        alphas = self._at(timesteps)
        return alphas / (1 - alphas)

    def add(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents [B,C,h,w] at timesteps [B]."""
        signal, sigma = self._roots(timesteps, latents.ndim)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet should put out: the noise, or v = sqrt(abar) noise - sqrt(1 - abar) latents."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self._roots(timesteps, latents.ndim)
        return signal * noise - sigma * latents

    def predicted(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that the UNet's `output` for `noisy` [B,C,h,w] means: `target` turned round."""
        signal, sigma = self._roots(timesteps, noisy.ndim)
        if self.prediction == "epsilon":
            return (noisy - sigma * output) / signal
        return signal * noisy - sigma * output

    def _roots(self, timesteps: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        alphas = self._at(timesteps).view(-1, *[1] * (ndim - 1))
        return alphas.sqrt(), (1 - alphas).sqrt()

    def _at(self, timesteps: Tensor) -> Tensor:
        # A captured step cannot copy from the host, so each device keeps a table of its own.
        device = timesteps.device
        if device not in self._tables:
            self._tables[device] = self.alphas_bar.to(device)
        return self._tables[device][timesteps]
