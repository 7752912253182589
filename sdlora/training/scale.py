"""The factor on the loss that keeps fp16 gradients from vanishing, kept on the device.

It halves whenever a gradient overflows and doubles after a long stretch without (Micikevicius et al. 2018,
sec. 3.2); the step never has to ask the host.
"""

import torch
from torch import Tensor

FIRST = 2.0**14
PATIENCE = 1000  # steps without overflow before the factor is doubled


class LossScale:
    """`value` [] is the factor, `successes` [] the steps since it last changed."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), FIRST, device=device)
        self.successes = torch.zeros((), device=device)

    def update(self, overflowed: Tensor) -> None:
        """The factor follows a step; `overflowed` [] is 1 where its gradient was not finite, else 0."""
        self.successes.add_(1).mul_(1 - overflowed)
        grown = (self.successes >= PATIENCE).float()
        self.value.mul_((1 - 0.5 * overflowed) * (1 + grown)).clamp_(min=2.0**-14, max=2.0**24)
        self.successes.mul_(1 - grown)
