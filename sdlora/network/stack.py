"""Stacks of adapters as patched weights: exact for every kind, and no cost while sampling.

The pristine weights are kept beside the patched ones and copied back; nothing is ever subtracted.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sdlora.contracts import Adapter, Family, Layer
from sdlora.errors import AdapterError
from sdlora.network.attach import module_of
from sdlora.network.blocks import factor
from sdlora.network.cache import AdapterCache
from sdlora.network.change import Change


@dataclass(frozen=True)
class Entry:
    """An adapter of a stack: its file, its weight, and another for text encoders (None: the same).

    `change` says how the weight varies over steps, blocks and the picture.
    """

    file: Path
    weight: float = 1.0
    text_weight: float | None = None
    change: Change = Change()

    def weight_of(self, component: str) -> float:
        """The multiplier of its deltas in `component`."""
        return self.weight if component == "unet" or self.text_weight is None else self.text_weight

    def weight_at(self, layer: Layer) -> float:
        """The multiplier of its delta of one layer."""
        return self.weight_of(layer.component) * factor(self.change.blocks, layer)

    def only_text(self) -> "Entry":
        """The same for the text encoders, nothing in the UNet."""
        change = Change(blocks=self.change.blocks)
        return Entry(self.file, 0.0, self.weight_of("text_encoder"), change)


@dataclass(frozen=True)
class Applied:
    """What became of an entry: layers changed by component, keys of its file used and not used."""

    entry: Entry
    layers: Mapping[str, int]
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]


@contextmanager
def stacked(family: Family, entries: Sequence[Entry]) -> Iterator[tuple[Applied, ...]]:
    """Inside, the family's weights are its own plus every entry's delta; after it, bit for bit as before.

    Raises AdapterError when a file is unsound, for another family, or changes nothing, and for an entry that
    changes while sampling, which `live.mixed` carries.
    """
    check_constant(entries)
    patch = Patch(family)
    try:
        yield patch.apply(entries)
    finally:
        patch.restore()


def check_constant(entries: Sequence[Entry]) -> None:
    """Raises AdapterError for an entry that changes while sampling, which no fixed weights can carry."""
    for entry in entries:
        if not entry.change.constant:
            raise AdapterError(
                f"{entry.file.name} changes while sampling, and fixed weights cannot carry that.",
                "Leave out its curve, turn, box and mask here.",
            )


class Patch:
    """A family whose weights carry a stack that may be changed: only layers that differ are written."""

    def __init__(self, family: Family, *, cache: AdapterCache | None = None) -> None:
        self._family = family
        self.cache = AdapterCache(family) if cache is None else cache
        self._pristine: dict[Layer, dict[str, Tensor]] = {}
        self._carried: dict[Layer, tuple[tuple[Adapter, float], ...]] = {}

    def apply(self, entries: Sequence[Entry]) -> tuple[Applied, ...]:
        """The weights are the pristine ones plus every entry's delta, whatever they carried before.

        Raises AdapterError before any weight is touched.
        """
        reports: list[Applied] = []
        wanted: dict[Layer, list[tuple[Adapter, float]]] = {}
        for entry in entries:
            resolved = self.cache.resolve(entry.file)
            for layer, adapter in resolved.adapters.items():
                if weight := entry.weight_at(layer):
                    wanted.setdefault(layer, []).append((adapter, weight))
            reports.append(Applied(entry, _counted(resolved.adapters), resolved.matched, resolved.unmatched))
        for layer in [layer for layer in self._pristine if layer not in wanted]:
            self._put_back(layer)
        for layer, parts in wanted.items():
            if self._carried.get(layer) != tuple(parts):
                self._carry(layer, tuple(parts))
        return tuple(reports)

    def restore(self) -> None:
        """Every weight is, bit for bit, what it was before the first stack."""
        for layer in list(self._pristine):
            self._put_back(layer)

    @torch.no_grad()
    def _carry(self, layer: Layer, parts: tuple[tuple[Adapter, float], ...]) -> None:
        parameters = dict(module_of(self._family, layer).named_parameters(recurse=False))
        if layer not in self._pristine:
            self._pristine[layer] = {n: p.detach().clone() for n, p in parameters.items()}
        pristine = self._pristine[layer]
        self._carried.pop(layer, None)  # until all is written: memory may run out halfway
        for name, parameter in parameters.items():
            total = pristine[name].to(torch.float32, copy=True)
            for adapter, multiplier in parts:
                # Every delta is that of the pristine weight, so that the order of a stack does not matter.
                change = adapter.delta(pristine[name]) if name == "weight" else adapter.bias_delta()
                if change is not None:
                    total.add_(change.to(total), alpha=multiplier)
            parameter.copy_(total)
        self._carried[layer] = parts

    @torch.no_grad()
    def _put_back(self, layer: Layer) -> None:
        parameters = dict(module_of(self._family, layer).named_parameters(recurse=False))
        for name, pristine in self._pristine.pop(layer).items():
            parameters[name].copy_(pristine)
        self._carried.pop(layer, None)


def report(entry: Entry, applied: Applied) -> Applied:
    """The same, told of `entry`."""
    return replace(applied, entry=entry)


def _counted(layers: Mapping[Layer, Adapter]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.component] = counts.get(layer.component, 0) + 1
    return counts
