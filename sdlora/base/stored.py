"""Frozen weights kept in fewer bits, under adapters that are trained (QLoRA, Dettmers et al. 2023).

A layer keeps its weight packed and makes it anew for every product, in the forward pass and again in the
backward pass, so that nothing else of it outlives a call. To everything else it is the layer that holds the
unpacked weight, to the bit.

    full  as it is
    fp8   e4m3 and a power of two for each output: 8 bits, off by a sixteenth of a value at most
    nf4   sixteen levels that normal values fill evenly, by blocks of 64 whose peaks are kept in e4m3 (double
          quantisation): 4.1 bits

Shapes: O I features, k kernel, N numbers, n blocks, m groups of blocks, B batch, h w places.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import NormalDist
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from sdlora.errors import ConfigError

SMALLEST = 1 << 16  # numbers in a weight that is worth packing

Parts = tuple[Tensor, ...]


class Packing(NamedTuple):
    """`pack` takes a weight [O,...], `unpack` gives its values [O,...] back from the parts and a shape."""

    pack: Callable[[Tensor], Parts]
    unpack: Callable[[Parts, torch.Size, torch.dtype], Tensor]


class Stored(nn.Module):
    """A frozen layer whose `weight` is unpacked whenever it is asked for.

    `parts` answers with the packed weight; whoever keeps that elsewhere puts a function of its own there.
    """

    def __init__(self, layer: nn.Module, packing: Packing, device: torch.device) -> None:
        nn.Module.__init__(self)
        for name, value in vars(layer).items():
            if name not in vars(self):
                setattr(self, name, value)
        self.register_parameter("bias", dict(layer.named_parameters()).get("bias"))
        self.train(layer.training)
        self.packing = packing
        weight = layer.get_parameter("weight").detach()
        home, weight = weight.device, weight.to(device)
        # tensor cores read kernels with the inputs last
        self.inputs_last = weight.ndim == 4 and device.type == "cuda"
        weight = (weight.movedim(1, -1) if self.inputs_last else weight).contiguous()
        self.shape, self.dtype = weight.shape, weight.dtype
        for number, part in enumerate(packing.pack(weight)):
            self.register_buffer(f"part{number}", part.to(home))

    def parts(self) -> Parts:
        """The packed weight, on the device."""
        return tuple(self.buffers(recurse=False))

    @property
    def weight(self) -> Tensor:
        """[O,I] or [O,I,k,k], made anew: writing to it changes nothing."""
        weight = self.packing.unpack(self.parts(), self.shape, self.dtype)
        return weight.movedim(-1, 1) if self.inputs_last else weight

    def get_parameter(self, target: str) -> nn.Parameter:
        """As that of the layer that holds the unpacked weight."""
        # a plain tensor, for parameters cannot be made while a compiler looks on
        return cast(nn.Parameter, self.weight) if target == "weight" else super().get_parameter(target)


class StoredLinear(Stored, nn.Linear):  # type: ignore[override]  # its weight is read only
    """A linear layer with a packed weight."""

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Linear's."""
        output: Tensor = _LinearProduct.apply(x, self)  # type: ignore[no-untyped-call]  # torch's gap
        return output


class StoredConv2d(Stored, nn.Conv2d):  # type: ignore[override]  # its weight is read only
    """A convolution with a packed weight."""

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Conv2d's."""
        output: Tensor = _Convolution.apply(x, self)  # type: ignore[no-untyped-call]  # torch's gap
        return output


def store(network: nn.Module, storage: str, *, device: torch.device) -> None:
    """The larger layers of the frozen `network` keep their weights in `storage`, a key of PACKINGS.

    They are packed for and by `device`, and lie where the weights lay. Raises ConfigError when the device
    has no such numbers.
    """
    if storage == "fp8" and device.type == "mps":
        raise ConfigError("This device has no 8-bit floating point.", "Set base.storage to nf4 or full.")
    found = [(parent, *child) for parent in network.modules() for child in parent.named_children()]
    for parent, name, layer in found:
        kind = {nn.Linear: StoredLinear, nn.Conv2d: StoredConv2d}.get(type(layer))
        if kind is not None and layer.get_parameter("weight").numel() >= SMALLEST:
            setattr(parent, name, kind(layer, PACKINGS[storage], device))


