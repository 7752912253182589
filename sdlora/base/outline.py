"""A base model as sizes alone: its tensors lie on torch's meta device, and have no content."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdlora.base.files import Config, ModelFiles
from sdlora.base.networks import hollow

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class Outline:
    """The model files `of`, of which only configurations are read: a family loads from it in a second.

    Its tensors have no content, whatever device they are asked for, and its hash is that of nothing. What it
    predicts is given out as v, for without content that cannot be measured, and sizes do not depend on it.
    """

    def __init__(self, of: ModelFiles) -> None:
        self.of, self.path, self.components = of, of.path, of.components

    @property
    def weights(self) -> tuple[Path, ...]:
        return ()

    def config(self, component: str) -> Config:
        config = self.of.config(component)
        return {**config, "prediction_type": "v_prediction"} if component == "scheduler" else config

    def tensors(self, component: str) -> Iterator[tuple[str, Tensor]]:
        config = self.config(component)
        if component in ("unet", "vae"):
            kind = UNet2DConditionModel if component == "unet" else AutoencoderKL
            yield from hollow(kind, config).state_dict().items()
            return
        projected = component == "text_encoder_2"
        with torch.device("meta"):
            clip = CLIPTextModelWithProjection if projected else CLIPTextModel
            yield from clip(CLIPTextConfig.from_dict(dict(config))).state_dict().items()

    def tokenizer(self, component: str) -> "CLIPTokenizer":
        return self.of.tokenizer(component)
