"""A base model in one `.safetensors` file, as A1111 and ComfyUI users have it.

Such a file holds weights only. What it leaves out, sizes and the tokenizer, ships with sdlora, so that it
loads without a network. Prediction type and zero-terminal SNR are read from the markers that trainers leave.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files as resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from sdlora.base import keymaps
from sdlora.base.files import Config, read_header, read_tensors
from sdlora.errors import ModelError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


@dataclass(frozen=True)
class Part:
    """Where a component lies in the file, and how its names are read. `left_out` begins what is not used."""

    prefix: str
    rename: Callable[[str, Tensor], keymaps.Renamed]
    left_out: tuple[str, ...] = ()


_UNET = Part("model.diffusion_model.", keymaps.unet)
# what a training of the VAE leaves behind
_VAE = Part("first_stage_model.", keymaps.autoencoder, ("loss.", "model_ema."))
LAYOUTS: Mapping[str, Mapping[str, Part]] = MappingProxyType(
    {
        "sd1": {
            "unet": _UNET,
            "vae": _VAE,
            "text_encoder": Part("cond_stage_model.transformer.", keymaps.clip),
        },
        "sd2": {
            "unet": _UNET,
            "vae": _VAE,
            # the family reads the states before the last layer, so the last is not even loaded
            "text_encoder": Part(
                "cond_stage_model.model.",
                keymaps.open_clip,
                ("transformer.resblocks.23.", "text_projection"),
            ),
        },
        "sdxl": {
            "unet": _UNET,
            "vae": _VAE,
            "text_encoder": Part("conditioner.embedders.0.transformer.", keymaps.clip),
            "text_encoder_2": Part("conditioner.embedders.1.model.", keymaps.open_clip),
        },
    }
)


# Latents a side of SD 2's published models by what they predict, which nothing else in a file tells apart.
SD2_SIDES = MappingProxyType({"v_prediction": 96, "epsilon": 64})


class Rest(Protocol):
    """What a single file leaves out."""

    def config(self, component: str) -> Config: ...

    def tokenizer(self, component: str) -> "CLIPTokenizer": ...


@dataclass(frozen=True)
class ShippedRest:
    """The configurations and the tokenizer of a family that ship with sdlora."""

    family: str

    def config(self, component: str) -> Config:
        """The configuration of a component at full size."""
        found: Config = self._configs[component]
        return found

    def tokenizer(self, component: str) -> "CLIPTokenizer":
        """CLIP's tokenizer; OpenCLIP's pads with `!`, its token 0."""
        from sdlora.base.vocabulary import clip_tokenizer  # transformers takes seconds to import

        encoder = LAYOUTS[self.family][component.replace("tokenizer", "text_encoder")]
        return clip_tokenizer("!" if encoder.rename is keymaps.open_clip else "<|endoftext|>")

    @cached_property
    def _configs(self) -> Mapping[str, Config]:
        text = resources("sdlora").joinpath("assets", "families", f"{self.family}.json").read_text()
        configs: Mapping[str, Config] = json.loads(text)
        return configs


class OriginalFile:
    """A single file of one of the LAYOUTS; `noise` overrides what it says of its scheduler.

    Of a file that is elsewhere, `header` is enough to tell what it is. Raises ModelError when it is none.
    """

    def __init__(
        self,
        path: Path,
        rest: Rest | None = None,
        *,
        header: Config | None = None,
        noise: Config = MappingProxyType({}),
    ) -> None:
        self.path, self._noise = path, noise
        self._header = header or read_header(path)
        self.family = self._recognised()
        self._parts = LAYOUTS[self.family]
        self._rest = rest or ShippedRest(self.family)
        self.components = frozenset(self._parts)

    @property
    def weights(self) -> tuple[Path, ...]:
        return (self.path,)

    def config(self, component: str) -> Config:
        config = dict(self._rest.config(component))
        if component == "unet":
            first = self._header[f"{_UNET.prefix}input_blocks.0.0.weight"]
            config["in_channels"] = first["shape"][1]
            config["sample_size"] = self._side() or config["sample_size"]
        if component == "scheduler":
            config |= self._told_of_noise()
        return config

    def tensors(self, component: str) -> Iterator[tuple[str, Tensor]]:
        part = self._parts[component]
        for name, tensor in read_tensors(self.path, prefix=part.prefix):
            inner = name.removeprefix(part.prefix)
            if not inner.startswith(part.left_out):
                yield from part.rename(inner, tensor)

    def tokenizer(self, component: str) -> "CLIPTokenizer":
        return self._rest.tokenizer(component)

    def _recognised(self) -> str:
        """The layout whose every component is in the file."""
        prefixes = {name: {part.prefix for part in parts.values()} for name, parts in LAYOUTS.items()}
        for name, wanted in prefixes.items():
            there = all(any(key.startswith(prefix) for key in self._header) for prefix in wanted)
            if there and not any(key.startswith(_OTHER_NOISE) for key in self._header):
                return name
        raise not_a_base(self.path, self._header)

    def _side(self) -> int:
        """The latents a side that the model was trained at, told by the file; 0 when it does not say."""
        stated = str((self._header.get("__metadata__") or {}).get("modelspec.resolution", ""))
        if size := re.fullmatch(r"(\d{2,4})x(\d{2,4})", stated):
            return round(math.sqrt(int(size[1]) * int(size[2]))) // 8
        return (
            SD2_SIDES.get(str(self._told_of_noise().get("prediction_type")), 0) if self.family == "sd2" else 0
        )

    def _told_of_noise(self) -> Config:
        """Prediction type and zero-terminal SNR, where a person or the file says something of them."""
        metadata = self._header.get("__metadata__") or {}
        stated = str(metadata.get("modelspec.prediction_type", "")).lower()
        told: dict[str, object] = {}
        if "v_pred" in self._header or stated in ("v", "v_prediction", "v-prediction"):
            told["prediction_type"] = "v_prediction"
        elif stated in ("epsilon", "eps"):
            told["prediction_type"] = "epsilon"
        if "ztsnr" in self._header:
            told["rescale_betas_zero_snr"] = True
        return {**told, **self._noise}


_HINT = "Choose an SD 1.x, SD 2.x or SDXL model."
_OTHER_NOISE = "edm_"
_FOREIGN = (
    # what a tensor's name holds -> what the file is
    ("lora_", "an adapter"),
    ("lora.down.", "an adapter"),
    (".hada_w1", "an adapter"),
    (".lokr_w1", "an adapter"),
    (".oft_", "an adapter"),
    (_OTHER_NOISE, "a model of EDM's noise, as CosXL and Playground 2.5 are"),
    ("double_blocks.", "a Flux model"),
    ("single_transformer_blocks.", "a Flux model"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("control_model.", "a ControlNet"),
    ("input_hint_block.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("conditioner.embedders.0.model.", "the SDXL refiner"),
    ("string_to_param", "an embedding"),
    ("emb_params", "an embedding"),
    ("model.diffusion_model.input_blocks.", "a UNet without a text encoder or VAE"),
    ("decoder.up", "a VAE"),
    ("down_blocks.0.resnets.", "one network of a model folder"),
    ("encoder.layers.", "a text encoder"),
)


def not_a_base(path: Path, names: Mapping[str, object]) -> ModelError:
    """The error that says what a file without a base model is."""
    for mark, noun in _FOREIGN:
        if any(mark in name for name in names):
            hint = "Choose it as an adapter instead." if noun == "an adapter" else _HINT
            return ModelError(f"{path} is {noun}, not a base model that sdlora knows.", hint)
    return ModelError(f"{path} is no Stable Diffusion model.", _HINT)
