"""The moving average of the adapters' parameters: steadier than where the last step happened to land."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """`average` follows `parameters`; both keep their addresses, as a captured step needs."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, decay: float) -> None:
        self.parameters = [parameter.detach() for parameter in parameters]
        self.average = [parameter.clone() for parameter in self.parameters]
        self.decay = decay
        self._share = torch.zeros((), device=self.parameters[0].device)

    def prepare(self, step: int) -> None:
        """The next update is that of `step`: the average follows fast at first, then with `decay`."""
        self._share.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    def update(self) -> None:
        """average += share * (parameters - average), on the device alone."""
        change = torch._foreach_sub(self.parameters, self.average)
        torch._foreach_mul_(change, self._share)
        torch._foreach_add_(self.average, change)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters have the average's values; after it, their own."""
        own = [parameter.clone() for parameter in self.parameters]
        try:
            _fill(self.parameters, self.average)
            yield
        finally:
            _fill(self.parameters, own)


def _fill(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
