"""Where the networks of a family lie: on its device while they are needed, else in the machine's memory.

A family that was loaded `waiting` has its networks in the machine's memory until they are asked for here.
Weights are frozen: what came is not carried back but forgotten, and coming again gives the same bits. On a
CPU all this does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdlora.contracts import Family
from sdlora.runtime import release

_SHARE = 0.6  # of a device's free memory that networks may take for good; the rest is to draw with


@contextmanager
def present(family: Family, *names: str) -> Iterator[None]:
    """Inside, these networks lie on the family's device; after it, those that came lie where they were.

    `names` are keys of `family.networks`.
    """
    came = [part for name in names for part in _elsewhere(family.networks[name], family.device)]
    try:
        for module, name, tensor in came:
            _place(module, name, tensor.detach().to(family.device))
        yield
    finally:
        for module, name, tensor in came:
            setattr(module, name, tensor)
        if came:
            release(family.device)


def settle(family: Family, *names: str) -> None:
    """These networks lie on the family's device from now on, the UNet's kernels as tensor cores read them."""
    for name in names:
        network = family.networks[name]
        for module, part, tensor in _elsewhere(network, family.device):
            _place(module, part, tensor.detach().to(family.device))
        if family.device.type == "cuda" and name == "unet":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def settle_in(family: Family, free: int) -> None:
    """All networks settle if they leave enough of `free` bytes to draw with, else the UNet alone."""
    held = sum(part.nbytes for network in family.networks.values() for part in _tensors(network))
    settle(family, *(family.networks if held <= _SHARE * free else ("unet",)))


def text_encoders(family: Family) -> tuple[str, ...]:
    """The names of the networks that encode text."""
    return tuple(name for name in family.networks if name.startswith("text_encoder"))


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _elsewhere(network: nn.Module, device: torch.device) -> list[tuple[nn.Module, str, Tensor]]:
    """The parameters and buffers that are not on `device`: their module, name and value."""
    return [
        (module, name, tensor)
        for module in network.modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if tensor.device != device
    ]


def _place(module: nn.Module, name: str, tensor: Tensor) -> None:
    frozen = isinstance(getattr(module, name), nn.Parameter)
    setattr(module, name, nn.Parameter(tensor, requires_grad=False) if frozen else tensor)
