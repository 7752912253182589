"""A frozen UNet whose weights wait in the machine's memory and come layer by layer, a little ahead of use.

A layer's weight is fetched for every product, in the forward and in the backward pass, on a stream of its own
while the layer before computes. Which one comes next is learned from the order of the last pass; a wrong
guess costs time and nothing else. A recorded graph cannot guess, so such steps run uncaptured.
"""

import functools
from collections import deque
from typing import NamedTuple

import torch
from torch import nn

from sdlora.base.stored import Parts, Stored, store

_AHEAD = 2  # layers


def offload(unet: nn.Module, device: torch.device) -> None:
    """The larger layers of `unet` keep their weights in page-locked memory; `device` is a CUDA device."""
    store(unet, "full", device=device)
    fetcher = Fetcher(device)
    for layer in unet.modules():
        if isinstance(layer, Stored):
            fetcher.keep(layer)


class _Coming(NamedTuple):
    parts: Parts
    arrived: torch.cuda.Event


class Fetcher:
    """Brings the packed weights of layers to `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's gap
        self._homes: list[Parts] = []
        self._coming: dict[int, _Coming] = {}
        self._passed: deque[int] = deque([-1, -1], maxlen=2)
        self._next: dict[tuple[int, ...], int] = {}

    def keep(self, layer: Stored) -> None:
        """The layer's parts are fetched from page-locked memory from now on."""
        names = [name for name, _ in layer.named_buffers(recurse=False)]
        self._homes.append(tuple(part.cpu().pin_memory() for part in layer.parts()))
        for name in names:
            delattr(layer, name)
        layer.parts = functools.partial(self.fetch, len(self._homes) - 1)  # type: ignore[method-assign]  # meant so

    def fetch(self, number: int) -> Parts:
        """The parts of the layer kept as `number`, on the device; those that will follow are on their way."""
        self._next[tuple(self._passed)] = number
        self._passed.append(number)
        self._start(number)
        parts, arrived = self._coming.pop(number)
        current = torch.cuda.current_stream(self._device)
        current.wait_event(arrived)
        for part in parts:
            part.record_stream(current)
        self._look_ahead()
        return parts

    def _look_ahead(self) -> None:
        place = tuple(self._passed)
        wanted: list[int] = []
        while len(wanted) < _AHEAD and place in self._next:
            wanted.append(self._next[place])
            place = (place[-1], wanted[-1])
        for number in self._coming.keys() - set(wanted):
            del self._coming[number]
        for number in wanted:
            self._start(number)

    def _start(self, number: int) -> None:
        if number not in self._coming:
            with torch.cuda.stream(self._stream):
                parts = tuple(part.to(self._device, non_blocking=True) for part in self._homes[number])
                self._coming[number] = _Coming(parts, self._stream.record_event())
