"""All parameters of a model in one vector, with AdamW and a moving average on that vector.

One vector means one all-reduce and some fifteen kernels a step however many layers there are, and
rates that live on the device, so that nothing in a step waits for Python.
"""

from collections.abc import Iterable

import torch
from torch import nn

ALIGNMENT = 64
"""Each parameter starts at a multiple of so many elements (256 bytes)."""


class Flat:
    """Parameters that are views of `weights`, their gradients views of `grads`; `average` follows."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float = 0.01) -> None:
        self.parameters = list(parameters)
        device = self.parameters[0].device
        self.offsets, total = [], 0
        for p in self.parameters:
            self.offsets.append(total)
            total += -(-p.numel() // ALIGNMENT) * ALIGNMENT
        self.weights, self.grads, self.mean, self.square = (
            torch.zeros(total, device=device) for _ in range(4)
        )
        self.decay = torch.zeros(total, device=device)
        for p, start in zip(self.parameters, self.offsets, strict=True):
            stop = start + p.numel()
            view = _shaped(self.weights[start:stop], p)
            view.copy_(p.data)
            p.data, p.grad = view, _shaped(self.grads[start:stop], p)
            self.decay[start:stop] = decay if p.ndim > 1 else 0
        self.average = self.weights.clone()
        self.steps = torch.zeros((), device=device)
        self.rate = torch.zeros((), device=device)
        self.keep = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self) -> None:
        """One AdamW step (betas 0.9, 0.99) at `rate` with gradients clipped to norm 1, then
        `average` moves to `weights` by 1 - `keep`."""
        self.steps += 1
        self.grads.mul_((1 / (self.grads.norm() + 1e-6)).clamp(max=1))
        self.mean.lerp_(self.grads, 0.1)
        self.square.mul_(0.99).addcmul_(self.grads, self.grads, value=0.01)
        bias = (1 - 0.99**self.steps).sqrt() / (1 - 0.9**self.steps)
        change = self.mean / self.square.sqrt().add_(1e-8)
        self.weights.mul_(1 - self.rate * self.decay)
        self.weights.sub_(change.mul_(self.rate * bias))
        self.average.add_((self.weights - self.average).mul_(1 - self.keep))

    def averaged(self) -> list[torch.Tensor]:
        """The moving average, shaped as the parameters are."""
        return [
            _shaped(self.average[start : start + p.numel()], p)
            for p, start in zip(self.parameters, self.offsets, strict=True)
        ]


def _shaped(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a vector in the parameter's shape; convolution kernels channels last."""
    if like.ndim != 4:
        return part.view(like.shape)
    outputs, inputs, height, width = like.shape
    return part.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
