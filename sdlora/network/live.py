"""Stacks that change while sampling: beside the weights, in one pair of factors a layer.

All low-rank adapters of a layer lie side by side in one A and one B with a multiplier per rank between
them, so that any number of adapters costs what one costs, and a new weight is one write for the whole model.
Other kinds take part by their delta. Regions multiply the narrow tensor by where it counts; a
cross-attention, whose keys and values have no place in the picture, is asked once more for each region.
Where regions overlap, what each of them changes there adds up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdlora.adapters.lora import Lora
from sdlora.contracts import Adapter, Family, Layer
from sdlora.layers import response
from sdlora.network.attach import module_of
from sdlora.network.merge import concat
from sdlora.network.stack import Applied, Entry, Patch, report

Part = tuple[int, Adapter, float]
"""An adapter of a layer: number of its entry among the changing ones, adapter, constant weight."""


class Mix:
    """A stack on a family, some entries of which change. `reports` say what became of each entry."""

    def __init__(self, reports: tuple[Applied, ...] = (), live: "Live | None" = None) -> None:
        self.reports = reports
        self._live = live

    def at(self, step: int, steps: int) -> None:
        """The weights are those of `step` of `steps`, counted from 0: call it before every step."""
        if self._live is not None:
            self._live.at(step, steps)


@contextmanager
def mixed(
    family: Family, entries: Sequence[Entry], *, latent_size: tuple[int, int], patch: Patch | None = None
) -> Iterator[Mix]:
    """Inside, the family carries every entry, as it is at step 0; after it, bit for bit as before.

    Constant entries, and all text encoders, are patched; what changes in the UNet runs beside it.
    `latent_size` is height and width of the latents, for regions. What a given `patch` wrote stays, so that
    the next stack writes only what differs; its owner restores it. Raises AdapterError as `stacked` does.
    """
    changing = [entry for entry in entries if not entry.change.constant]
    used = Patch(family) if patch is None else patch
    resolved = {entry: used.cache.resolve(entry.file) for entry in changing}
    live = Live(used, changing, [resolved[e].adapters for e in changing], latent_size) if changing else None
    handles: list[Any] = []  # Any: torch's handles, whose type is private
    try:
        patched = [entry.only_text() if entry in resolved else entry for entry in entries]
        reports = used.apply(patched)
        if live is not None:
            live.at(0, 1)
            handles = live.attach()
        yield Mix(tuple(report(e, a) for e, a in zip(entries, reports, strict=True)), live)
    finally:
        for handle in handles:
            handle.remove()
        if patch is None:
            used.restore()


class Live:
    """The changing entries of a stack on the layers of a UNet.

    `_scales` [K,R] holds a multiplier for every rank of every layer: row 0 all entries; with regions, row 1
    those for the whole picture and row 2 + j these and region j.
    """

    def __init__(
        self,
        patch: Patch,
        entries: Sequence[Entry],
        adapters: Sequence[Mapping[Layer, Adapter]],
        latent_size: tuple[int, int],
    ) -> None:
        self._family, self._entries = patch.family, entries
        self._regional = [number for number, entry in enumerate(entries) if entry.change.regional]
        self._areas = (
            _Areas([entry.change.area for entry in entries], latent_size) if self._regional else None
        )
        self._row = 0
        parts: dict[Layer, list[Part]] = {}
        for number, (entry, held) in enumerate(zip(entries, adapters, strict=True)):
            for layer, adapter in held.items():
                if layer.component == "unet" and (weight := entry.weight_at(layer)):
                    parts.setdefault(layer, []).append((number, adapter, weight))
        owners: list[int] = []
        self._slots: dict[Layer, _Slot] = {}
        for layer, found in parts.items():
            pristine, bias = patch.pristine(layer)
            module = module_of(patch.family, layer)
            slot = _Slot(module, found, weight=pristine, bias=bias, start=len(owners))
            owners += slot.owners
            self._slots[layer] = slot
        rows = 2 + len(self._regional) if self._regional else 1
        self._owners = torch.tensor(owners, dtype=torch.int64, device=patch.family.device)
        self._scales = torch.zeros(rows, len(owners), dtype=patch.family.dtype, device=patch.family.device)

    def at(self, step: int, steps: int) -> None:
        """Every multiplier is that of `step`; one write for the whole model."""
        multipliers = torch.tensor([entry.change.at(step, steps) for entry in self._entries])
        table = multipliers.repeat(len(self._scales), 1)
        if self._regional:
            table[1:, self._regional] = 0
            for row, number in enumerate(self._regional, start=2):
                table[row, number] = multipliers[number]
        table = table.to(self._scales.device, self._scales.dtype)
        self._scales.copy_(table.index_select(1, self._owners))

    def attach(self) -> list[Any]:  # Any: torch's handles, whose type is private
        """The layers answer with the changes added until the returned handles are removed."""
        handles: list[Any] = []  # Any: as above
        crossings: dict[str, nn.Module] = {}
        for layer, slot in self._slots.items():
            cross = ".attn2." in layer.path and bool(self._regional)
            handles.append(slot.module.register_forward_hook(self._adding(slot, cross=cross)))
            if cross:
                path = layer.path.split(".attn2.")[0] + ".attn2"
                crossings[path] = self._family.components["unet"].get_submodule(path)
        for module in crossings.values():
            handles.append(module.register_forward_hook(self._crossing, with_kwargs=True))
        return handles

    def _adding(self, slot: "_Slot", *, cross: bool) -> Callable[..., Tensor]:
        # views of the table, which follow what is written there
        parts = [slot.ranks_and_deltas(row) for row in self._scales]

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            row = max(self._row, 1) if cross else 0
            return slot.added(output, inputs[0], parts[row], None if cross else self._areas)

        return hook

    def _crossing(
        self,
        module: nn.Module,
        args: tuple[Any, ...],  # Any: whatever the attention is called with
        kwargs: dict[str, Any],  # Any: as above
        output: Tensor,
    ) -> Tensor:
        """The attention's output, in every region that of the attention with the region's adapter on."""
        assert self._areas is not None
        total = output
        for row, number in enumerate(self._regional, start=2):
            self._row = row
            try:
                other = module.forward(*args, **kwargs)
            finally:
                self._row = 0
            area = self._areas.of(output, number)
            total = total + area * (other - output)
        return total


class _Slot:
    """All changing adapters of one layer: factors side by side, then deltas. `owners` are entry numbers."""

    def __init__(
        self, module: nn.Module, parts: Sequence[Part], *, weight: Tensor, bias: Tensor | None, start: int
    ) -> None:
        self.module, self.start = module, start
        narrow = [(number, part, by) for number, part, by in parts if isinstance(part, Lora)]
        others = [(number, part, by) for number, part, by in parts if not isinstance(part, Lora)]
        self.ranks = [number for number, part, _ in narrow for _ in range(part.rank)]
        self.owners = self.ranks + [number for number, _, _ in others]
        if narrow:
            pair = concat([(part, by) for _, part, by in narrow])
            self.down = pair.down.detach().to(weight.device, weight.dtype)
            self.up = pair.up.detach().to(weight.device, weight.dtype)
        self.deltas = [
            (number, (by * part.delta(weight)).to(weight.dtype), _scaled(part.bias_delta(bias), by))
            for number, part, by in others
        ]

    def ranks_and_deltas(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """The multipliers of this layer's ranks and of its deltas, views of a row [R] of the table."""
        own = scales[self.start : self.start + len(self.owners)]
        return own[: len(self.ranks)], own[len(self.ranks) :]

    def added(
        self, output: Tensor, x: Tensor, scales: tuple[Tensor, Tensor], areas: "_Areas | None"
    ) -> Tensor:
        """The layer's output for x with all changes added; `scales` are the two of `ranks_and_deltas`."""
        if self.ranks:
            output = self._narrow(output, x, scales[0], areas)
        for (number, weight, bias), scale in zip(self.deltas, scales[1], strict=True):
            change = response(self.module, x, weight, bias) * scale.to(x.dtype)
            output = output + (change if areas is None else change * areas.of(change, number))
        return output

    def _narrow(self, output: Tensor, x: Tensor, scales: Tensor, areas: "_Areas | None") -> Tensor:
        down, up, scales = self.down.to(x.dtype), self.up.to(x.dtype), scales.to(x.dtype)
        if isinstance(self.module, nn.Conv2d):
            form = self.module
            hidden = F.conv2d(x, down, None, form.stride, form.padding, form.dilation)
            hidden = hidden * scales[:, None, None]
            return output + F.conv2d(
                hidden if areas is None else hidden * areas.of_ranks(hidden, self.ranks), up
            )
        hidden = F.linear(x, down) * scales
        if areas is not None:
            hidden = hidden * areas.of_ranks(hidden, self.ranks)
        # In place, as the end of the product: one kernel and one rounding less. No one else holds the output.
        output.view(-1, output.shape[-1]).addmm_(hidden.flatten(0, -2), up.T)
        return output


