"""Adapter kinds. One file here is one kind: its tensors in a file, its delta, its training, its options."""

from dataclasses import dataclass

from sdlora.contracts import Adapter
from sdlora.options import option
from sdlora.registry import Registry

KINDS: Registry[type[Adapter]] = Registry("sdlora.adapters", "adapter kind")
SPECS: Registry[type] = Registry("sdlora.adapters", "adapter kind")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where adapters sit: the options that every kind begins with."""

    targets: str = option(
        "attention",
        "Layers that are adapted, separated by commas: the presets `attention`, `attention+mlp`, "
        "`all-linear`, `all+conv`, or regular expressions found in module paths, such as `attn2`",
        label="Target layers",
    )
    unet: bool = option(True, "Teach the UNet", label="UNet")
    text_encoder: bool = option(True, "Teach the text encoder too", level="basic")


__all__ = ["KINDS", "SPECS", "Placement"]
