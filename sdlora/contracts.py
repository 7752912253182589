"""What every plug-in provides, and the values that pass between the parts.

Shapes: B batch, C latent channels, H W pixels, h w latents, E text encoders, L tokens, D width, P pooled
width, r rank, O I features of a layer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sdlora.base.files import ModelFiles
from sdlora.layers import bias_of, response
from sdlora.noise import NoiseProcess


class Layer(NamedTuple):
    """A layer: its component (`unet`, `text_encoder`, `text_encoder_2`) and module path in it."""

    component: str
    path: str


@dataclass(frozen=True)
class Tokens:
    """Prompts as token ids [B,E,L] with a multiplier per token [B,E,L] (None: all 1). L is 77 a chunk."""

    ids: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device) -> "Tokens":
        """The same on a device."""
        return Tokens(self.ids.to(device), None if self.weights is None else self.weights.to(device))


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told: token states [B,L,D]; SDXL: also pooled [B,P], size ids [B,6] in pixels."""

    states: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """The same with `change` applied to every tensor."""
        parts = (None if part is None else change(part) for part in (self.pooled, self.sizes))
        return Conditioning(change(self.states), *parts)


@dataclass(frozen=True)
class LatentFormat:
    """How pixels [B,3,H,W] in [-1,1] become latents [B,channels,H/factor,W/factor] of about unit variance.

    latents = (vae output - shift) * scale.
    `preview` [channels+1,3] maps (latents, 1) to approximate RGB in [-1,1].
    """

    channels: int
    factor: int
    scale: float
    shift: float
    preview: tuple[tuple[float, float, float], ...]


class Family(Protocol):
    """One loaded base model. Everything above this asks a family, never diffusers or transformers."""

    name: ClassVar[str]  # "sd1", "sdxl"; what files and messages call it
    title: ClassVar[str]  # "Stable Diffusion 1.x"
    file_prefixes: ClassVar[
        Mapping[str, str]
    ]  # component -> prefix of kohya keys, e.g. {"unet": "lora_unet"}
    presets: ClassVar[Mapping[str, tuple[str, ...]]]  # "attention" -> regular expressions of module paths

    source: Path  # folder or file that it was loaded from
    hash: str  # SHA-256 of the weights that matter for caches and metadata
    native_size: int  # pixels; the side it was trained at
    latent: LatentFormat
    noise: NoiseProcess
    components: Mapping[str, nn.Module]  # where adapters may sit: "unet", "text_encoder"[, "text_encoder_2"]
    networks: Mapping[str, nn.Module]  # all there are: the components and "vae"
    device: torch.device
    dtype: torch.dtype  # of computation in the UNet

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """Whether the model on disk is of this family; told from configurations and shapes."""
        ...

    @classmethod
    def load(cls, files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> "Family":
        """The model on `device`, frozen. Raises ModelError when files are missing or damaged."""
        ...

    def tokenize(
        self,
        prompts: Sequence[str],
        *,
        weighted: bool = False,
        words: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> Tokens:
        """Ids on the CPU, all of one length. `words` stand for the ids that they name.

        With `weighted`, `(word:1.2)`, `[word]` and `BREAK` are understood.
        """
        ...

    def encode_text(self, tokens: Tokens, *, clip_skip: int = 1) -> Conditioning:
        """Conditioning of tokens that lie on the device; differentiable, no branch on values.

        `clip_skip` is as everywhere: 1 the text encoder's last layer, 2 the one before. SD 2.x and SDXL were
        made for that one and never take the last.
        """
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] -> latents [B,C,h,w], fp32: the mean of the VAE's distribution.

        Raises ModelError when a latent is not finite.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B,C,h,w] -> pixels [B,3,H,W] in [-1,1], fp32, finite."""
        ...

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's raw output (epsilon or v) for noisy latents [B,C,h,w] at timesteps [B] in [0,1000).

        Differentiable.
        """
        ...

    def sizes(
        self,
        original: Sequence[tuple[int, int]],
        crops: Sequence[tuple[int, int]],
        target: Sequence[tuple[int, int]],
    ) -> Tensor | None:
        """SDXL's size ids [B,6] from (height, width), (top, left), (height, width) in pixels.

        None where a family has none.
        """
        ...