class _Areas:
    """The regions of all entries at every resolution of a UNet, made when first asked for."""

    def __init__(self, areas: Sequence[Callable[[int, int], Tensor]], latent_size: tuple[int, int]) -> None:
        self._areas = areas
        height, width = latent_size
        # Each level halves the sides, rounding up as a strided convolution does.
        sides = [(-(-height // 2**level), -(-width // 2**level)) for level in range(6)]
        self._by_tokens = {h * w: (h, w) for h, w in reversed(sides)}
        self._made: dict[tuple[object, ...], Tensor] = {}

    def of(self, output: Tensor, number: int) -> Tensor:
        """The region of one entry, shaped to multiply an output [B,N,O], [B,O,h,w] or [B,O]."""
        key = (*output.shape[1:], number, output.dtype)
        if key not in self._made:
            self._made[key] = self._shaped(output, [number]).to(output)
        return self._made[key]

    def of_ranks(self, hidden: Tensor, ranks: Sequence[int]) -> Tensor:
        """The region of every rank's entry, shaped to multiply [B,N,R], [B,R,h,w] or [B,R]."""
        key = (*hidden.shape[1:], tuple(ranks), hidden.dtype)
        if key not in self._made:
            self._made[key] = self._shaped(hidden, ranks).to(hidden)
        return self._made[key]

    def _shaped(self, like: Tensor, numbers: Sequence[int]) -> Tensor:
        if like.ndim == 4:
            return torch.stack([self._areas[number](*like.shape[2:]) for number in numbers])
        sides = self._by_tokens.get(like.shape[1]) if like.ndim == 3 else None
        if sides is None:  # no places, as in the embedding of the time: the region counts by its size
            return torch.stack([self._areas[number](64, 64).mean() for number in numbers])
        return torch.stack([self._areas[number](*sides).flatten() for number in numbers], dim=-1)


def _scaled(tensor: Tensor | None, by: float) -> Tensor | None:
    return None if tensor is None else tensor * by
