"""Full deltas: the change of a weight as it is, and of its bias."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS, Placement
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError


@SPECS.register("full")
@dataclass(frozen=True, kw_only=True)
class FullSpec(Placement):
    """How full deltas are made. The file is as large as the layers that are adapted."""

    kind: ClassVar[str] = "full"


@KINDS.register("full")
class Full(Adapter):
    """diff in the shape of the layer's weight; bias [O] or None."""

    kind = "full"
    suffixes = ("diff", "diff_b")

    def __init__(self, diff: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.diff = nn.Parameter(diff)
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def create(cls, layer: nn.Module, spec: FullSpec, generator: torch.Generator) -> "Full":
        """Zeros, fp32 on the layer's device, also for its bias; nothing is drawn."""
        weight, bias = layer.get_parameter("weight"), dict(layer.named_parameters()).get("bias")
        zeros = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
        return cls(zeros, None if bias is None else torch.zeros_like(bias, dtype=torch.float32))

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Full":
        """The deltas held by `tensors`."""
        shape = layer.get_parameter("weight").shape
        diff, bias = tensors["diff"], tensors.get("diff_b")
        if diff.numel() != shape.numel() or diff.shape[:1] != shape[:1]:
            raise AdapterError(f"diff has the shape {tuple(diff.shape)}, the layer {tuple(shape)}.")
        if bias is not None and ("bias" not in dict(layer.named_parameters()) or bias.numel() != shape[0]):
            raise AdapterError("diff_b does not fit the layer's bias.")
        return cls(diff.reshape(shape), None if bias is None else bias.flatten())

    def tensors(self) -> dict[str, Tensor]:
        """The deltas, detached."""
        held = {"diff": self.diff, "diff_b": self.bias}
        return {name: tensor.detach() for name, tensor in held.items() if tensor is not None}

    def delta(self, weight: Tensor) -> Tensor:
        """The change as it is."""
        return self.diff.to(weight.device, torch.float32)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        """The bias's change as it is."""
        return self.bias
