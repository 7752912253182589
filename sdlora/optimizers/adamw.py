"""AdamW (Loshchilov & Hutter 2019), as one fused kernel.

torch's fused form takes `grad_scale` and `found_inf` as tensors: clipping, loss scaling and leaving out a
step that is not finite cost nothing and need no word from the host.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from sdlora.optimizers import OPTIMIZERS
from sdlora.options import option


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay."""

    kind: ClassVar[str] = "adamw"

    lr: float = option(
        2e-4,
        "Peak learning rate of the UNet's adapters; 0 leaves them out",
        low=0,
        high=10,
        level="basic",
        label="Learning rate",
    )
    text_lr: float = option(
        5e-5,
        "Peak learning rate of the text encoders' adapters; 0 leaves them out",
        low=0,
        high=10,
        level="basic",
        label="Text encoder learning rate",
    )
    weight_decay: float = option(0.01, "How fast unused weights shrink", low=0, high=10)
    beta1: float = option(0.9, "Memory of the gradient", low=0, high=0.99999)
    beta2: float = option(0.999, "Memory of the gradient's square", low=0, high=0.99999999)
    eps: float = option(1e-8, "Keeps tiny gradients from large steps", low=1e-20, high=1)

    def build(
        self,
        groups: Iterable[dict[str, Any]],  # Any: torch's own form
        *,
        device: torch.device,
    ) -> torch.optim.Optimizer:
        """AdamW over `groups`, whose learning rates become tensors on `device` that a captured step reads."""
        tensors = [
            {**group, "lr": torch.tensor(group["lr"], dtype=torch.float32, device=device)} for group in groups
        ]
        return torch.optim.AdamW(
            tensors,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
