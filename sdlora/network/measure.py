"""How adapters get along: the angle between their deltas, and what their leading directions share.

Of LoRA everything follows from the factors alone, in milliseconds a layer and without a base; how other kinds
get along is told from their deltas on their base. Symbols as in LoRA (Hu et al. 2021), sec. 7.2.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from sdlora.adapters.lora import Lora
from sdlora.contracts import Adapter, Family, Layer
from sdlora.layers import bias_of
from sdlora.network.attach import module_of
from sdlora.network.blocks import block_of
from sdlora.network.codec import AdapterFile
from sdlora.network.loose import loras, require_one_base
from sdlora.network.spectrum import of_matrix, whole_down
from sdlora.network.stack import Entry, check_constant


@dataclass(frozen=True)
class Conflict:
    """How two weighted adapters get along where both act.

    `cosine` in [-1,1] of their deltas; `energy`: squared norm of the sum over the sum of the squared norms
    (1: they do not meet, 2: they are the same, 0: they cancel); `overlap` in [0,1]: what their leading
    directions share, averaged by layer; `blocks`: the cosine by block.
    """

    cosine: float
    energy: float
    overlap: float
    blocks: Mapping[str, float]


def similarity(first: Lora | Tensor, second: Lora | Tensor, *, largest: int = 64) -> Tensor:
    """phi(A1, A2, i, j) in [0,1] for i, j from 1 to at most `largest`: entry [i-1, j-1].

    The part of the subspace of the first i directions that A1 reads which lies in that of the first j of A2,
    as ||U1_i.T U2_j||^2 / min(i, j); LoRA, eq. 4.
    """
    left, right = (_directions(change, largest) for change in (first, second))
    width = min(len(left), len(right))
    squares = (left[:width].T @ right[:width]).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, size + 1) for size in squares.shape)
    return squares / torch.minimum(i[:, None], j)


def similarities(
    first: Path, second: Path, *, largest: int = 64, family: Family | None = None
) -> dict[Layer, Tensor]:
    """`similarity` of every layer that both files hold."""
    return {
        layer: similarity(*pair, largest=largest)
        for layer, pair in _shared(first, second, family)
        if all(map(wide, pair))
    }


def conflict(first: Entry, second: Entry, *, leading: int = 8, family: Family | None = None) -> Conflict:
    """How two constant entries of a stack get along.

    Kinds other than LoRA need the base, `family`. Raises AdapterError when it is missing.
    """
    check_constant((first, second))
    crossed: dict[str, float] = {}
    own: dict[str, tuple[float, float]] = {}
    overlaps = []
    for layer, (a, b) in _shared(first.file, second.file, family):
        block = block_of(layer) or "other"
        by = first.weight_at(layer), second.weight_at(layer)
        crossed[block] = crossed.get(block, 0.0) + by[0] * by[1] * inner(a, b)
        before = own.get(block, (0.0, 0.0))
        own[block] = before[0] + by[0] ** 2 * inner(a, a), before[1] + by[1] ** 2 * inner(b, b)
        if wide(a) and wide(b):
            overlaps.append(float(similarity(a, b, largest=leading)[-1, -1]))
    energies = sum(e[0] for e in own.values()), sum(e[1] for e in own.values())
    total = sum(crossed.values())
    return Conflict(
        cosine=_cosine(total, energies),
        energy=1 + 2 * total / sum(energies) if sum(energies) else 1.0,
        overlap=sum(overlaps) / len(overlaps) if overlaps else 0.0,
        blocks={block: _cosine(crossed[block], own[block]) for block in sorted(crossed)},
    )


def balanced(entries: Sequence[Entry], *, family: Family | None = None) -> tuple[Entry, ...]:
    """The same stack, scaled so that all deltas together are no stronger than the strongest alone.

    A stack that is no stronger stays as it is. Kinds other than LoRA need the base, `family`. Raises
    AdapterError when it is missing.
    """
    held = [adapters_of(AdapterFile.open(entry.file), family) for entry in entries]
    gram = torch.zeros(len(entries), len(entries), dtype=torch.float64)
    for layer in dict.fromkeys(layer for one in held for layer in one):
        found = {i: change_of(one[layer], layer, family) for i, one in enumerate(held) if layer in one}
        for i, j in itertools.product(found, found):
            by = entries[i].weight_at(layer) * entries[j].weight_at(layer)
            gram[i, j] += by * inner(found[i], found[j])
    together, strongest = float(gram.sum()), float(gram.diagonal().max()) if entries else 0.0
    if together <= strongest:
        return tuple(entries)
    scale = sqrt(strongest / together)
    return tuple(
        replace(
            entry,
            weight=entry.weight * scale,
            text_weight=None if entry.text_weight is None else entry.text_weight * scale,
        )
        for entry in entries
    )


def inner(first: Lora | Tensor, second: Lora | Tensor) -> float:
    """The sum of the products of two changes' values; of two LoRAs from r x r matrices alone."""
    if isinstance(first, Lora) and isinstance(second, Lora):
        ups = [lora.up.detach().float().flatten(1) * lora.scale for lora in (first, second)]
        downs = [whole_down(lora).flatten(1) for lora in (first, second)]
        return float(((ups[0].T @ ups[1]) * (downs[0] @ downs[1].T)).double().sum())
    matrices = [
        x if isinstance(x, Tensor) else x.up.detach().float().flatten(1) * x.scale @ whole_down(x).flatten(1)
        for x in (first, second)
    ]
    width = min(matrix.shape[1] for matrix in matrices)
    return float((matrices[0][:, :width] * matrices[1][:, :width]).sum(dtype=torch.float64))


