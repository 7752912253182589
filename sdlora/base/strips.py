"""Convolutions of large pictures strip by strip, so that what their kernels need aside is that of a strip.

At 1024 pixels the largest convolutions of Stable Diffusion's autoencoder take several times as much memory
aside as the picture itself does. In strips they give the same sums. Only for GPUs: on a CPU there is no need.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

MOST = 1 << 17  # pixels of a strip


@contextmanager
def in_strips(network: nn.Module) -> Iterator[None]:
    """Inside, the convolutions of `network` take large pictures on a GPU in strips."""
    found = [part for part in network.modules() if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1)]
    try:
        for layer in found:
            layer.forward = functools.partial(_convolved, layer)  # type: ignore[method-assign]  # meant so
        yield
    finally:
        for layer in found:
            vars(layer).pop("forward", None)


def convolved(layer: nn.Conv2d, x: Tensor, rows: int) -> Tensor:
    """What `layer`, which has no dilation, puts out for x [B,C,H,W], so many rows at a time."""
    (kernel, wide), (stride, across) = layer.kernel_size, layer.stride
    above, beside = (int(side) for side in layer.padding)
    height, width = (
        (x.shape[2] + 2 * above - kernel) // stride + 1,
        (x.shape[3] + 2 * beside - wide) // across + 1,
    )
    whole: Tensor | None = None
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        first, last = start * stride - above, (stop - 1) * stride - above + kernel
        strip = F.pad(x[:, :, max(first, 0) : last], (0, 0, max(-first, 0), max(last - x.shape[2], 0)))
        part = F.conv2d(strip, layer.weight, layer.bias, layer.stride, (0, beside), groups=layer.groups)
        if whole is None:
            whole = part.new_empty(*part.shape[:2], height, width)
        whole[:, :, start:stop] = part
    assert whole is not None
    return whole


def _convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    rows = max(1, MOST // x.shape[3])
    if x.is_cuda and x.shape[2] > rows:
        return convolved(layer, x, rows)
    return nn.Conv2d.forward(layer, x)
