"""Stacks of adapters as patched weights: exact for every kind, and no cost while sampling.

The pristine weights are kept beside the patched ones and copied back; nothing is ever subtracted.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdlora.contracts import Adapter, Family, Layer
from sdlora.errors import AdapterError
from sdlora.layers import bias_of
from sdlora.network.attach import module_of
from sdlora.network.blocks import factor
from sdlora.network.bundle import Bundle, Row
from sdlora.network.cache import AdapterCache
from sdlora.network.change import Change
from sdlora.network.embeddings import Embedding

ROOM = 4 << 30  # bytes of a device that drawing may need, and that copies of weights leave free
_AT_ONCE = 1 << 25  # values of weights that are added to at once; four bytes each, beside the model


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
    """What became of an entry: layers changed by component, words it teaches, keys used and not used."""

    entry: Entry
    layers: Mapping[str, int]
    embeddings: Mapping[str, Embedding]
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


class Target(NamedTuple):
    """A parameter: its layer, and `weight` or `bias`."""

    layer: Layer
    name: str


class _Part(NamedTuple):
    """What is added to a write's parameters, `by` times: rows of a bundle, or an adapter's delta."""

    source: Bundle | Adapter
    rows: tuple[int, ...]
    by: float


class _Write(NamedTuple):
    """Parameters alike that are written at once, and all that they take. Equal writes give equal bits."""

    targets: tuple[Target, ...]
    parts: tuple[_Part, ...]


class Patch:
    """A family whose weights carry a stack that may be changed: only what differs is written.

    Layers alike are written at once, in the same company whatever the weights carried before, so that equal
    stacks are equal bits. `reports` say what became of each entry of the last stack.
    """

    def __init__(self, family: Family, *, cache: AdapterCache | None = None) -> None:
        self.family = family
        self.cache = AdapterCache(family) if cache is None else cache
        self.reports: tuple[Applied, ...] = ()
        self._modules: dict[Layer, nn.Module] = {}
        self._pristine: dict[Target, Tensor] = {}
        self._carried: set[_Write] = set()

    def apply(self, entries: Sequence[Entry]) -> tuple[Applied, ...]:
        """The weights are the pristine ones plus every entry's delta, whatever they carried before.

        Raises AdapterError before any weight is touched.
        """
        reports: list[Applied] = []
        wanted: dict[Target, list[tuple[Row | Adapter, float]]] = {}
        for entry in entries:
            kept = self.cache.resolve(entry.file)
            for layer, adapter in kept.adapters.items():
                if weight := entry.weight_at(layer):
                    part = kept.rows.get(layer, adapter), weight
                    wanted.setdefault(Target(layer, "weight"), []).append(part)
                    if adapter.bias_delta(bias_of(self._module(layer))) is not None:
                        wanted.setdefault(Target(layer, "bias"), []).append((adapter, weight))
            layers = _counted(kept.adapters)
            reports.append(Applied(entry, layers, kept.embeddings, kept.matched, kept.unmatched))
        planned = list(self._planned(wanted))
        self._carried.intersection_update(planned)
        self._put_back([target for target in self._pristine if target not in wanted])
        on_device: dict[Bundle, Bundle] = {}
        for write in planned:
            if write not in self._carried:
                self._carry(write, on_device)
                self._carried.add(write)  # only now: memory may run out halfway
        self.reports = tuple(reports)
        return self.reports

    def pristine(self, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer as they are without any stack."""
        module = self._module(layer)
        weight, bias = module.get_parameter("weight").detach(), bias_of(module)
        held = self._pristine.get(Target(layer, "weight"), weight).to(weight.device)
        return held, None if bias is None else self._pristine.get(Target(layer, "bias"), bias).to(bias.device)

    def restore(self) -> None:
        """Every weight is, bit for bit, what it was before the first stack."""
        self._carried.clear()
        self._put_back(list(self._pristine))

    def _planned(self, wanted: Mapping[Target, Sequence[tuple[Row | Adapter, float]]]) -> Iterator[_Write]:
        """The writes of a stack. Parameters go together that take the same from the same bundles."""
        alike: dict[object, list[Target]] = {}
        for target, parts in wanted.items():
            form: list[object] = [target.layer.component, self._parameter(target).shape]
            for source, weight in parts:
                form += [source.bundle, source.scale * weight] if isinstance(source, Row) else [target]
            alike.setdefault(tuple(form), []).append(target)
        for targets in alike.values():
            most = max(1, _AT_ONCE // self._parameter(targets[0]).numel())
            for first in range(0, len(targets), most):
                some = targets[first : first + most]
                columns = zip(*(wanted[target] for target in some), strict=True)
                yield _Write(tuple(some), tuple(map(_part, columns)))

    @torch.no_grad()
    def _carry(self, write: _Write, on_device: dict[Bundle, Bundle]) -> None:
        """The write's parameters are pristine plus all parts, added in fp32 and rounded once."""
        parameters: list[Tensor] = [self._parameter(target) for target in write.targets]
        for target, parameter in zip(write.targets, parameters, strict=True):
            if target not in self._pristine:
                self._pristine[target] = _copy(parameter)
        pristine = [self._pristine[target].to(parameters[0].device) for target in write.targets]
        total = torch.stack(pristine).to(torch.float32, memory_format=torch.contiguous_format)
        for source, rows, by in write.parts:
            if isinstance(source, Bundle):
                if source not in on_device:
                    on_device[source] = source.to(total.device)
                total.flatten(2).baddbmm_(*on_device[source].factors(rows), alpha=by)
            else:
                # Every delta is that of the pristine weight, so that the order of a stack does not matter.
                change = (
                    source.delta(pristine[0])
                    if write.targets[0].name == "weight"
                    else source.bias_delta(pristine[0])
                )
                assert change is not None
                total[0].add_(change.to(total), alpha=by)
        torch._foreach_copy_(parameters, total.unbind())

    @torch.no_grad()
    def _put_back(self, targets: Sequence[Target]) -> None:
        if targets:
            pristine = [self._pristine[target] for target in targets]
            torch._foreach_copy_([self._parameter(target) for target in targets], pristine)
        for target in targets:
            del self._pristine[target]

    def _parameter(self, target: Target) -> nn.Parameter:
        # The module is remembered, the parameter is not: a network that moves gets new ones.
        parameter = getattr(self._module(target.layer), target.name)
        assert isinstance(parameter, nn.Parameter)  # not made anew at each look, as packed weights are
        return parameter

    def _module(self, layer: Layer) -> nn.Module:
        if layer not in self._modules:
            self._modules[layer] = module_of(self.family, layer)
        return self._modules[layer]


def _copy(parameter: Tensor) -> Tensor:
    """A copy of a parameter, in main memory where its device has no room to spare."""
    if parameter.is_cuda and torch.cuda.mem_get_info(parameter.device)[0] < ROOM:
        return parameter.detach().cpu()
    return parameter.detach().clone()


def _part(column: Sequence[tuple[Row | Adapter, float]]) -> _Part:
    """The part that every target of a write takes: of its own row, if rows they are."""
    source, weight = column[0]
    if not isinstance(source, Row):
        return _Part(source, (), weight)
    rows = tuple(row.number for row, _ in column if isinstance(row, Row))
    return _Part(source.bundle, rows, source.scale * weight)


def report(entry: Entry, applied: Applied) -> Applied:
    """The same, told of `entry`."""
    return replace(applied, entry=entry)


def _counted(layers: Mapping[Layer, Adapter]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.component] = counts.get(layer.component, 0) + 1
    return counts
