"""LyCORIS' own modules with random values: what they save, and what they do to their layer."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lycoris.modules.base import LycorisBaseModule
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import Tensor, nn

from sdlora.adapters import KINDS
from sdlora.layers import bias_of

Options = Mapping[str, Any]  # Any: LyCORIS' options, each of its own type

_LOW = {"lora_dim": 4, "alpha": 3.0}
_DORA: Mapping[str, Options] = {
    "dora_wd": {"weight_decompose": True},
    "wd_on_output = False": {"weight_decompose": True, "wd_on_out": False},
}
_SHARED: Mapping[str, Options] = {
    "": {},
    "alpha = 0": {"alpha": 0},
    "rs_lora": {"rs_lora": True},
    "use_scalar": {"use_scalar": True},
    "use_tucker": {"use_tucker": True},
    "rank above the width": {"lora_dim": 21},
    **_DORA,
    "rs_lora with use_scalar, use_tucker and dora_wd": {
        "rs_lora": True,
        "use_scalar": True,
        "use_tucker": True,
        "weight_decompose": True,
    },
}
WRITTEN: Mapping[str, tuple[type[LycorisBaseModule], Mapping[str, Options]]] = {
    "locon": (LoConModule, _SHARED),
    "loha": (LohaModule, _SHARED),
    "lokr": (
        LokrModule,
        {name: {"lora_dim": 1, "factor": 2} | dict(options) for name, options in _SHARED.items()}
        | {
            "rank above the width": {"lora_dim": 100_000},
            "factor = -1": {"lora_dim": 1},
            "full_matrix": {"full_matrix": True},
            "decompose_both": {"lora_dim": 1, "decompose_both": True},
            "unbalanced_factorization": {"lora_dim": 1, "factor": 2, "unbalanced_factorization": True},
        },
    ),
    "glora": (GLoRAModule, {"": {}, "alpha = 0": {"alpha": 0}, "use_scalar": {"use_scalar": True}}),
    "ia3": (IA3Module, {"": {}, "train_on_input": {"train_on_input": True}}),
    "diag-oft": (
        DiagOFTModule,
        {"": {}, "constraint": {"constraint": 1e-3}, "rescaled": {"rescaled": True}}
        | {"constraint with rescaled": {"constraint": 1e-3, "rescaled": True}},
    ),
    "boft": (
        ButterflyOFTModule,
        {"": {}, "constraint": {"constraint": 1e-3}, "rescaled": {"rescaled": True}}
        | {"constraint with rescaled": {"constraint": 1e-3, "rescaled": True}},
    ),
    "full": (FullModule, {"": {}}),
    "train_norm": (NormModule, {"": {}}),
}
"""Algorithm -> its module, and options by name."""


def fits(algorithm: str, layer: nn.Module) -> bool:
    """Whether the algorithm is one for the layer."""
    return (algorithm == "train_norm") == isinstance(layer, (nn.LayerNorm, nn.GroupNorm))


def made(kind: type[LycorisBaseModule], layer: nn.Module, options: Options) -> LycorisBaseModule:
    """The module of `layer` with random values in all its parameters."""
    arguments = {} if kind is NormModule else _LOW | dict(options)
    module = kind("x", layer, **arguments).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if name in ("rescale", "dora_scale"):
            parameter.mul_(1 + 0.2 * noise)
        else:
            parameter.add_(0.7 if name == "scalar" else 0.1 * noise)
    return module


def saved(module: LycorisBaseModule) -> dict[str, Tensor]:
    """Suffix -> tensor as it stands in a file."""
    if isinstance(module, FullModule):
        module = copy.deepcopy(module)
        module.apply_to()  # until then it saves its change less the weight
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def trained(module: LycorisBaseModule, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The changes of weight and bias with which the module's forward computes: what training saw."""
    seen: list[tuple[Tensor, Tensor | None]] = []
    operation = module.op

    def recorded(x: Tensor, weight: Tensor, bias: Tensor | None = None, **rest: Any) -> Tensor:
        seen.append((weight, bias))
        result: Tensor = operation(x, weight=weight, bias=bias, **rest)
        return result

    module.op = recorded
    try:
        module.forward(x)
    finally:
        module.op = operation
    (found,) = seen
    return found


@torch.no_grad()
def distance(module: LycorisBaseModule, layer: nn.Module, x: Tensor) -> float:
    """How far, relative, what we read of its file lies from what it trained; the weight's or the bias's."""
    held = saved(module)
    kind = next(kind for _, kind in KINDS.items() if kind.recognises(frozenset(held)))
    adapter = kind.read(held, layer)
    weight, bias = trained(module, x)
    pairs = [(adapter.delta(layer.get_parameter("weight")), weight)]
    if bias is not None and (change := adapter.bias_delta(bias_of(layer))) is not None:
        pairs.append((change, bias))
    return max(float((a - b.reshape(a.shape)).norm() / b.norm()) for a, b in pairs)