class Adapter(nn.Module):
    """The change of one layer, as trainable tensors or as read from a file.

    Subclasses live in `sdlora.adapters`, one kind a file, and register with KINDS (to be read) and, with
    their option tree, SPECS (to be trained).
    """

    kind: ClassVar[str]
    # tensor names in a file after the module's key, e.g. "lora_down.weight"; the first is always there
    suffixes: ClassVar[tuple[str, ...]]

    # whether its parameters serve only in the number format of the layer, so that they can be kept in it
    cast_whole: ClassVar[bool] = False
    # layers that it can change
    layer_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)

    @classmethod
    def recognises(cls, suffixes: frozenset[str]) -> bool:
        """Whether a layer with exactly these tensors is of this kind: all are known, the first is there."""
        return cls.suffixes[0] in suffixes and suffixes <= set(cls.suffixes)

    @classmethod
    def create(
        cls,
        layer: nn.Module,
        spec: Any,  # Any: the kind's option tree
        generator: torch.Generator,
    ) -> "Adapter":
        """A new adapter of `layer`, fp32 on its device, that changes nothing. `generator` is on the CPU."""
        raise NotImplementedError

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Adapter":
        """The adapter held by `tensors` (suffix -> tensor).

        Raises AdapterError if shapes do not fit `layer`.
        """
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Suffix -> tensor as a file holds them."""
        raise NotImplementedError

    def delta(self, weight: Tensor) -> Tensor:
        """The change of `weight` (the layer's own, e.g. [O,I] or [O,I,k,k]) at multiplier 1, in fp32."""
        raise NotImplementedError

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        """The change of `bias` (the layer's own [O], or None) at multiplier 1, None where it has none."""
        return None

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """The change of `layer(x)` at multiplier 1; kinds with a cheaper way than by the delta take it."""
        return response(layer, x, self.delta(layer.get_parameter("weight")), self.bias_delta(bias_of(layer)))

    def adapted(self, x: Tensor, layer: nn.Module, plain: Callable[[Tensor], Tensor]) -> Tensor:
        """What `layer`, which answers `plain(x)`, answers with the change in it.

        Kinds that can do both in fewer operations do.
        """
        change: Tensor = self(x, layer)
        return plain(x) + change


class Step(NamedTuple):
    """One micro-batch as static tensors on the device: all randomness was drawn before.

    latents, noise [B,C,h,w] fp32; timesteps [B] int64; tokens [B,E,L] int64 (text encoder trained) or
    conditioning (cached); sizes [B,6] | None; weight [B] (loss weight of each sample);
    mask [B,1,h,w] | None (loss weight of each place); members: of the runs that train together those whose
    samples these are, one after another, or () when they are of all; keeps: what the base makes of these
    captions is to stay, so that `target` [B,C,h,w] becomes the base's own answer (else None: the noise's).
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    tokens: Tensor | None
    conditioning: Conditioning | None
    sizes: Tensor | None
    weight: Tensor
    mask: Tensor | None
    members: tuple[int, ...] = ()
    keeps: bool = False
    target: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Step":
        """The same with `change` applied to every tensor."""

        def changed(part: Tensor | None) -> Tensor | None:
            return None if part is None else change(part)

        return self._replace(
            latents=change(self.latents),
            noise=change(self.noise),
            timesteps=change(self.timesteps),
            tokens=changed(self.tokens),
            conditioning=None if self.conditioning is None else self.conditioning.map(change),
            sizes=changed(self.sizes),
            weight=change(self.weight),
            mask=changed(self.mask),
            target=changed(self.target),
        )


class Objective(Protocol):
    """An option tree of `sdlora.objectives`; frozen dataclass with the class variable `kind`."""

    kind: ClassVar[str]
    preservation: float  # weight of what keeps the base's answers to captions without the trigger; 0 is none

    def prediction(self, family: Family, step: Step) -> Tensor:
        """What the UNet says of the noisy latents of `step` [B,C,h,w], fp32."""
        ...

    def loss(self, family: Family, step: Step) -> Tensor:
        """Loss of each sample [B], weighted, against the step's target where it has one.

        No Python branch on tensor values, no host copy.
        """
        ...

    def timesteps(self, generator: torch.Generator, count: int) -> Tensor:
        """Timesteps [count], int64, in [0, 1000), on the CPU."""
        ...

    def shape_noise(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """The noise to add in place of white `noise` [C,h,w] (noise offset and the like), on the CPU."""
        ...


class OptimizerSpec(Protocol):
    """An option tree of `sdlora.optimizers`; frozen dataclass with the class variable `kind`."""

    kind: ClassVar[str]
    lr: float  # peak learning rate of UNet adapters
    text_lr: float  # peak learning rate of text-encoder adapters

    def build(
        self, groups: Iterable[dict[str, Any]], *, device: torch.device
    ) -> torch.optim.Optimizer:  # Any: torch's own form
        """The optimizer of parameter groups `{"params": ..., "lr": ..., "name": ...}`, capturable on CUDA.

        As torch's fused ones it divides gradients by its attribute `grad_scale` and changes nothing where
        `found_inf` is 1 (both tensors []); each group's `lr` is a tensor [] on the device.
        """
        ...
