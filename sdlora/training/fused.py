"""A UNet with our own kernels in it, where the machine can run them."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@functools.cache
def hindrance(device: torch.device, dtype: torch.dtype) -> str:
    """Why kernels of our own cannot run on `device` in `dtype`; empty where they can."""
    if device.type != "cuda":
        return "they are for NVIDIA GPUs"
    try:
        from sdlora.training.kernels import GeGlu, GroupNorm

        picture = torch.ones(1, 32, 4, 4, device=device, dtype=dtype, requires_grad=True)
        one = torch.ones(32, device=device, dtype=dtype)
        normal = GroupNorm.apply(picture, one, one, 32, 1e-5)  # type: ignore[no-untyped-call]  # torch's gap
        GeGlu.apply(normal.flatten()).sum().backward()  # type: ignore[no-untyped-call]  # as above
        torch.cuda.synchronize(device)
    except Exception as error:  # noqa: BLE001  # whatever a compiler raises that is missing or does not fit
        return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return ""


@contextmanager
def fused(unet: nn.Module) -> Iterator[None]:
    """Inside, normalisations and GEGLUs of `unet` are our kernels, and its pictures stay channels-last."""
    from sdlora.training.kernels import fits

    with contextlib.ExitStack() as changes:
        for module in unet.modules():
            if isinstance(module, nn.GroupNorm) and fits(module.num_channels, module.num_groups):
                changes.enter_context(_answering(module, functools.partial(_normalised, module)))
            elif type(module).__name__ == "GEGLU":
                changes.enter_context(_answering(module, functools.partial(_gated, module)))
            elif type(module).__name__ == "Transformer2DModel":
                changes.callback(module.register_forward_hook(_channels_last).remove)
        yield


@contextmanager
def _answering(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        vars(module).pop("forward")


def _normalised(module: nn.GroupNorm, x: Tensor) -> Tensor:
    from sdlora.training.kernels import GroupNorm

    out: Tensor = GroupNorm.apply(x, module.weight, module.bias, module.num_groups, module.eps)  # type: ignore[no-untyped-call]  # as above
    return out


def _gated(module: nn.Module, x: Tensor) -> Tensor:
    from sdlora.training.kernels import GeGlu

    out: Tensor = GeGlu.apply(module.get_submodule("proj")(x))  # type: ignore[no-untyped-call]  # as above
    return out


def _channels_last(module: nn.Module, inputs: object, output: object) -> object:
    # it answers channels first, and every sum with that would be the slow kind until the next convolution
    if isinstance(output, tuple):
        return (output[0].contiguous(memory_format=torch.channels_last), *output[1:])
    return output
