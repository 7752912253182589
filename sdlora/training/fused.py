"""A UNet with our own kernels in it, where the machine can run them."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdlora.errors import first_line

# Features of a feed-forward's input up to which its wide inside is computed again in the backward pass: at
# 640 that saves SDXL 0.37 GiB for a hundredth of a step; a wider one costs more arithmetic for each byte.
_NARROW = 640


class Kernels(Protocol):
    """What `sdlora.training.kernels` has, whose import needs Triton."""

    def fits(self, channels: int, groups: int) -> bool: ...
    def group_norm(self, x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor: ...
    def geglu(self, both: Tensor) -> Tensor: ...
    def geglu_slope(self, both: Tensor, gradient: Tensor) -> Tensor: ...


@functools.cache
def hindrance(device: torch.device, dtype: torch.dtype) -> Future[str]:
    """Why kernels of our own cannot run on `device` in `dtype`; empty where they can.

    It is found out in a thread: they are compiled for seconds, the first time on a machine.
    """
    trial = ThreadPoolExecutor(1)
    found = trial.submit(_hindrance, device, dtype)
    trial.shutdown(wait=False)
    return found


def _hindrance(device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cuda":
        return "they are for NVIDIA GPUs"
    try:
        from sdlora.training import kernels

        kernels.run_all(device, dtype)
    except Exception as error:  # noqa: BLE001  # whatever a compiler raises that is missing or does not fit
        return first_line(error)
    return ""


@contextmanager
def fused(unet: nn.Module, kernels: Kernels | None = None) -> Iterator[None]:
    """Inside, normalisations and GEGLUs of `unet` are our kernels, and its pictures stay channels-last.

    Residual blocks and attention of the plain kind lose their divisions by one.
    """
    if kernels is None:
        from sdlora.training import kernels as own

        kernels = own
    with contextlib.ExitStack() as changes:
        for module in unet.modules():
            if answer := _faster(module, kernels):
                changes.enter_context(_answering(module, functools.partial(answer, module, kernels)))
            elif type(module).__name__ == "Transformer2DModel":
                changes.callback(module.register_forward_hook(_channels_last).remove)
        yield


def _faster(module: nn.Module, kernels: Kernels) -> Callable[..., Tensor] | None:
    """What answers as `module` does, of (module, kernels, inputs of the module), if there is something."""
    kind = type(module).__name__
    if isinstance(module, nn.GroupNorm) and kernels.fits(module.num_channels, module.num_groups):
        return _normalised
    if kind == "ResnetBlock2D" and _is_plain_block(module, kernels):
        return _residual
    if kind == "Attention" and _is_plain_attention(module):
        return _attended
    return _gated if kind == "GEGLU" else None


@contextmanager
def _answering(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        vars(module).pop("forward")


def _normalised(norm: nn.GroupNorm, kernels: Kernels, x: Tensor) -> Tensor:
    return kernels.group_norm(x, norm, silu=False)


def _is_plain_block(block: Any, kernels: Kernels) -> bool:  # Any: diffusers has its door elsewhere
    """Whether `_residual` is what `block` does."""
    return (
        all(kernels.fits(norm.num_channels, norm.num_groups) for norm in (block.norm1, block.norm2))
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.upsample is None
        and block.downsample is None
        and block.time_emb_proj is not None
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and not block.dropout.p
        and block.output_scale_factor == 1
    )


def _residual(block: Any, kernels: Kernels, x: Tensor, time: Tensor) -> Tensor:  # Any: as above
    """He et al. 2016, with the time embedding [B,E] added in the middle. x [B,C,h,w] -> [B,D,h,w]."""
    hidden: Tensor = block.conv1(kernels.group_norm(x, block.norm1, silu=True))
    hidden = hidden + block.time_emb_proj(block.nonlinearity(time))[:, :, None, None]
    hidden = block.conv2(kernels.group_norm(hidden, block.norm2, silu=True))
    return hidden + (x if block.conv_shortcut is None else block.conv_shortcut(x))


def _is_plain_attention(attention: Any) -> bool:  # Any: as above
    """Whether `_attended` is what `attention` does."""
    extras = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection")
    return (
        type(attention.processor).__name__ == "AttnProcessor2_0"
        and not any(getattr(attention, extra) for extra in extras)
        and not attention.to_out[1].p
        and attention.rescale_output_factor == 1
    )


def _attended(
    attention: Any,  # as above
    kernels: Kernels,
    x: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Vaswani et al. 2017, sec. 3.2. x [B,S,D], and what it attends to [B,T,E] or is itself -> [B,S,D]."""
    states = x if encoder_hidden_states is None else encoder_hidden_states
    parts = (attention.to_q(x), attention.to_k(states), attention.to_v(states))
    query, key, value = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in parts)
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    answer: Tensor = attention.to_out[0](out.transpose(1, 2).flatten(2))
    return answer


def _gated(module: nn.Module, kernels: Kernels, x: Tensor) -> Tensor:
    proj = module.get_submodule("proj")
    if type(proj) is nn.Linear and proj.in_features <= _NARROW and "forward" not in vars(proj):
        narrow: Tensor = _GatedAgain.apply(x, proj.weight, proj.bias, kernels)  # type: ignore[no-untyped-call]  # torch's gap
        return narrow
    return kernels.geglu(proj(x))


class _GatedAgain(torch.autograd.Function):
    """GEGLU of a frozen product, which is computed again for the backward pass: x [...,I] -> [...,D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.kernels = kernels
        return kernels.geglu(functional.linear(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, bias = ctx.saved_tensors
        slope = ctx.kernels.geglu_slope(functional.linear(x, weight, bias), gradient)
        return slope @ weight, None, None, None


def _channels_last(module: nn.Module, inputs: object, output: object) -> object:
    # it answers channels first, and every sum with that would be the slow kind until the next convolution
    if isinstance(output, tuple):
        return (output[0].contiguous(memory_format=torch.channels_last), *output[1:])
    return output
