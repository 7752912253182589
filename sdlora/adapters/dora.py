"""DoRA: another adapter moves the weight, and every output (or input) feature gets a magnitude of its own.

W' = magnitude * (W + delta) / |W + delta|, DoRA (Liu et al. 2024), eq. 5; the norm gets no gradient
(sec. 4.3). Files hold it beside LoRA, LoHa or LoKr. Shapes: O I features, k kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS, LowRank
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError

_INNER = ("lora", "loha", "lokr")


@SPECS.register("dora")
@dataclass(frozen=True, kw_only=True)
class DoraSpec(LowRank):
    """How DoRA adapters are made: LoRA moves the weight."""

    kind: ClassVar[str] = "dora"


@KINDS.register("dora")
class Dora(Adapter):
    """magnitude [O,1..] or, in older files, [1,I,1..]."""

    kind = "dora"
    suffixes = ("dora_scale",)

    def __init__(self, inner: Adapter, magnitude: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.magnitude = nn.Parameter(magnitude)

    @classmethod
    def recognises(cls, suffixes: frozenset[str]) -> bool:
        """With its scale taken away, another kind is left."""
        rest = suffixes - {"dora_scale"}
        return rest != suffixes and any(KINDS.get(name).recognises(rest) for name in _INNER)

    @classmethod
    def create(cls, layer: nn.Module, spec: DoraSpec, generator: torch.Generator) -> "Dora":
        """LoRA that is zero, and the norms of the layer's weight as magnitudes."""
        weight = layer.get_parameter("weight").detach()
        inner = KINDS.get("lora").create(layer, spec, generator)
        return cls(inner, _norm(weight.float(), over_inputs=True))

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Dora":
        """The adapter held by `tensors`; a flat magnitude, as PEFT writes it, is one of the outputs."""
        rest = {name: tensor for name, tensor in tensors.items() if name != "dora_scale"}
        kind = next(KINDS.get(name) for name in _INNER if KINDS.get(name).recognises(frozenset(rest)))
        outputs, inputs, *kernel = layer.get_parameter("weight").shape
        magnitude = tensors["dora_scale"]
        if magnitude.numel() == outputs and (magnitude.ndim < 2 or magnitude.shape[0] == outputs):
            shape: tuple[int, ...] = (outputs, 1)
        elif magnitude.numel() == inputs:
            shape = (1, inputs)
        else:
            raise AdapterError(
                f"dora_scale has the shape {tuple(magnitude.shape)}, the layer has {outputs} outputs "
                f"and {inputs} inputs."
            )
        return cls(kind.read(rest, layer), magnitude.reshape(*shape, *(1 for _ in kernel)))

    def tensors(self) -> dict[str, Tensor]:
        """Those of the inner adapter, and the magnitudes."""
        return self.inner.tensors() | {"dora_scale": self.magnitude.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        """W' - W: it depends on the weight that is adapted."""
        old = weight.float()
        new = old + self.inner.delta(weight)
        norm = _norm(new, over_inputs=self.magnitude.shape[0] != 1 or new.shape[0] == 1).detach()
        return new * (self.magnitude.to(norm) / norm) - old


def _norm(weight: Tensor, *, over_inputs: bool) -> Tensor:
    """Norms of the rows [O,1..] or columns [1,I,1..] of a weight, never zero."""
    axes = [axis for axis in range(weight.ndim) if axis != (0 if over_inputs else 1)]
    norm: Tensor = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    return norm.clamp(min=torch.finfo(torch.float32).tiny)
