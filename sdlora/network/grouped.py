"""Adapters of several runs on one base at once: each changes its own part of a batch.

The many-tenants form of LoRA (Hu et al. 2021, sec. 4.2): the base's product is one for all, and the low-rank
products of all are one batched product. A batch holds parts of the members one after another, all of one
size. Shapes: K members, N rows of a part, I O features of a layer, R the largest rank.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdlora.adapters.lora import Lora
from sdlora.contracts import Adapter, Layer
from sdlora.network.attach import Network


class Group(Adapter):
    """One layer's adapters of all members, None where a member leaves the layer as it is.

    `present` are the numbers of the members that have parts of a batch, in their order.
    """

    kind = "group"

    def __init__(self, members: Sequence[Adapter | None]) -> None:
        super().__init__()
        self.members = members
        self._held = nn.ModuleList(member for member in members if member is not None)
        self.present: Sequence[int] = range(len(members))
        scales = [member.scale if isinstance(member, Lora) else 1.0 for member in members]
        parameter = next(self.parameters())
        # on the device from the start, because a captured step can fetch nothing
        self._scales = None if set(scales) == {1.0} else parameter.new_tensor(scales)[:, None, None]

    def adapted(self, x: Tensor, layer: nn.Module, plain: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's answer to the parts x [K*n,...,I] of a batch, each with its member's change in it."""
        members = [self.members[number] for number in self.present]
        loras = [m for m in members if isinstance(m, Lora) and m.plain_on(layer, x)]
        if len(members) == 1 or len(loras) < len(members):
            parts = zip(members, x.chunk(len(members)), strict=True)
            answers = [m.adapted(part, layer, plain) if m else plain(part) for m, part in parts]
            return answers[0] if len(answers) == 1 else torch.cat(answers)
        rank = max(lora.rank for lora in loras)
        down = torch.stack([_padded(lora.down, rank, 0) for lora in loras]).to(x.dtype)
        up = torch.stack([_padded(lora.up, rank, 1) for lora in loras]).to(x.dtype)
        scales = None
        if self._scales is not None:
            scales = torch.cat([self._scales[number, None] for number in self.present])
        out: Tensor = _Together.apply(x, layer.weight, layer.bias, down, up, scales)  # type: ignore[no-untyped-call]  # torch's gap
        return out


def grouped(networks: Sequence[Network]) -> Network:
    """The networks of all members as one, on every layer that any of them is on."""
    adapters = [network.adapters for network in networks]
    layers: dict[Layer, None] = {layer: None for members in adapters for layer in members}
    return Network({layer: Group([members.get(layer) for members in adapters]) for layer in layers})


def _padded(factor: Tensor, rank: int, dimension: int) -> Tensor:
    """The factor with zeros up to `rank`, which change nothing."""
    missing = rank - factor.shape[dimension]
    return F.pad(factor, (0, 0, 0, missing) if dimension == 0 else (0, missing)) if missing else factor


class _Together(torch.autograd.Function):
    """x W^T + b + scale * x down^T up^T for parts x [K*n,...,I], down [K,R,I], up [K,O,R], scale [K,1,1]."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # torch's form
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scales: Tensor | None
    ) -> Tensor:
        parts = x.reshape(len(down), -1, x.shape[-1])
        narrow = parts @ down.mT
        if scales is not None:
            narrow *= scales
        out = F.linear(parts, weight, bias)
        out.baddbmm_(narrow, up.mT)
        ctx.save_for_backward(x, weight, down, up, narrow, scales)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]  # torch's form
        x, weight, down, up, narrow, scales = ctx.saved_tensors
        gradient = gradient.reshape(len(down), -1, gradient.shape[-1])
        through = gradient @ up
        if scales is not None:
            through *= scales
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (gradient @ weight).baddbmm_(through, down).view(x.shape)
        to_down = through.mT @ x.reshape(len(down), -1, x.shape[-1])
        return to_x, None, None, to_down, gradient.mT @ narrow, None
