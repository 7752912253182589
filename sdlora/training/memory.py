"""What a run needs of its device's memory, counted before it starts.

The networks and adapters are laid out on torch's meta device, where tensors have a shape and no content, and
the forward pass of one step runs there: what autograd keeps for the backward pass is seen, whatever the base,
the kind of adapter and its options are. A run has three phases, and needs what the hungriest does:

    encoding    VAE + adapters + PIXEL_ENCODED * pixels
    steps       UNet [+ text encoders] + adapters [+ copies]
                + KEPT * activations + INSIDE * recomputed block + WORKSPACE
    previews    steps + VAE + PIXEL_DECODED * pixels

where adapters are (value, gradient, two moments[, average][, copy for the layers]), copies of them are there
while a step is captured, and pixels are those of one picture. `benchmarks/memory/fit.py` fits the constants
to measured runs.
"""

import contextlib
import dataclasses
import functools
import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from sdlora.base.autoencoder import TILES
from sdlora.base.outline import Outline
from sdlora.base.stored import Stored, store
from sdlora.contracts import Conditioning, Family, Objective, Step, Tokens
from sdlora.families import FAMILIES
from sdlora.loading import ModelInfo
from sdlora.network.attach import Network, attached, create
from sdlora.residence import text_encoders
from sdlora.training.fused import fused
from sdlora.training.recompute import blocks

KEPT = 1.10  # bytes that a kept byte takes
INSIDE = 2.60  # the same of a block that is computed again, whose gradients are there at the same time
WORKSPACE = 0.16e9  # bytes that libraries take for themselves
PIXEL_ENCODED = 3770  # bytes a pixel of a picture, which is encoded in fp32
PIXEL_DECODED = 4990  # and decoded in 16 bit

PROCESS = 0.95e9  # bytes that CUDA takes of the GPU for a process
RUNTIME = 0.4e9  # bytes that a process with torch takes of the machine

_STORED = {"fp8": 1.0, "nf4": 4.13 / 8}  # bytes of a packed number
_AHEAD = 3  # layers whose weights are there at once when they wait outside
_META = torch.device("meta")
_one_at_a_time = threading.Lock()  # counting puts adapters on an outline that it keeps


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that the memory of a run depends on, besides its base. `side` in pixels."""

    adapter: Any  # Any: the option tree of its kind, of what is taught only
    objective: Objective
    dtype: torch.dtype
    side: int
    batch: int = 1
    clip_skip: int = 1
    storage: str = "full"
    offload: bool = False
    fused: bool = False  # whether kernels of our own run
    checkpointing: bool = False
    averaged: bool = False
    previews: bool = True


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What is known of a run without measuring, in bytes.

    `held` are the weights that the steps need, `learned` adapters with all that the optimizer has for them;
    `kept` is kept from forward to backward, `inside` is the most that a recomputed block keeps meanwhile.
    `waiting` are weights that the steps do not need.
    """

    held: int
    waiting: int
    vae: int
    learned: int
    kept: int
    inside: int
    pixels: int
    width: int

    @property
    def encoding(self) -> float:
        """Bytes while pictures become latents."""
        return self.vae + self.learned + PIXEL_ENCODED * self.pixels

    @property
    def steps(self) -> float:
        """Bytes while the adapters learn."""
        return self.held + self.learned + KEPT * self.kept + INSIDE * self.inside + WORKSPACE

    @property
    def drawing(self) -> float:
        """Bytes that a preview needs on top of the steps."""
        return self.vae + PIXEL_DECODED * min(self.pixels, TILES[-1] ** 2) * self.width / 2


def needed(info: ModelInfo, setting: Setting, *, on_gpu: bool) -> int:
    """Bytes that the run needs at its peak, with what its process takes for itself."""
    with _one_at_a_time:
        counted = count(info, setting)
    steps = counted.steps + (counted.drawing if setting.previews else 0)
    peak = max(counted.encoding, steps)
    # in the machine's memory there is nowhere else to wait
    return int(peak + PROCESS if on_gpu else peak + RUNTIME + counted.waiting)


@functools.lru_cache(maxsize=64)
def count(info: ModelInfo, setting: Setting) -> Counted:
    """The sizes of a run, in a second or two."""
    packed = setting.storage != "full" or setting.offload
    family = _outline(info, setting.dtype, packed=packed, trains_text=setting.adapter.text_encoder)
    with _META:
        network = create(family, setting.adapter, seed=0)
    working = network.computing_in(setting.dtype)
    trains_text = bool(network.text_parameters)
    texts = text_encoders(family) if trains_text else ()
    kept, inside = _activations(family, working, setting, trains_text=trains_text)
    # value, gradient, two moments[, average]; a gradient on its way and what the layers compute with
    learned = _bytes(network) * (5 if setting.averaged else 4)
    if working is not network:
        learned += _bytes(network) + _bytes(working)
    return Counted(
        held=sum(_held(family.networks[name], setting) for name in ("unet", *texts)),
        waiting=sum(_bytes(each) for name, each in family.networks.items() if name not in ("unet", *texts)),
        vae=_bytes(family.networks["vae"]),
        learned=learned,
        kept=kept,
        inside=inside,
        pixels=setting.side**2,
        width=setting.dtype.itemsize,
    )


