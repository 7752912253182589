"""LoRA: a layer's change is the product of two thin matrices, scale * up @ down with scale = alpha / rank.

LoRA (Hu et al. 2021), sec. 4.1; for convolutions LoCon: `down` is a convolution of the layer's own form to
r channels, `up` a 1x1 convolution back. In the Tucker form a third core `mid` holds the kernel and `down` is
1x1. Shapes: r rank, O I features, k kernel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS, Placement
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError
from sdlora.options import option


@SPECS.register("lora")
@dataclass(frozen=True, kw_only=True)
class LoraSpec(Placement):
    """How LoRA adapters are made."""

    kind: ClassVar[str] = "lora"

    rank: int = option(
        16,
        "Width of the bottleneck: more holds more detail and makes a larger file",
        low=1,
        high=1024,
        level="basic",
    )
    alpha: float = option(8.0, "The change is multiplied with alpha / rank", low=1e-6, high=4096)
    dropout: float = option(
        0.0,
        "How often a value in the bottleneck is left out of a training step",
        low=0,
        high=0.95,
        unit="fraction of values",
    )


@KINDS.register("lora")
class Lora(Adapter):
    """down [r,I] or [r,I,k,k], up [O,r] or [O,r,1,1], mid None or [r,r,k,k] (then down is [r,I,1,1])."""

    kind = "lora"
    suffixes = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha")

    def __init__(
        self, down: Tensor, up: Tensor, *, alpha: float, mid: Tensor | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.mid = None if mid is None else nn.Parameter(mid)
        self.rank = down.shape[0]
        self.alpha = alpha
        self.dropout = dropout

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @classmethod
    def create(cls, layer: nn.Module, spec: LoraSpec, generator: torch.Generator) -> "Lora":
        """A new adapter of `layer` (linear or convolution), fp32 on its device, whose `up` is zero."""
        weight = layer.get_parameter("weight")
        outputs, inputs, *kernel = weight.shape
        down = torch.empty(spec.rank, inputs, *kernel)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        up = torch.zeros(outputs, spec.rank, *(1 for _ in kernel))
        return cls(down.to(weight.device), up.to(weight.device), alpha=spec.alpha, dropout=spec.dropout)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Lora":
        """The adapter held by `tensors`; a linear one fits a 1x1 convolution and the other way round."""
        outputs, inputs, *kernel = layer.get_parameter("weight").shape
        down, up, mid = (tensors.get(name) for name in cls.suffixes[:3])
        if down is None or up is None:
            raise AdapterError(f"{'lora_down' if down is None else 'lora_up'}.weight is missing.")
        rank = down.shape[0] if down.ndim else 0
        ones = [1 for _ in kernel]
        down = _shaped("lora_down", down, (rank, inputs, *(kernel if mid is None else ones)))
        up = _shaped("lora_up", up, (outputs, rank, *ones))
        mid = None if mid is None else _shaped("lora_mid", mid, (rank, rank, *kernel))
        return cls(down, up, alpha=float(tensors.get("alpha", torch.tensor(float(rank)))), mid=mid)

    def tensors(self) -> dict[str, Tensor]:
        """The factors and alpha, detached."""
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
        return (product * self.scale).reshape(weight.shape)

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """scale * up(down(x)); the fp32 factors are cast to the number format of x."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
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


def _convolved(x: Tensor, kernel: Tensor, layer: nn.Conv2d) -> Tensor:
    return F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)


def _shaped(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    squeezed = [size for size in tensor.shape[2:] if size != 1]
    expected = [size for size in shape[2:] if size != 1]
    if tensor.ndim < 2 or tuple(tensor.shape[:2]) != shape[:2] or squeezed != expected or not shape[0]:
        raise AdapterError(f"{name} has the shape {tuple(tensor.shape)}, the layer needs {shape}.")
    return tensor.reshape(shape)
