"""LoRA of many layers side by side, so that a switch of adapters is few large products instead of many small.

Shapes: N layers, r rank, O I features of the flattened layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdlora.adapters.lora import Lora
from sdlora.contracts import Adapter, Layer


@dataclass(frozen=True, eq=False)
class Bundle:
    """up [N,O,r] and down [N,r,I] of N layers that are alike."""

    up: Tensor
    down: Tensor

    def to(self, device: torch.device) -> "Bundle":
        """The same on a device; from pinned memory the copy runs while the host goes on."""
        return Bundle(*(part.to(device, non_blocking=True) for part in (self.up, self.down)))

    def factors(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """up [n,O,r] and down [n,r,I] of these rows, fp32."""
        return _taken(self.up, rows).float(), _taken(self.down, rows).float()


class Row(NamedTuple):
    """One layer's place in a bundle, and its alpha / rank."""

    bundle: Bundle
    number: int
    scale: float


def bundled(adapters: Mapping[Layer, Adapter], place: Callable[[Tensor], Tensor]) -> dict[Layer, Row]:
    """Every plain LoRA has its factors in a bundle, which `place` brings where it is kept."""
    alike: dict[tuple[object, ...], list[tuple[Layer, Lora]]] = {}
    for layer, adapter in adapters.items():
        if isinstance(adapter, Lora) and adapter.mid is None and adapter.down_start is None:
            form = (adapter.up.shape, adapter.down.shape, adapter.up.dtype, adapter.down.dtype)
            alike.setdefault(form, []).append((layer, adapter))
    rows = {}
    for members in alike.values():
        up = place(torch.stack([lora.up.detach() for _, lora in members]))
        down = place(torch.stack([lora.down.detach() for _, lora in members]))
        bundle = Bundle(up.flatten(2), down.flatten(2))
        for number, (layer, lora) in enumerate(members):
            lora.up, lora.down = nn.Parameter(up[number]), nn.Parameter(down[number])
            rows[layer] = Row(bundle, number, lora.scale)
    return rows


def _taken(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    first, last = rows[0], rows[-1]
    if tuple(rows) == tuple(range(first, last + 1)):
        return tensor[first : last + 1]
    return torch.stack([tensor[row] for row in rows])
