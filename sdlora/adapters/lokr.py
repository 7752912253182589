"""LoKr: the Kronecker product of a small matrix with a large one, which may be low-rank.

delta = alpha / r * kron(w1, w2), w1 = w1_a @ w1_b and w2 = w2_a @ w2_b where they are factored; the scale is
1 where neither is. KronA (Edalati et al. 2022), as in LyCORIS.
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
from sdlora.options import option


@SPECS.register("lokr")
@dataclass(frozen=True, kw_only=True)
class LokrSpec(Placement):
    """How LoKr adapters are made."""

    kind: ClassVar[str] = "lokr"

    rank: int = option(
        8, "Rank of the large matrix; where it is no smaller than that, it is kept whole",
        low=1, high=100_000, level="basic",
    )  # fmt: skip
    alpha: float = option(4.0, "The change is multiplied with alpha / rank", low=1e-6, high=100_000)
    factor: int = option(8, "Largest side of the small matrix; 0 makes both about square", low=0, high=1024)


@KINDS.register("lokr")
class Lokr(Adapter):
    """w1 [a,c] and w2 [b,d,k,k] with O = a b, I = c d.

    Factored: w1_a [a,r], w1_b [r,c]; w2_a [b,r], w2_b [r,d*k*k]; with a Tucker core t2 [r,r,k,k] they are
    w2_a [r,b], w2_b [r,d].
    """

    kind = "lokr"
    suffixes = (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
        *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha"),
    )

    def __init__(self, factors: Mapping[str, Tensor], *, alpha: float) -> None:
        super().__init__()
        self.factors = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in factors.items()})
        self.alpha = alpha

    @classmethod
    def recognises(cls, suffixes: frozenset[str]) -> bool:
        """Both matrices are there, whole or factored."""
        halves = all(f"lokr_w{n}" in suffixes or {f"lokr_w{n}_a", f"lokr_w{n}_b"} <= suffixes for n in "12")
        return halves and suffixes <= set(cls.suffixes)

    @property
    def scale(self) -> float:
        """alpha / rank, 1 where nothing is factored."""
        for name in ("lokr_w2_b", "lokr_w1_b"):
            if name in self.factors:
                rank: int = self.factors[name].shape[0]
                return self.alpha / rank
        return 1.0

    @classmethod
    def create(cls, layer: nn.Module, spec: LokrSpec, generator: torch.Generator) -> "Lokr":
        """A new adapter of `layer`, fp32 on its device, whose large matrix is zero."""
        weight = layer.get_parameter("weight")
        outputs, inputs, *kernel = weight.shape
        (a, b), (c, d) = (_parted(size, spec.factor) for size in (outputs, inputs))
        factors = {"lokr_w1": _uniform((a, c), generator)}
        if 2 * spec.rank < max(b, d):
            factors["lokr_w2_a"] = _uniform((b, spec.rank), generator)
            factors["lokr_w2_b"] = torch.zeros(spec.rank, d * math.prod(kernel))
        else:
            factors["lokr_w2"] = torch.zeros(b, d, *kernel)
        return cls({n: t.to(weight.device) for n, t in factors.items()}, alpha=spec.alpha)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Lokr":
        """The adapter held by `tensors`."""
        factors = {name: tensors[name] for name in cls.suffixes[:-1] if name in tensors}
        lokr = cls(factors, alpha=1.0)
        rank = 1.0 if not tensors.keys() & {"lokr_w1_b", "lokr_w2_b"} else 1.0 / lokr.scale
        lokr.alpha = float(tensors.get("alpha", torch.tensor(rank)))
        lokr._check(layer.get_parameter("weight").shape)
        return lokr

    def tensors(self) -> dict[str, Tensor]:
        """The factors and alpha, detached."""
        held = {name: tensor.detach() for name, tensor in self.factors.items()}
        return held | {"alpha": torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        """The scaled Kronecker product in the shape of `weight`."""
        return (self._product(weight.device) * self.scale).reshape(weight.shape)

    def _product(self, device: torch.device) -> Tensor:
        held = {name: tensor.to(device, torch.float32) for name, tensor in self.factors.items()}
        small = held["lokr_w1"] if "lokr_w1" in held else held["lokr_w1_a"] @ held["lokr_w1_b"]
        if "lokr_w2" in held:
            large = held["lokr_w2"]
        elif "lokr_t2" in held:
            large = torch.einsum("rs...,ro,si->oi...", held["lokr_t2"], held["lokr_w2_a"], held["lokr_w2_b"])
        else:
            a, b = held["lokr_w2_a"], held["lokr_w2_b"]
            large = (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])
        return torch.kron(small.reshape((*small.shape, *(1 for _ in large.shape[2:]))), large.contiguous())

    def _check(self, shape: torch.Size) -> None:
        """Raises AdapterError when the factors do not multiply to `shape`."""
        meta = Lokr({n: t.detach().to("meta") for n, t in self.factors.items()}, alpha=1.0)
        try:
            product = meta._product(torch.device("meta"))
        except (RuntimeError, IndexError):
            raise AdapterError("Its factors cannot be multiplied.") from None
        if product.shape[0] != shape[0] or product.numel() != shape.numel():
            raise AdapterError(f"Its product has the shape {tuple(product.shape)}, the layer {tuple(shape)}.")


def _parted(size: int, factor: int) -> tuple[int, int]:
    """(m, n) with m n = size, m the largest divisor that is at most `factor` and the root of size."""
    largest = min(factor or size, math.isqrt(size))
    m = next(m for m in range(largest, 0, -1) if size % m == 0)
    return m, size // m


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
