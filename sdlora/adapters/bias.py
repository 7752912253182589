"""BitFit: only biases change (Ben Zaken et al. 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS, Placement
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError
from sdlora.layers import bias_of
from sdlora.options import option


@SPECS.register("bias")
@dataclass(frozen=True, kw_only=True)
class BiasSpec(Placement):
    """How changes of biases are made."""

    kind: ClassVar[str] = "bias"

    targets: str = option(
        "to_out|proj|conv|ff|fc",
        "Layers whose biases are adapted: regular expressions found in module paths, separated by commas",
        label="Target layers",
    )


@KINDS.register("bias")
class Bias(Adapter):
    """change [O] of a layer's bias."""

    kind = "bias"
    suffixes = ("diff_b",)

    def __init__(self, change: Tensor) -> None:
        super().__init__()
        self.change = nn.Parameter(change)

    @classmethod
    def create(cls, layer: nn.Module, spec: BiasSpec, generator: torch.Generator) -> "Bias":
        """Zeros, fp32 on the layer's device. Raises AdapterError for a layer without a bias."""
        bias = _bias(layer)
        return cls(torch.zeros(bias.shape, device=bias.device))

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Bias":
        """The change held by `tensors`."""
        change, bias = tensors["diff_b"], _bias(layer)
        if change.numel() != bias.numel():
            raise AdapterError(f"diff_b has {change.numel()} values, the layer needs {bias.numel()}.")
        return cls(change.flatten())

    def tensors(self) -> dict[str, Tensor]:
        """The change, detached."""
        return {"diff_b": self.change.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        """Nothing."""
        return torch.zeros_like(weight, dtype=torch.float32)

    def bias_delta(self, bias: Tensor | None) -> Tensor:
        """The change as it is."""
        return self.change


def _bias(layer: nn.Module) -> Tensor:
    bias = bias_of(layer)
    if bias is None:
        raise AdapterError("The layer has no bias.", "Leave such layers out of adapter.targets.")
    return bias