@functools.lru_cache(maxsize=4)
def _outline(info: ModelInfo, dtype: torch.dtype, *, packed: bool, trains_text: bool) -> Family:
    """The base without content; `packed` weights are those of layers that make them anew when asked."""
    kind = FAMILIES.get(info.family)
    family = kind.load(Outline(info.files), device=_META, dtype=dtype)
    if packed:
        for name in ("unet", *(text_encoders(family) if trains_text else ())):
            store(family.networks[name], "full", device=_META)
    return family


def _held(network: nn.Module, setting: Setting) -> int:
    """Bytes of a network's weights on the device."""
    packed = [part.shape.numel() for part in network.modules() if isinstance(part, Stored)]
    width = setting.dtype.itemsize
    rest = _bytes(network) - sum(packed) * width
    there = sum(heapq.nlargest(_AHEAD, packed)) if setting.offload else sum(packed)
    return int(rest + there * _STORED.get(setting.storage, width))


def _activations(family: Family, network: Network, setting: Setting, *, trains_text: bool) -> tuple[int, int]:
    """Bytes that a forward pass keeps, and the most that a recomputed block keeps inside."""
    owned = [part for each in (*family.networks.values(), network) for part in _tensors(each)]
    kept = _Kept(owned)
    network.train()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_FusedAttention())
        stack.enter_context(attached(family, network))
        if setting.fused:
            stack.enter_context(fused(family.components["unet"], _Keeping()))
        if setting.checkpointing:
            stack.enter_context(kept.inside_apart(blocks(family.components["unet"])))
        stack.enter_context(kept.counting())
        with torch.set_grad_enabled(trains_text):
            conditioning = _conditioning(family, setting)
        setting.objective.loss(family, _step(family, setting, conditioning))
    return kept.bytes, kept.inside


def _conditioning(family: Family, setting: Setting) -> Conditioning:
    ids = torch.empty(setting.batch, len(text_encoders(family)), 77, dtype=torch.int64, device=_META)
    size = [(setting.side, setting.side)] * setting.batch
    sizes = family.sizes(size, [(0, 0)] * setting.batch, size)
    encoded = family.encode_text(Tokens(ids), clip_skip=setting.clip_skip)
    return dataclasses.replace(encoded, sizes=None if sizes is None else sizes.to(_META))


def _step(family: Family, setting: Setting, conditioning: Conditioning) -> Step:
    side = setting.side // family.latent.factor
    latents = torch.empty(setting.batch, family.latent.channels, side, side, device=_META)
    return Step(
        latents=latents,
        noise=torch.empty_like(latents),
        timesteps=torch.empty(setting.batch, dtype=torch.int64, device=_META),
        tokens=None,
        conditioning=conditioning,
        sizes=None,
        weight=torch.empty(setting.batch, device=_META),
        mask=None,
    )


class _Kept:
    """What autograd keeps, in bytes: every piece of memory once, and without what is `owned` anyway."""

    def __init__(self, owned: Iterable[Tensor]) -> None:
        # tensors are held on to, so that no piece of memory is taken for another one
        self._known = {_piece(tensor): tensor for tensor in owned}
        self.bytes = 0
        self.inside = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """`tensor` counts, if it is new."""
        piece = _piece(tensor)
        if piece not in self._known:
            self._known[piece] = tensor
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, what is kept for a backward pass counts."""
        with saved_tensors_hooks(self.keep, lambda tensor: tensor):
            yield

    @contextmanager
    def inside_apart(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Inside, these blocks keep what they are given; the rest counts for the largest block alone."""
        before = [vars(block).get("forward") for block in blocks]
        try:
            for block in blocks:
                block.forward = self._apart(block.forward)
            yield
        finally:
            for block, forward in zip(blocks, before, strict=True):
                vars(block).pop("forward", None)
                if forward is not None:
                    block.forward = forward

    def _apart(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward_apart(*inputs: object, **named: object) -> Tensor:
            for given in (*inputs, *named.values()):
                if isinstance(given, Tensor):
                    self.keep(given)
            within = _Kept(self._known.values())
            with within.counting():
                result = forward(*inputs, **named)
            self.inside = max(self.inside, within.bytes)
            return result

        return forward_apart


class _Keeping:
    """Kernels that keep what our own keep for the backward pass, and compute nothing."""

    def fits(self, channels: int, groups: int) -> bool:
        return True

    def group_norm(self, x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
        return _kept(x, x.shape)

    def geglu(self, both: Tensor) -> Tensor:
        return _kept(both, (*both.shape[:-1], both.shape[-1] // 2))

    def geglu_slope(self, both: Tensor, gradient: Tensor) -> Tensor:
        return torch.empty_like(both)


def _kept(x: Tensor, shape: Sequence[int]) -> Tensor:
    out: Tensor = _Kernel.apply(x, shape)  # type: ignore[no-untyped-call]  # torch's gap
    return out


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Sequence[int]) -> Tensor:  # Any: torch's contexts are untyped
        ctx.save_for_backward(x)
        return x.new_empty(*shape)


class _FusedAttention(TorchFunctionMode):
    """Inside, attention keeps what its fused kernels keep, and not a weight for each pair of places."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # Any: torch's own form
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(network))


def _piece(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
