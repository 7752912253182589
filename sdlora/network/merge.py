"""Several adapters as one file.

Deltas are what is added, never factors: (B1 + B2)(A1 + A2) would hold cross terms that no stack has.

    concat  sets the factors side by side: the stack itself, exactly; the ranks add up
    svd     the closest adapter of a given rank
    ties    trims each delta to its largest values, and lets the majority decide on signs (Yadav et al. 2023)
    dare    drops values of each delta at random and scales up the rest (Yu et al. 2024)
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sdlora.adapters.lora import Lora
from sdlora.contracts import Adapter, Family, Layer
from sdlora.errors import AdapterError, ConfigError
from sdlora.layers import bias_of
from sdlora.network.attach import module_of
from sdlora.network.codec import AdapterFile, Format, save
from sdlora.network.info import short_hash, triggers
from sdlora.network.loose import loras, require_one_base, shape_of
from sdlora.network.spectrum import of_matrix, of_product, whole_down
from sdlora.network.stack import Entry, check_constant
from sdlora.runtime import one_thread

Method = Literal["concat", "svd", "ties", "dare"]
METHODS: tuple[Method, ...] = ("concat", "svd", "ties", "dare")
OnLayer = Callable[[int, int], None]
"""Called before each layer with the layers done and all layers; if it raises, no file is made."""


@dataclass(frozen=True)
class Written:
    """An adapter file that was made: its layers, lowest and highest rank, and the part of the energy (squared
    norm) of the deltas that it keeps, in [0,1].
    """

    path: Path
    layers: int
    ranks: tuple[int, int]
    kept: float


@dataclass(frozen=True)
class Part:
    """An adapter of a layer with its weight in the stack, and the base's weight (or its shape alone)."""

    adapter: Adapter
    by: float
    base: Tensor

    def delta(self) -> Tensor:
        """The weighted change of the base's weight, as a matrix [O,I]."""
        return self.by * self.adapter.delta(self.base).detach().float().flatten(1)


def merge(
    entries: Sequence[Entry],
    *,
    output: Path,
    method: Method = "concat",
    rank: int = 0,
    density: float = 0.5,
    dtype: str = "fp16",
    format: Format = "kohya",
    family: Family | None = None,
    on_layer: OnLayer = lambda done, layers: None,
) -> Written:
    """`output` is one LoRA file that does what the stack of `entries` does.

    `rank` 0 is the largest rank of a layer's parts; `density` is the part of values that ties and dare keep.
    Kinds other than LoRA need their `family`. Raises AdapterError when files are for different families,
    or an entry changes while sampling.
    """
    check_constant(entries)
    check_range("rank", rank, low=0)
    check_range("density", density, low=0, high=1)
    files = [source(entry.file, output) for entry in entries]
    family_name = _common_family(files, family)
    parts: dict[Layer, list[Part]] = {}
    merged: dict[Layer, Lora] = {}
    whose: dict[Layer, tuple[AdapterFile, Lora]] = {}  # the first file that changes a layer
    kept = energy = 0.0
    narrow = family is None and method in ("concat", "svd")
    with one_thread() if narrow else nullcontext():
        for entry, file in zip(entries, files, strict=True):
            for layer, adapter in _adapters(file, family).items():
                base = _base(layer, adapter, family)
                if isinstance(adapter, Lora):
                    require_one_base(layer, whose.setdefault(layer, (file, adapter)), (file, adapter))
                parts.setdefault(layer, []).append(Part(adapter, entry.weight_at(layer), base))
        for number, (layer, found) in enumerate(parts.items()):
            on_layer(number, len(parts))
            merged[layer], part_kept, part = _merged(found, method, rank=rank, density=density, seed=number)
            kept, energy = kept + part_kept, energy + part
    texts = _parents(entries, files)
    save(output, merged, family_name=family_name, metadata=texts, dtype=dtype, format=format)
    ranks = [lora.rank for lora in merged.values()]
    return Written(output, len(merged), (min(ranks), max(ranks)), kept / energy if energy else 1.0)


def concat(parts: Sequence[tuple[Lora, float]]) -> Lora:
    """One adapter whose delta is the weighted sum of all; its rank is the sum of the ranks."""
    down = torch.cat([whole_down(lora) for lora, _ in parts])
    up = torch.cat([lora.up.detach().float() * (lora.scale * by) for lora, by in parts], dim=1)
    return Lora(down, up, alpha=float(down.shape[0]))


def ties(deltas: Sequence[Tensor], density: float) -> Tensor:
    """The mean of the values that are among their delta's largest and have the majority's sign."""
    kept = torch.stack([_largest(delta, density) for delta in deltas])
    sign = kept.sum(dim=0).sign()
    agreeing = torch.where(kept.sign() == sign, kept, 0)
    return agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)