def adapters_of(file: AdapterFile, family: Family | None) -> Mapping[Layer, Adapter]:
    """The file's adapters by layer. Raises AdapterError for other kinds than LoRA without their `family`."""
    return loras(file) if family is None else file.resolve(family).adapters


def change_of(adapter: Adapter, layer: Layer, family: Family | None) -> Lora | Tensor:
    """LoRA as it is; of other kinds the change of the weight as [O,I], of the bias as one more column."""
    if family is None or isinstance(adapter, Lora):
        assert isinstance(adapter, Lora)
        return adapter
    module = module_of(family, layer)
    weight, bias = module.get_parameter("weight").detach(), bias_of(module)
    change = adapter.delta(weight).detach().float().reshape(len(weight), -1)
    column = adapter.bias_delta(bias)
    return change if column is None else torch.cat([change, column.detach().float()[:, None]], dim=1)


def wide(change: Lora | Tensor) -> bool:
    """Whether the change has directions: that of a normalisation or of a bias alone is one itself."""
    return isinstance(change, Lora) or (change.shape[1] > 2 and bool(change[:, :-1].any()))


def _shared(
    first: Path, second: Path, family: Family | None
) -> Iterator[tuple[Layer, tuple[Lora | Tensor, Lora | Tensor]]]:
    """The layers that both files change, one at a time in memory.

    Raises AdapterError when they are for different bases.
    """
    one, two = (AdapterFile.open(path) for path in (first, second))
    left, right = adapters_of(one, family), adapters_of(two, family)
    shared = [layer for layer in left if layer in right]
    for layer in shared:
        a, b = left[layer], right[layer]
        if isinstance(a, Lora) and isinstance(b, Lora):
            require_one_base(layer, (one, a), (two, b))
    for layer in shared:
        yield layer, (change_of(left[layer], layer, family), change_of(right[layer], layer, family))


def _directions(change: Lora | Tensor, largest: int) -> Tensor:
    """Right singular vectors [I,k], strongest first: of A [r,I], or of a whole change."""
    if isinstance(change, Tensor):
        return of_matrix(change, largest).v
    basis, small = torch.linalg.qr(whole_down(change).flatten(1).T)
    vectors: Tensor = basis @ torch.linalg.svd(small, full_matrices=False).U[:, :largest]
    return vectors


def _cosine(crossed: float, energies: tuple[float, float]) -> float:
    product = sqrt(max(energies[0], 0.0) * max(energies[1], 0.0))
    return max(-1.0, min(1.0, crossed / product)) if product else 0.0
