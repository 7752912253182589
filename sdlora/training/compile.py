"""Regional compilation: a UNet's blocks as fused kernels, compiled once for all blocks that are alike.

torch.compile joins normalisations, activations and sums into single kernels and keeps less for the backward
pass. It takes a minute or two, once for each shape of picture, and what it found is kept on disk by torch.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

SECONDS = 120  # that compiling takes, about, where nothing is on disk yet
GAIN = 0.15  # of a step's time that it saves at least, measured on an H200

_RESNETS, _TRANSFORMERS = re.compile(r"(.*\.)?resnets\.\d+"), re.compile(r"(.*\.)?attentions\.\d+")
_LAYERS = 2  # a transformer with more is compiled layer by layer: one compiled layer serves them all
_FORMS = 256  # in which a block occurs: widths, sizes of pictures, adapters


@contextmanager
def compiled(unet: nn.Module) -> Iterator[None]:
    """Inside, the blocks of `unet` run compiled; the first call of each form of them compiles it.

    What a compiler that is missing or fails raises comes from that call.
    """
    forwards = {block: vars(block).get("forward") for block in _blocks(unet)}
    limits: dict[str, Any] = {
        "recompile_limit": _FORMS,
        "accumulated_recompile_limit": _FORMS * len(forwards),
    }
    import torch._dynamo  # here, because it takes a second

    with torch._dynamo.config.patch(**limits):
        try:
            for block in forwards:
                block.forward = torch.compile(block.forward, dynamic=False)
            yield
        finally:
            for block, before in forwards.items():
                vars(block).pop("forward", None)
                if before is not None:
                    block.forward = before


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled blocks run as they were: pictures in other shapes are not worth compiling for."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def repays(seconds: float, steps: int, *, forms: int = 1) -> bool:
    """Whether `steps` of `seconds` each, of pictures of so many `forms`, are worth compiling for."""
    return seconds * steps * GAIN > SECONDS * forms


def _blocks(unet: nn.Module) -> Iterator[nn.Module]:
    for name, module in unet.named_modules():
        if _RESNETS.fullmatch(name):
            yield module
        elif _TRANSFORMERS.fullmatch(name):
            layers = module.get_submodule("transformer_blocks")
            yield from [module] if len(list(layers)) <= _LAYERS else layers