def dare(deltas: Sequence[Tensor], density: float, *, seed: int) -> Tensor:
    """The sum of the deltas, of which the part `density` is kept at random and scaled up by 1 / density."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        mask = torch.rand(delta.shape, generator=generator) < density
        total = total + torch.where(mask.to(delta.device), delta / density, 0)
    return total


def check_range(name: str, value: float, *, low: float, high: float = math.inf) -> None:
    """Raises ConfigError, which names the value, unless it is from `low` to `high`."""
    if not low <= value <= high:
        allowed = f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g}"
        raise ConfigError(f"{name} = {value:g} is out of range.", f"Allowed: {allowed}.")


def source(path: Path, output: Path) -> AdapterFile:
    """The file that `output` is made from. Raises AdapterError unless all that it holds goes into another."""
    if output.resolve() == path.resolve():
        raise AdapterError(f"{path} would be overwritten by what is made of it.", "Choose another name.")
    file = AdapterFile.open(path)
    for word in file.embeddings:
        raise AdapterError(
            f'{path} teaches the word "{word}", for which the new file would have no place.',
            "Use it as it is, in a stack.",
        )
    return file


def _merged(
    parts: Sequence[Part], method: Method, *, rank: int, density: float, seed: int
) -> tuple[Lora, float, float]:
    """The merged adapter of a layer, its energy, and the energy of what it stands for."""
    plain = [(part.adapter, part.by) for part in parts if isinstance(part.adapter, Lora)]
    low_rank = len(plain) == len(parts)
    if method == "concat":
        if not low_rank:
            raise AdapterError("Only LoRA can be set side by side.", "Choose the method svd and a rank.")
        return concat(plain), 0.0, 0.0
    rank = rank or max((lora.rank for lora, _ in plain), default=16)
    if method == "svd" and low_rank:
        pair = concat(plain)
        spectrum = of_product(pair.up.detach().flatten(1), pair.down.detach().flatten(1))
    else:
        deltas = [part.delta() for part in parts]
        whole = {"ties": lambda: ties(deltas, density), "dare": lambda: dare(deltas, density, seed=seed)}
        spectrum = of_matrix(whole[method]() if method in whole else torch.stack(deltas).sum(dim=0), rank)
    return spectrum.lora(rank, parts[0].base.shape), spectrum.kept(rank), spectrum.energy


def _largest(delta: Tensor, density: float) -> Tensor:
    count = max(1, int(density * delta.numel()))
    places = delta.abs().flatten().topk(count).indices
    return torch.zeros_like(delta).flatten().scatter(0, places, delta.flatten()[places]).reshape(delta.shape)


def _adapters(file: AdapterFile, family: Family | None) -> Mapping[Layer, Adapter]:
    if family is None:
        return loras(file)
    resolved = file.resolve(family)
    if resolved.unmatched:
        raise AdapterError(f"{file.path} holds {resolved.unmatched[0][:100]}, which is not in the base.")
    return resolved.adapters


def _base(layer: Layer, adapter: Adapter, family: Family | None) -> Tensor:
    bias: Tensor | None = None
    if family is not None:
        module = module_of(family, layer)
        weight, bias = module.get_parameter("weight").detach(), bias_of(module)
    else:
        assert isinstance(adapter, Lora)
        # a shape without memory behind it
        weight = torch.zeros(1).expand(shape_of(adapter))
    if weight.ndim < 2 or adapter.bias_delta(bias) is not None:
        raise AdapterError(
            f"{layer.path} changes a bias or a normalisation, for which LoRA has no place.",
            "Bake the stack into its base instead.",
        )
    return weight


def _common_family(files: Sequence[AdapterFile], family: Family | None) -> str:
    if not files:
        raise AdapterError("Nothing to merge.", "Name at least one adapter.")
    first = files[0]
    for file in files[1:]:
        if file.detected.family != first.detected.family:
            raise AdapterError(
                f"{first.path} was made for {first.detected.title}, {file.path} for {file.detected.title}.",
                "Only adapters of one base family can be merged.",
            )
    return family.name if family is not None else first.detected.family


def _parents(entries: Sequence[Entry], files: Sequence[AdapterFile]) -> dict[str, str]:
    parents = [
        {
            "name": entry.file.stem,
            "hash": short_hash(file),
            "weight": entry.weight,
            "text_weight": entry.weight_of("text_encoder"),
        }
        for entry, file in zip(entries, files, strict=True)
    ]
    used = [file for told, file in zip(parents, files, strict=True) if told["weight"] or told["text_weight"]]
    called = dict.fromkeys(word for file in used for word in triggers(file))
    return {"sdlora.parents": json.dumps(parents), "modelspec.trigger_phrase": ", ".join(called)}