@contextmanager
def unpacked_twice(network: nn.Module) -> Iterator[None]:
    """Inside, a compiler that meets stored layers of `network` unpacks again for the backward pass.

    It would else see the same work twice, do it once, and keep every unpacked weight meanwhile.
    """
    if not any(isinstance(layer, Stored) for layer in network.modules()):
        yield
        return
    import torch._functorch.config  # here, because it is of use to compilers only

    with torch._functorch.config.patch(cse=False):
        yield


class _LinearProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: StoredLinear) -> Tensor:  # Any: torch's contexts are untyped
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # Any: as above
        return grads[0] @ ctx.layer.weight, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: StoredConv2d) -> Tensor:  # Any: as above
        ctx.layer, ctx.shape = layer, x.shape
        return F.conv2d(x, layer.weight, layer.bias, *_settings(layer))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # Any: as above
        weight = ctx.layer.weight
        return conv2d_input(ctx.shape, weight, grads[0], *_settings(ctx.layer)), None  # type: ignore[no-untyped-call]  # torch's gap


def _settings(layer: nn.Conv2d) -> Any:  # Any: padding may be a word, which diffusers never uses
    return layer.stride, layer.padding, layer.dilation, layer.groups


def _to_fp8(weight: Tensor) -> Parts:
    """Values [O,N/O] in e4m3 and scales [O,1], so that their product is near the weight."""
    rows = weight.flatten(1).float()
    ratio = rows.abs().amax(dim=1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    # the power of two at or above it, which costs no bit of a number; none smaller than fp16 holds in full
    mantissa = torch.frexp(ratio).mantissa
    scale = (ratio / mantissa.where(mantissa != 0.5, 1)).nan_to_num().clamp(min=2.0**-14)
    return (rows / scale).to(torch.float8_e4m3fn), scale.to(weight.dtype)


def _from_fp8(parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    values, scale = parts
    return values.to(dtype).mul_(scale).view(shape)


_BLOCK, _GROUP = 64, 256  # numbers with one peak, and peaks with one scale: QLoRA, sec. 3


def nf4_levels() -> Tensor:
    """The 16 levels in [-1,1]: quantiles of the normal distribution, and zero (QLoRA, sec. 3, app. E)."""
    edge = 1 - (1 / 32 + 1 / 30) / 2
    above, below = (torch.linspace(edge, 0.5, count)[:-1].tolist() for count in (9, 8))
    quantile = NormalDist().inv_cdf
    levels = sorted([*map(quantile, above), 0.0, *(-quantile(share) for share in below)])
    return torch.tensor(levels) / max(levels)


def _to_nf4(weight: Tensor) -> Parts:
    """Pairs of levels [N/2], what the 256 pairs mean [256,2], peaks [m,256] as fp8, and their mean []."""
    blocks = _padded(weight.flatten().float(), _BLOCK)
    peaks = blocks.abs().amax(dim=1)
    levels = nf4_levels().to(weight.device)
    relative = blocks / peaks.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    nearest = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2, out_int32=True).view(-1, 2)
    pairs = (nearest[:, 0] * 16 + nearest[:, 1]).to(torch.uint8)
    meaning = torch.cartesian_prod(levels, levels).to(weight.dtype)
    mean = peaks.mean()
    return pairs, meaning, *_to_fp8(_padded(peaks - mean, _GROUP)), mean


def _from_nf4(parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    pairs, meaning, values, scale, mean = parts
    blocks = F.embedding(pairs.int(), meaning).view(-1, _BLOCK)
    peaks = values.float() * scale + mean
    weight = blocks.mul_(peaks.flatten()[: len(blocks), None].to(dtype))
    return weight.flatten()[: shape.numel()].view(shape)


def _padded(values: Tensor, width: int) -> Tensor:
    """The values in rows of `width`, the last one filled with zeros."""
    return F.pad(values, (0, -len(values) % width)).view(-1, width)


PACKINGS = {
    "full": Packing(lambda weight: (weight,), lambda parts, shape, dtype: parts[0]),
    "fp8": Packing(_to_fp8, _from_fp8),
    "nf4": Packing(_to_nf4, _from_nf4),
}
