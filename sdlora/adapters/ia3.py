"""(IA)3: every output (or input) feature of a layer is rescaled: W' = W * (1 + w).

Liu et al. 2022, sec. 3.3, in LyCORIS' form, where w begins at zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS, Placement
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError
from sdlora.options import option


@SPECS.register("ia3")
@dataclass(frozen=True, kw_only=True)
class Ia3Spec(Placement):
    """How (IA)3 adapters are made."""

    kind: ClassVar[str] = "ia3"

    on_input: bool = option(False, "Rescale what the layer reads, not what it puts out")


@KINDS.register("ia3")
class Ia3(Adapter):
    """scale [O] or, on the input, [I]."""

    kind = "ia3"
    suffixes = ("on_input", "weight")

    def __init__(self, scale: Tensor, *, on_input: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.on_input = on_input

    @classmethod
    def create(cls, layer: nn.Module, spec: Ia3Spec, generator: torch.Generator) -> "Ia3":
        """Zeros, fp32 on the layer's device; nothing is drawn."""
        weight = layer.get_parameter("weight")
        scale = torch.zeros(weight.shape[int(spec.on_input)], device=weight.device)
        return cls(scale, on_input=spec.on_input)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Ia3":
        """The adapter held by `tensors`."""
        on_input = bool(tensors["on_input"].any())
        features = layer.get_parameter("weight").shape[int(on_input)]
        if "weight" not in tensors or tensors["weight"].numel() != features:
            raise AdapterError(f"weight has not the {features} values that the layer needs.")
        return cls(tensors["weight"].flatten(), on_input=on_input)

    def tensors(self) -> dict[str, Tensor]:
        """The scales, detached, and the side they are for."""
        return {"weight": self.scale.detach(), "on_input": torch.tensor(float(self.on_input))}

    def delta(self, weight: Tensor) -> Tensor:
        """W * w: it depends on the weight that is adapted."""
        shape = [1] * weight.ndim
        shape[int(self.on_input)] = -1
        return weight.float() * self.scale.to(weight.device, torch.float32).reshape(shape)
