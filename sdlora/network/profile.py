"""One adapter measured: where it acts, and how many directions it needs.

Of LoRA both follow from the factors alone, without a base; of other kinds from their deltas on their base.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from sdlora.adapters.lora import Lora
from sdlora.contracts import Family, Layer
from sdlora.network.blocks import block_of
from sdlora.network.codec import AdapterFile
from sdlora.network.measure import adapters_of, change_of, inner, wide
from sdlora.network.merge import OnLayer
from sdlora.network.spectrum import of_lora, of_matrix

LARGEST = 32  # singular values of a layer that is no LoRA: all of them would take hours


@dataclass(frozen=True)
class Profile:
    """`norms` is the Frobenius norm of the deltas by block: BASE (text encoders), IN00 ..., MID, OUT00 ...

    `spectra` are the singular values by layer, falling, of kinds other than LoRA the first LARGEST;
    normalisations and biases, which are one direction each, are not among them. `energies` are the squared
    norms of the same layers.
    """

    norms: Mapping[str, float]
    spectra: Mapping[Layer, Tensor]
    energies: Mapping[Layer, float]

    @property
    def mean(self) -> list[float]:
        """The mean spectrum of all layers, [] where there are none."""
        longest = max(map(len, self.spectra.values()), default=0)
        padded = [pad(s, (0, longest - len(s))) for s in self.spectra.values()]
        values: list[float] = torch.stack(padded).mean(dim=0).tolist() if padded else []
        return values

    def needed(self, part: float) -> int | None:
        """So many directions hold the part `part` of the energy of half of the layers.

        None where more are needed than were measured.
        """
        counts = sorted(
            int((s.double().square().cumsum(0) < part * self.energies[layer]).sum()) + 1
            for layer, s in self.spectra.items()
        )
        middle = counts[len(counts) // 2]
        return middle if middle <= len(self.mean) else None

    @property
    def held(self) -> float:
        """The part of all energy that the measured directions hold, in [0,1]."""
        total = sum(self.energies.values())
        return sum(float(s.double().square().sum()) for s in self.spectra.values()) / total if total else 1.0


def profile(
    path: Path, *, family: Family | None = None, on_layer: OnLayer = lambda done, layers: None
) -> Profile:
    """What the file does to each block and layer.

    Raises AdapterError for other kinds than LoRA without their `family`.
    """
    squares: dict[str, float] = {}
    spectra: dict[Layer, Tensor] = {}
    energies: dict[Layer, float] = {}
    adapters = adapters_of(AdapterFile.open(path), family)
    for number, (layer, adapter) in enumerate(adapters.items()):
        on_layer(number, len(adapters))
        change = change_of(adapter, layer, family)
        block, energy = block_of(layer) or "other", max(inner(change, change), 0.0)
        squares[block] = squares.get(block, 0.0) + energy
        if wide(change):
            spectra[layer] = of_lora(change).s if isinstance(change, Lora) else of_matrix(change, LARGEST).s
            energies[layer] = energy
    order = sorted(squares, key=lambda block: (_ORDER.get(block.rstrip("0123456789"), 4), block))
    return Profile({block: sqrt(squares[block]) for block in order}, spectra, energies)


_ORDER = {"BASE": 0, "IN": 1, "MID": 2, "OUT": 3}
