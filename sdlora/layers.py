"""The layers that adapters sit on, by their arithmetic.

All are linear in their weight and bias, so that a change of these changes the output by what the layer
alone would make of the change.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sdlora.errors import AdapterError


def response(layer: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What `layer` puts out for x with this weight and bias (None: zero) in place of its own.

    Raises AdapterError for a layer that is no linear, convolution or normalisation.
    """
    weight = None if weight is None else weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    match layer:
        case nn.Linear():
            return F.linear(x, _or_zero(weight, layer.weight, x), bias)
        case nn.Conv2d():
            kernel = _or_zero(weight, layer.weight, x)
            return F.conv2d(x, kernel, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        case nn.LayerNorm():
            kernel = _or_zero(weight, layer.weight, x)
            return F.layer_norm(x, layer.normalized_shape, kernel, bias, layer.eps)
        case nn.GroupNorm():
            return F.group_norm(x, layer.num_groups, _or_zero(weight, layer.weight, x), bias, layer.eps)
    raise AdapterError(f"A layer of the type {type(layer).__name__} cannot be adapted.")


def bias_of(layer: nn.Module) -> Tensor | None:
    """The layer's own bias, None where it has none."""
    bias = getattr(layer, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def fitted(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`tensor` in `shape`, when it differs by sizes of one behind the first two at most.

    A linear layer's tensors fit a 1x1 convolution and the other way round. Raises AdapterError.
    """
    head, tail = shape[:2], [size for size in shape[2:] if size != 1]
    same = tuple(tensor.shape[:2]) == head and [size for size in tensor.shape[2:] if size != 1] == tail
    if not same or 0 in shape:
        raise AdapterError(f"{name} has the shape {tuple(tensor.shape)}, the layer needs {shape}.")
    return tensor.reshape(shape)


def _or_zero(weight: Tensor | None, like: Tensor, x: Tensor) -> Tensor:
    return like.new_zeros(like.shape, dtype=x.dtype) if weight is None else weight
