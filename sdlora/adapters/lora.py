"""LoRA: a layer's change is the product of two thin matrices, scale * up @ down with scale = alpha / rank.

LoRA (Hu et al. 2021), sec. 4.1; for convolutions LoCon: `down` is a convolution of the layer's own form to
r channels, `up` a 1x1 convolution back. In the Tucker form a third core `mid` holds the kernel and `down` is
1x1. Shapes: r rank, O I features, k kernel.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS, LowRank
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError
from sdlora.layers import fitted


@SPECS.register("lora")
@dataclass(frozen=True, kw_only=True)
class LoraSpec(LowRank):
    """How LoRA adapters are made."""

    kind: ClassVar[str] = "lora"


@KINDS.register("lora")
class Lora(Adapter):
    """down [r,I] or [r,I,k,k], up [O,r] or [O,r,1,1], mid None or [r,r,k,k] (then down is [r,I,1,1])."""

    kind = "lora"
    suffixes = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha")
    cast_whole = True
    down_start: Tensor | None
    up_start: Tensor | None

    def __init__(
        self, down: Tensor, up: Tensor, *, alpha: float, mid: Tensor | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.mid = None if mid is None else nn.Parameter(mid)
        # What is taken away again, so that a start with other factors than zero changes nothing.
        self.register_buffer("down_start", None)
        self.register_buffer("up_start", None)
        self.rank = down.shape[0]
        self.alpha = alpha
        self.dropout = dropout

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @classmethod
    def create(cls, layer: nn.Module, spec: LowRank, generator: torch.Generator) -> "Lora":
        """A new adapter of `layer` (linear or convolution), fp32 on its device, that changes nothing.

        `down` starts Gaussian and `up` at zero: LoRA (Hu et al. 2021), sec. 4.1.
        """
        weight = layer.get_parameter("weight").detach()
        outputs, inputs, *kernel = weight.shape
        wide = any(size != 1 for size in kernel)
        rank = spec.conv_rank if wide and spec.conv_rank else spec.rank
        scale = spec.alpha / (math.sqrt(spec.rank) if spec.rank_stabilised else spec.rank)
        ones = [1 for _ in kernel]
        tucker = wide and spec.tucker
        down = _gaussian((rank, inputs, *(ones if tucker else kernel)), generator)
        mid = _gaussian((rank, rank, *kernel), generator).to(weight.device) if tucker else None
        up = torch.zeros(outputs, rank, *ones, device=weight.device)
        lora = cls(down.to(weight.device), up, alpha=scale * rank, mid=mid, dropout=spec.dropout)
        if spec.start == "pissa" and not tucker:
            lora._start_from(weight, generator.initial_seed())
        return lora

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Lora":
        """The adapter held by `tensors`; a linear one fits a 1x1 convolution and the other way round."""
        outputs, inputs, *kernel = layer.get_parameter("weight").shape
        down, up, mid = (tensors.get(name) for name in cls.suffixes[:3])
        if down is None or up is None:
            raise AdapterError(f"{'lora_down' if down is None else 'lora_up'}.weight is missing.")
        rank = down.shape[0] if down.ndim else 0
        ones = [1 for _ in kernel]
        down = fitted("lora_down", down, (rank, inputs, *(kernel if mid is None else ones)))
        up = fitted("lora_up", up, (outputs, rank, *ones))
        mid = None if mid is None else fitted("lora_mid", mid, (rank, rank, *kernel))
        return cls(down, up, alpha=float(tensors.get("alpha", torch.tensor(float(rank)))), mid=mid)

    def tensors(self) -> dict[str, Tensor]:
        """The factors and alpha, detached; after a start from the weight the rank is twice as large."""
        if self.down_start is not None and self.up_start is not None:
            down, up = torch.cat([self.down, self.down_start]), torch.cat([self.up, -self.up_start], dim=1)
            held = {"lora_down.weight": down.detach(), "lora_up.weight": up.detach()}
            return held | {"alpha": torch.tensor(2 * self.alpha)}
        found = {"lora_down.weight": self.down, "lora_up.weight": self.up, "lora_mid.weight": self.mid}
        held = {name: tensor.detach() for name, tensor in found.items() if tensor is not None}
        return held | {"alpha": torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        """scale * up @ down in the shape of `weight`, fp32 on its device."""
        down, up = (part.to(weight.device, torch.float32).flatten(1) for part in (self.down, self.up))
        if self.mid is None:
            product = up @ down
        else:
            product = torch.einsum("oa,ab...,bi->oi...", up, self.mid.to(up), down)
        if self.down_start is not None and self.up_start is not None:
            product = product - self.up_start.to(up).flatten(1) @ self.down_start.to(up).flatten(1)
        return (product * self.scale).reshape(weight.shape)

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """scale * up(down(x)); the fp32 factors are cast to the number format of x."""
        change = self._through(x, layer, self.down, self.up)
        if self.down_start is None or self.up_start is None:
            return change
        return change - self._through(x, layer, self.down_start, self.up_start)

    def adapted(self, x: Tensor, layer: nn.Module, plain: Callable[[Tensor], Tensor]) -> Tensor:
        """plain(x) + scale * up(down(x)), in one function where a frozen linear layer allows it."""
        if not self.plain_on(layer, x):
            return super().adapted(x, layer, plain)
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        out: Tensor = _Adapted.apply(x, layer.weight, layer.bias, down, up, self.scale)  # type: ignore[no-untyped-call]  # torch's gap
        return out

    def plain_on(self, layer: nn.Module, x: Tensor) -> bool:
        """Whether this adds two products and nothing else to what a frozen linear layer answers to x."""
        frozen = type(layer) is nn.Linear and layer.weight.dtype == x.dtype and not layer.weight.requires_grad
        return frozen and not self.dropout and self.up_start is None

    def _through(self, x: Tensor, layer: nn.Module, down: Tensor, up: Tensor) -> Tensor:
        down, up = down.to(x.dtype), up.to(x.dtype)
        if not isinstance(layer, nn.Conv2d):
            return F.linear(self._narrow(F.linear(x, down)), up)
        if self.mid is None:
            return F.conv2d(self._narrow(_convolved(x, down, layer)), up)
        core = _convolved(F.conv2d(x, down), self.mid.to(x.dtype), layer)
        return F.conv2d(self._narrow(core), up)

    def _narrow(self, hidden: Tensor) -> Tensor:
        # Scaled and dropped out where the tensor is narrowest.
        scaled = hidden if self.scale == 1 else hidden * self.scale
        return F.dropout(scaled, self.dropout, self.training) if self.dropout else scaled

    @torch.no_grad()
    def _start_from(self, weight: Tensor, seed: int) -> None:
        """Both factors hold the strongest directions of `weight`: PiSSA (Meng et al. 2024), eq. 2-4."""
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(weight.float().flatten(1), q=self.rank, niter=4)
        root = (s / self.scale).sqrt()
        self.up.copy_((u * root).reshape(self.up.shape))
        self.down.copy_((v * root).T.reshape(self.down.shape))
        self.up_start, self.down_start = self.up.detach().clone(), self.down.detach().clone()


class _Adapted(torch.autograd.Function):
    """x W^T + b + scale * x down^T up^T for x [...,I], W [O,I], down [r,I], up [O,r]; W, b get no gradient.

    Written out because sums join the products that make them, and of what is between only x down^T is kept.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # torch's form
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        narrow = rows @ down.t()
        if scale != 1:
            narrow *= scale
        out = F.linear(rows, weight, bias)
        out.addmm_(narrow, up.t())
        ctx.save_for_backward(x, weight, down, up, narrow)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]  # torch's form
        x, weight, down, up, narrow = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        through = gradient @ up
        if ctx.scale != 1:
            through *= ctx.scale
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (gradient @ weight).addmm_(through, down).view(x.shape)
        return to_x, None, None, through.t() @ x.flatten(0, -2), gradient.t() @ narrow, None


def _gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal values of variance 1 / (3 * fan-in): the variance of a new layer's uniform weights."""
    return nn.init.kaiming_normal_(torch.empty(shape), a=math.sqrt(5), generator=generator)


def _convolved(x: Tensor, kernel: Tensor, layer: nn.Conv2d) -> Tensor:
    return F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
