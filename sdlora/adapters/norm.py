"""Deltas of normalisation layers: their weight and bias are few, and move much."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS, Placement
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError
from sdlora.options import option


@SPECS.register("norm")
@dataclass(frozen=True, kw_only=True)
class NormSpec(Placement):
    """How deltas of normalisation layers are made."""

    kind: ClassVar[str] = "norm"

    targets: str = option(
        "norm", "Normalisation layers that are adapted: regular expressions found in module paths, separated "
        "by commas", label="Target layers",
    )  # fmt: skip


@KINDS.register("norm")
class Norm(Adapter):
    """weight [O] and bias [O] or None, both changes."""

    kind = "norm"
    suffixes = ("w_norm", "b_norm")
    layer_types = (nn.LayerNorm, nn.GroupNorm)

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def create(cls, layer: nn.Module, spec: NormSpec, generator: torch.Generator) -> "Norm":
        """Zeros, fp32 on the layer's device; nothing is drawn."""
        weight = layer.get_parameter("weight")
        zeros = torch.zeros(weight.shape, device=weight.device)
        return cls(zeros, zeros.clone() if "bias" in dict(layer.named_parameters()) else None)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Norm":
        """The deltas held by `tensors`."""
        shape = layer.get_parameter("weight").shape
        if len(shape) != 1:
            raise AdapterError("The layer is no normalisation.")
        features = shape[0]
        for name, tensor in tensors.items():
            if tensor.numel() != features:
                raise AdapterError(f"{name} has {tensor.numel()} values, the layer needs {features}.")
        bias = tensors.get("b_norm")
        return cls(tensors["w_norm"].flatten(), None if bias is None else bias.flatten())

    def tensors(self) -> dict[str, Tensor]:
        """The deltas, detached."""
        held = {"w_norm": self.weight, "b_norm": self.bias}
        return {name: tensor.detach() for name, tensor in held.items() if tensor is not None}

    def delta(self, weight: Tensor) -> Tensor:
        """The change as it is."""
        return self.weight.to(weight.device, torch.float32)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        """The bias's change as it is."""
        return self.bias
