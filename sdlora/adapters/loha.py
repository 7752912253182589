"""LoHa: the elementwise product of two low-rank matrices, of rank up to r squared.

delta = alpha / r * (w1_a @ w1_b) * (w2_a @ w2_b); FedPara (Hyeon-Woo et al. 2021), as in LyCORIS. In the
Tucker form t1 and t2 hold the kernel. Shapes: r rank, O I features, k kernel.
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


@SPECS.register("loha")
@dataclass(frozen=True, kw_only=True)
class LohaSpec(Placement):
    """How LoHa adapters are made."""

    kind: ClassVar[str] = "loha"

    rank: int = option(8, "Rank of each of the two products", low=1, high=256, level="basic")
    alpha: float = option(4.0, "The change is multiplied with alpha / rank", low=1e-6, high=4096)


@KINDS.register("loha")
class Loha(Adapter):
    """w1_a, w2_a [O,r] and w1_b, w2_b [r,I*k*k]; Tucker: t [r,r,k,k], a [r,O], b [r,I]."""

    kind = "loha"
    suffixes = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha")

    def __init__(self, factors: Mapping[str, Tensor], *, alpha: float) -> None:
        super().__init__()
        self.factors = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in factors.items()})
        self.alpha = alpha

    @classmethod
    def create(cls, layer: nn.Module, spec: LohaSpec, generator: torch.Generator) -> "Loha":
        """A new adapter of `layer`, fp32 on its device, whose w2_a is zero."""
        weight = layer.get_parameter("weight")
        outputs, inputs = weight.shape[0], weight[0].numel()
        shapes = {"hada_w1_a": (outputs, spec.rank), "hada_w1_b": (spec.rank, inputs)}
        shapes |= {"hada_w2_a": (outputs, spec.rank), "hada_w2_b": (spec.rank, inputs)}
        stds = {"hada_w1_a": 0.1, "hada_w1_b": 1.0, "hada_w2_a": 0.0, "hada_w2_b": 1.0}
        factors = {
            name: (torch.randn(shape, generator=generator) * stds[name]).to(weight.device)
            for name, shape in shapes.items()
        }
        return cls(factors, alpha=spec.alpha)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Loha":
        """The adapter held by `tensors`."""
        factors = {name: tensors[name] for name in cls.suffixes[:-1] if name in tensors}
        if not {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= factors.keys():
            raise AdapterError("One of the four factors hada_w1_a to hada_w2_b is missing.")
        rank = factors["hada_w1_b"].shape[0] if factors["hada_w1_b"].ndim else 0
        loha = cls(factors, alpha=float(tensors.get("alpha", torch.tensor(float(rank)))))
        loha._check(layer.get_parameter("weight").shape)
        return loha

    def tensors(self) -> dict[str, Tensor]:
        """The factors and alpha, detached."""
        held = {name: tensor.detach() for name, tensor in self.factors.items()}
        return held | {"alpha": torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        """The scaled elementwise product in the shape of `weight`."""
        scale: float = self.alpha / self.factors["hada_w1_b"].shape[0]
        product = self._half("1", weight.device) * self._half("2", weight.device)
        return (product * scale).reshape(weight.shape)

    def _half(self, number: str, device: torch.device) -> Tensor:
        a, b = (self.factors[f"hada_w{number}_{side}"].to(device, torch.float32) for side in "ab")
        if f"hada_t{number}" not in self.factors:
            matrix: Tensor = a @ b
            return matrix
        core = self.factors[f"hada_t{number}"].to(device, torch.float32)
        product: Tensor = torch.einsum("rs...,si,ro->oi...", core, b, a)
        return product

    def _check(self, shape: torch.Size) -> None:
        """Raises AdapterError when the factors do not multiply to `shape`."""
        meta = Loha({n: t.detach().to("meta") for n, t in self.factors.items()}, alpha=1.0)
        try:
            halves = [meta._half(number, torch.device("meta")) for number in "12"]
        except (RuntimeError, IndexError):
            raise AdapterError("Its factors cannot be multiplied.") from None
        if any(half.numel() != shape.numel() or half.shape[0] != shape[0] for half in halves):
            raise AdapterError(
                f"Its product has the shape {tuple(halves[0].shape)}, the layer {tuple(shape)}."
            )
