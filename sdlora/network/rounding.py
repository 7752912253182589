"""What is lost when an adapter that was trained on weights in fewer bits meets the full ones.

It has learned to make up for their rounding as well, which is too much on the full weights; this tells how
much that rounding is, beside the change that the adapter makes.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sdlora.base.stored import PACKINGS, SMALLEST
from sdlora.contracts import Adapter, Family, Layer
from sdlora.network.attach import module_of
from sdlora.network.codec import AdapterFile
from sdlora.network.stack import Entry

_ENOUGH = 64  # layers, spread over the model, from which the norms are told

STORAGE = "sdlora.base_storage"


def told(family: Family, entries: Sequence[Entry]) -> Iterator[str]:
    """A sentence for each entry that was trained on packed weights. Raises AdapterError as `resolve` does."""
    for entry in entries:
        file = AdapterFile.open(entry.file)
        storage = file.metadata.get(STORAGE, "full")
        if storage in PACKINGS and storage != "full":
            off, change = norms(family, file.resolve(family).adapters, storage)
            yield (
                f"{entry.file.name} was trained on weights in {storage}. The full ones are {off:.1%} away "
                f"from what it has seen; its own change is {change:.1%} of them."
            )


@torch.no_grad()
def norms(family: Family, adapters: Mapping[Layer, Adapter], storage: str) -> tuple[float, float]:
    """Norms of what packing takes from the weights, and of the adapters' change, as parts of the weights'."""
    squares = torch.zeros(3, dtype=torch.float64)
    for layer in list(adapters)[:: len(adapters) // _ENOUGH + 1]:
        weight = module_of(family, layer).get_parameter("weight").detach()
        rounded = _there_and_back(weight, storage)
        parts = (weight - rounded, adapters[layer].delta(rounded), weight)
        squares += torch.stack([part.double().square().sum().cpu() for part in parts])
    off, change, whole = squares.sqrt().tolist()
    return off / (whole or 1.0), change / (whole or 1.0)


def _there_and_back(weight: Tensor, storage: str) -> Tensor:
    if weight.ndim < 2 or weight.numel() < SMALLEST:
        return weight
    packing = PACKINGS[storage]
    return packing.unpack(packing.pack(weight), weight.shape, weight.dtype)
