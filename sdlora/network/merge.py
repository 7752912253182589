"""Several adapters as one file.

Deltas are what is added, never factors: (B1 + B2)(A1 + A2) would hold cross terms that no stack has.
`concat` sets the factors side by side, B = [w1 s1 B1, w2 s2 B2, ...] and A = [A1, A2, ...], which is the
stack itself; its rank is the sum of the ranks.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sdlora.adapters.lora import Lora
from sdlora.contracts import Layer
from sdlora.errors import AdapterError
from sdlora.network.codec import AdapterFile, save
from sdlora.network.info import short_hash
from sdlora.network.stack import Entry


def merge(entries: Sequence[Entry], *, output: Path, dtype: str = "fp16") -> AdapterFile:
    """`output` is one adapter that does what the stack of `entries` does.

    Raises AdapterError when the files are for different families or hold more than LoRA.
    """
    files = [AdapterFile.open(entry.file) for entry in entries]
    family = _common_family(files)
    parts: dict[Layer, list[tuple[Lora, float]]] = {}
    for entry, file in zip(entries, files, strict=True):
        for layer, lora in _loras(file).items():
            parts.setdefault(layer, []).append((lora, entry.weight_at(layer)))
    merged = {layer: concat(loras) for layer, loras in parts.items()}
    return save(output, merged, family_name=family, metadata=_parents(entries, files), dtype=dtype)


def concat(loras: Sequence[tuple[Lora, float]]) -> Lora:
    """One adapter whose delta is the weighted sum of all; its rank is the sum of the ranks."""
    down = torch.cat([_whole_down(lora) for lora, _ in loras])
    up = torch.cat([lora.up.detach().float() * (lora.scale * weight) for lora, weight in loras], dim=1)
    return Lora(down, up, alpha=float(down.shape[0]))


def _whole_down(lora: Lora) -> Tensor:
    """`down` with a Tucker core multiplied in."""
    down = lora.down.detach().float()
    if lora.mid is None:
        return down
    return torch.einsum("ab...,bi->ai...", lora.mid.detach().float(), down.flatten(1))


def _loras(file: AdapterFile) -> dict[Layer, Lora]:
    found: dict[Layer, Lora] = {}
    for name in file.groups:
        if file.kinds_of(name) != (Lora,):
            raise AdapterError(
                f"{file.path} holds more than LoRA ({name.name}), which cannot be set side by side."
            )
        adapter = file.adapter(name, _stand_in(file.tensors(name)))
        assert isinstance(adapter, Lora)
        found[Layer(name.component, name.name)] = adapter
    return found


def _stand_in(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A layer without memory of the form that the tensors are made for."""
    down, up = tensors["lora_down.weight"], tensors.get("lora_up.weight")
    if up is None or up.ndim < 2 or down.ndim < 2:
        raise AdapterError("The factors lora_down and lora_up are not both there as matrices.")
    kernel = tensors.get("lora_mid.weight", down).shape[2:]
    if len(kernel) == 2:
        return nn.Conv2d(down.shape[1], up.shape[0], (kernel[0], kernel[1]), device="meta")
    return nn.Linear(down.shape[1], up.shape[0], device="meta")


def _common_family(files: Sequence[AdapterFile]) -> str:
    if not files:
        raise AdapterError("Nothing to merge.", "Name at least one adapter.")
    first = files[0]
    for file in files[1:]:
        if file.detected.family != first.detected.family:
            raise AdapterError(
                f"{first.path} was made for {first.detected.title}, {file.path} for {file.detected.title}.",
                "Only adapters of one base family can be merged.",
            )
    return first.detected.family


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
    return {"sdlora.parents": json.dumps(parents)}
