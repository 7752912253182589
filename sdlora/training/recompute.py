"""Gradient checkpointing: the insides of a UNet's blocks are computed again in the backward pass.

Less memory for about a third more time (Chen et al. 2016). Works on the blocks of every UNet of the Stable
Diffusion line, whatever adapters sit in them.
"""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_BLOCKS = re.compile(r"(.*\.)?(transformer_blocks|resnets)\.\d+")


@contextmanager
def recomputed(unet: nn.Module) -> Iterator[None]:
    """Inside, the blocks of `unet` keep only their inputs for the backward pass."""
    blocks = [module for name, module in unet.named_modules() if _BLOCKS.fullmatch(name)]
    try:
        for block in blocks:
            block.forward = _again(block.forward)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def _again(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward_again(*inputs: object, **named: object) -> Tensor:
        inside = functools.partial(forward, **named)
        result: Tensor = checkpoint(inside, *inputs, use_reentrant=False)
        return result

    return forward_again
