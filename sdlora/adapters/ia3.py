"""(IA)3: every output (or input) feature of a layer is rescaled: W' = W * (1 + w).

Liu et al. 2022, sec. 3.3, in LyCORIS' form, where w begins at zero. PEFT keeps 1 + w (`ia3_l`), and rescales
the bias with the outputs.
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
    """scale [O] or, on the input, [I]; `with_bias` it rescales the outputs' bias too."""

    kind = "ia3"
    suffixes = ("on_input", "weight", "ia3_l")

    def __init__(self, scale: Tensor, *, on_input: bool, with_bias: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.on_input = on_input
        self.with_bias = with_bias

    @classmethod
    def recognises(cls, suffixes: frozenset[str]) -> bool:
        """LyCORIS' two tensors, or PEFT's one, beside which its configuration may tell the side."""
        return suffixes in ({"on_input", "weight"}, {"ia3_l"}, {"ia3_l", "on_input"})

    @classmethod
    def create(cls, layer: nn.Module, spec: Ia3Spec, generator: torch.Generator) -> "Ia3":
        """Zeros, fp32 on the layer's device; nothing is drawn."""
        weight = layer.get_parameter("weight")
        scale = torch.zeros(weight.shape[int(spec.on_input)], device=weight.device)
        return cls(scale, on_input=spec.on_input)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Ia3":
        """The adapter held by `tensors`."""
        if "ia3_l" in tensors:
            return cls._read_peft(tensors, layer)
        on_input = bool(tensors["on_input"].any())
        features = layer.get_parameter("weight").shape[int(on_input)]
        if "weight" not in tensors or tensors["weight"].numel() != features:
            raise AdapterError(f"weight has not the {features} values that the layer needs.")
        return cls(tensors["weight"].flatten(), on_input=on_input)

    def tensors(self) -> dict[str, Tensor]:
        """The scales, detached, and the side they are for."""
        side = {"on_input": torch.tensor(float(self.on_input))}
        if self.with_bias:
            return side | {"ia3_l": self.scale.detach() + 1}
        return side | {"weight": self.scale.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        """W * w: it depends on the weight that is adapted."""
        shape = [1] * weight.ndim
        shape[int(self.on_input)] = -1
        return weight.float() * self.scale.to(weight.device, torch.float32).reshape(shape)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        """b * w where the bias is rescaled with the outputs."""
        if bias is None or not self.with_bias or self.on_input:
            return None
        return bias.float() * self.scale.to(bias.device, torch.float32)

    @classmethod
    def _read_peft(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Ia3":
        outputs, inputs = layer.get_parameter("weight").shape[:2]
        factors = tensors["ia3_l"]
        if "on_input" in tensors:
            on_input = bool(tensors["on_input"].any())
        elif factors.ndim == 2:  # [O,1] or [1,I]
            on_input = factors.shape[0] == 1
        elif outputs != inputs:
            on_input = factors.numel() == inputs
        else:
            reason = "ia3_l could be for the layer's inputs or for its outputs."
            raise AdapterError(reason, "Put its adapter_config.json beside the file.")
        features = inputs if on_input else outputs
        if factors.numel() != features:
            raise AdapterError(f"ia3_l has {factors.numel()} values, the layer needs {features}.")
        return cls(factors.flatten().float() - 1, on_input=on_input, with_bias=True)
