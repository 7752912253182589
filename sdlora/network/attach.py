"""Adapters on a model, live: every adapted layer puts out its own result and the adapter's change.

This is the path that trains. Nothing of the base is written, so that detaching restores it exactly.
"""

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS
from sdlora.contracts import Adapter, Family, Layer
from sdlora.errors import AdapterError
from sdlora.network import targets


class Network(nn.Module):
    """Adapters by layer. Its state dict is what a checkpoint holds."""

    def __init__(self, adapters: Mapping[Layer, Adapter]) -> None:
        super().__init__()
        self.layers = tuple(adapters)
        self._held = nn.ModuleDict({_name(layer): adapter for layer, adapter in adapters.items()})
        self.silent = False

    @property
    def adapters(self) -> dict[Layer, Adapter]:
        """Layer -> adapter, in the order of the model."""
        return dict(zip(self.layers, self._held.values(), strict=True))  # type: ignore[arg-type]  # ModuleDict forgets the type

    def computing_in(self, dtype: torch.dtype) -> "Network":
        """What layers of `dtype` compute with: this network, or one that holds copies in `dtype`.

        Copies of what every use would cast, that is: then all of it is cast at once, and once a step.
        """
        if dtype == torch.float32 or not any(adapter.cast_whole for adapter in self.adapters.values()):
            return self
        return Network(
            {layer: copy.deepcopy(a).to(dtype) if a.cast_whole else a for layer, a in self.adapters.items()}
        )

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Inside, layers that the network is attached to answer as if it were not. Not for threads."""
        self.silent = True
        try:
            yield
        finally:
            self.silent = False

    def parameters_of(self, component: str) -> list[nn.Parameter]:
        """The parameters of the adapters of one component, such as "unet"."""
        return [
            p for layer, a in self.adapters.items() if layer.component == component for p in a.parameters()
        ]

    @property
    def text_parameters(self) -> list[nn.Parameter]:
        """The parameters of the adapters of all text encoders."""
        return [p for layer, a in self.adapters.items() if layer.component != "unet" for p in a.parameters()]


def create(family: Family, spec: Any, *, seed: int) -> Network:  # Any: the option tree of a kind
    """New adapters that change nothing, fp32 beside the layers that `spec` names.

    A layer's start depends on the seed and its own name alone. Raises ConfigError when a target matches
    no layer.
    """
    kind = KINDS.get(spec.kind)
    adapters = {
        layer: kind.create(module_of(family, layer), spec, _generator(seed, layer))
        for layer in targets.resolve(family, spec, kind.layer_types)
    }
    return Network(adapters)


@contextmanager
def attached(family: Family, network: Network) -> Iterator[None]:
    """Inside, the family's layers answer with the network's changes added; after it, as before.

    Raises AdapterError when the family lacks a layer of the network.
    """
    with contextlib.ExitStack() as changes:
        for layer, adapter in network.adapters.items():
            changes.enter_context(_adapted(module_of(family, layer), adapter, network))
        yield


def module_of(family: Family, layer: Layer) -> nn.Module:
    """The family's module at `layer`. Raises AdapterError when there is none."""
    try:
        return family.components[layer.component].get_submodule(layer.path)
    except (KeyError, AttributeError):
        raise AdapterError(f"{family.title} has no layer {layer.component}.{layer.path}.") from None


@contextmanager
def _adapted(module: nn.Module, adapter: Adapter, network: Network) -> Iterator[None]:
    plain, own = module.forward, vars(module).get("forward")

    def forward(x: Tensor) -> Tensor:
        return plain(x) if network.silent else adapter.adapted(x, module, plain)

    module.forward = forward
    try:
        yield
    finally:
        vars(module).pop("forward")
        if own is not None:
            module.forward = own


def _generator(seed: int, layer: Layer) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {layer.component} {layer.path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _name(layer: Layer) -> str:
    return f"{layer.component}/{layer.path}".replace(".", "/")
