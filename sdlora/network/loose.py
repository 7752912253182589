"""LoRA files without their base: what their factors say alone, enough to merge, resize and measure them."""

import math

import torch
from torch import nn

from sdlora.adapters.lora import Lora
from sdlora.contracts import Layer
from sdlora.errors import AdapterError
from sdlora.network.codec import AdapterFile
from sdlora.network.names import Name, dotted

LARGEST = 1 << 26  # values of a layer; those of SDXL have up to 29 million


def loras(file: AdapterFile, *, otherwise: str = "Name the base model too.") -> dict[Layer, Lora]:
    """The file's adapters by layer; paths are those of diffusers, told from the names alone.

    Raises AdapterError, with the hint `otherwise` when it holds other kinds than LoRA; also for keys of no
    known form, and for a layer larger than any model has, whose delta no memory could hold.
    """
    if file.foreign:
        raise AdapterError(
            f"{file.path} holds {file.foreign[0][:100]}, which no kind of adapter knows.",
            "Give a file that `sdlora inspect` reads whole.",
        )
    found: dict[Layer, Lora] = {}
    for name in file.groups:
        if file.kinds_of(name) != (Lora,):
            raise AdapterError(
                f"{file.path} holds more than LoRA (at {name.name}), which only makes sense on its base.",
                otherwise,
            )
        adapter = file.adapter(name, _stand_in(file, name))
        assert isinstance(adapter, Lora)
        found[Layer(name.component, dotted(name))] = adapter
    return found


def require_one_base(layer: Layer, first: tuple[AdapterFile, Lora], second: tuple[AdapterFile, Lora]) -> None:
    """Raises AdapterError that names both files when they change the layer of unlike bases."""
    (one, a), (two, b) = first, second
    if shape_of(a) == shape_of(b):
        return
    told = f"{one.path} was made for {one.detected.title}, {two.path} for {two.detected.title}."
    if one.detected.title == two.detected.title:
        sizes = " and ".join("x".join(map(str, shape_of(lora))) for lora in (a, b))
        told = f"{one.path} and {two.path} were made for bases of unlike width: {layer.path} is {sizes}."
    raise AdapterError(told, "Take adapters of one base.")


def plain(file: AdapterFile) -> bool:
    """Whether all layers that it holds are LoRA, so that it needs no base."""
    return all(file.kinds_of(name) == (Lora,) for name in file.groups)


def shape_of(lora: Lora) -> tuple[int, ...]:
    """The shape of the weight that it changes."""
    kernel = lora.down.shape[2:] if lora.mid is None else lora.mid.shape[2:]
    return (lora.up.shape[0], lora.down.shape[1], *kernel)


def _stand_in(file: AdapterFile, name: Name) -> nn.Module:
    """A layer without memory of the form that the tensors are made for."""
    entries, keys = file.container.entries, file.groups[name].keys
    shapes = {suffix: entries[key].shape for suffix, key in keys.items()}
    down, up = shapes["lora_down.weight"], shapes.get("lora_up.weight", ())
    kernel = shapes.get("lora_mid.weight", down)[2:]
    if len(up) < 2 or len(down) < 2 or len(kernel) not in (0, 2):
        raise AdapterError(f"{file.path}: lora_down and lora_up are no matrices or kernels.")
    if up[0] * down[1] * math.prod(kernel) > LARGEST:
        raise AdapterError(f"{file.path}: a layer of {up[0]} x {down[1]} features is no model's.")
    layer = nn.Module()  # LoRA asks for no more than the weight's shape
    layer.weight = nn.Parameter(torch.empty(up[0], down[1], *kernel, device="meta"))
    return layer
