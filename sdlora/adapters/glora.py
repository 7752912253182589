"""GLoRA: a low-rank change of the weight, and one of what it reads: delta = scale (W a1 a2 + b1 b2).

GLoRA (Chavan et al. 2023), as in LyCORIS; older files swap the factors' numbers.
Shapes: r rank, O I features, k kernel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS, Placement
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError
from sdlora.layers import fitted
from sdlora.options import option

_FACTORS = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")


@SPECS.register("glora")
@dataclass(frozen=True, kw_only=True)
class GloraSpec(Placement):
    """How GLoRA adapters are made."""

    kind: ClassVar[str] = "glora"

    rank: int = option(8, "Rank of each of the two products", low=1, high=1024, level="basic")
    alpha: float = option(4.0, "The change is multiplied with alpha / rank", low=1e-6, high=4096)


@KINDS.register("glora")
class Glora(Adapter):
    """a1 [I,r], a2 [r,I], b1 [O,r], b2 [r,I,k,k]; convolutions have a1, a2 and b1 as 1x1."""

    kind = "glora"
    suffixes = (*_FACTORS, "alpha")

    def __init__(self, factors: Mapping[str, Tensor], *, alpha: float) -> None:
        super().__init__()
        self.a1, self.a2, self.b1, self.b2 = (nn.Parameter(factors[name]) for name in _FACTORS)
        self.alpha = alpha

    @classmethod
    def create(cls, layer: nn.Module, spec: GloraSpec, generator: torch.Generator) -> "Glora":
        """A new adapter of `layer`, fp32 on its device, whose a2 and b2 are zero."""
        weight = layer.get_parameter("weight")
        factors = {}
        for name, shape in _shapes(weight.shape, spec.rank).items():
            factors[name] = torch.zeros(shape)
            if name in ("a1.weight", "b1.weight"):
                nn.init.kaiming_uniform_(factors[name], a=math.sqrt(5), generator=generator)
        return cls({n: t.to(weight.device) for n, t in factors.items()}, alpha=spec.alpha)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Glora":
        """The adapter held by `tensors`, in the newer or the older numbering."""
        if not set(_FACTORS) <= tensors.keys():
            raise AdapterError("One of the four factors a1 to b2 is missing.")
        held = {name: tensors[name] for name in _FACTORS}
        shape = layer.get_parameter("weight").shape
        if held["b1.weight"].ndim < 2 or held["b1.weight"].shape[0] != shape[0]:
            held = {f"{n[0]}{3 - int(n[1])}.weight": tensor for n, tensor in held.items()}
        rank = held["b2.weight"].shape[0] if held["b2.weight"].ndim else 0
        factors = {name: fitted(name, held[name], size) for name, size in _shapes(shape, rank).items()}
        return cls(factors, alpha=float(tensors.get("alpha", torch.tensor(float(rank)))))

    def tensors(self) -> dict[str, Tensor]:
        """The factors in the newer numbering and alpha, detached."""
        held = {name: getattr(self, name[:2]).detach() for name in _FACTORS}
        return held | {"alpha": torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        """The scaled sum of both products: it depends on the weight that is adapted."""
        a1, a2, b1, b2 = (
            part.to(weight.device, torch.float32).flatten(1) for part in (self.a1, self.a2, self.b1, self.b2)
        )
        read = torch.einsum("oi...,ir,rj->oj...", weight.float(), a1, a2)
        return (read + (b1 @ b2).reshape(weight.shape)) * (self.alpha / self.b2.shape[0])


def _shapes(weight: torch.Size, rank: int) -> dict[str, tuple[int, ...]]:
    outputs, inputs, *kernel = weight
    ones = [1 for _ in kernel]
    return {
        "a1.weight": (inputs, rank, *ones),
        "a2.weight": (rank, inputs, *ones),
        "b1.weight": (outputs, rank, *ones),
        "b2.weight": (rank, inputs, *kernel),
    }
