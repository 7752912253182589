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


@dataclass(frozen=True, kw_only=True)
class LowRank(Placement):
    """The options of kinds whose change is up @ down."""

    rank: int = option(
        16,
        "Width of the bottleneck: more holds more detail and makes a larger file",
        low=1,
        high=1024,
        level="basic",
    )
    alpha: float = option(8.0, "The change is multiplied with alpha / rank", low=1e-6, high=4096)
    dropout: float = option(
        0.0,
        "How often a value in the bottleneck is left out of a training step",
        low=0,
        high=0.95,
        unit="fraction of values",
    )
    conv_rank: int = option(
        0, "Rank of convolutions wider than 1x1, at the same scale; 0 is the same as rank", low=0, high=1024
    )
    tucker: bool = option(False, "Hold the kernel of such a convolution in a core of its own: a smaller file")
    rank_stabilised: bool = option(False, "Multiply with alpha / sqrt(rank), as rsLoRA does")
    start: str = option(
        "noise",
        "How `down` begins: random, or with the strongest directions of the layer's weight (PiSSA)",
        choices=("noise", "pissa"),
    )


__all__ = ["KINDS", "SPECS", "LowRank", "Placement"]
