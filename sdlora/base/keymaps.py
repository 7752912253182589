"""Names of tensors in the original layout of Stable Diffusion, and what diffusers calls them.

The original code numbers a UNet's blocks in one row (`input_blocks.4.1` is the first attention of the second
level), counts a decoder's levels from the other end, and keeps query, key and value of OpenCLIP in one
tensor. Every function takes a name without its component's prefix.
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from torch import Tensor

_LEVELS = range(4)

Renamed = Iterator[tuple[str, Tensor]]


def unet(name: str, tensor: Tensor) -> Renamed:
    """A UNet's tensor under its name in diffusers."""
    place = next((place for place in _UNET if name.startswith(place)), "")
    inner = name[len(place) :]
    if ".resnets." in _UNET.get(place, ""):
        inner = _swapped(inner, _RESNET)
    yield _UNET.get(place, "") + inner, tensor


def autoencoder(name: str, tensor: Tensor) -> Renamed:
    """An autoencoder's tensor; its attention's 1x1 convolutions become matrices."""
    levels = len(_LEVELS)
    name = re.sub(
        r"decoder\.up\.(\d)\.", lambda match: f"decoder.up_blocks.{levels - 1 - int(match[1])}.", name
    )
    for pattern, replacement in _VAE:
        name = re.sub(pattern, replacement, name)
    attention = ".attentions." in name and tensor.ndim == 4
    yield name, tensor.reshape(tensor.shape[:2]) if attention else tensor


def clip(name: str, tensor: Tensor) -> Renamed:
    """A tensor of OpenAI's CLIP, which original files hold as transformers names it."""
    yield name, tensor


def open_clip(name: str, tensor: Tensor) -> Renamed:
    """A tensor of OpenCLIP's text encoder; the joint projection of attention is split in three."""
    if name == "logit_scale":  # of contrastive training; no part of the encoder
        return
    if name == "text_projection":
        yield "text_projection.weight", tensor.T.contiguous()
        return
    if name == "text_projection.weight":  # as tools write it that load it as a layer
        yield name, tensor
        return
    for pattern, replacement in _OPEN_CLIP:
        name = re.sub(pattern, replacement, name)
    if match := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", name):
        for part, third in zip("qkv", tensor.chunk(3), strict=True):
            yield f"text_model.{match[1]}{part}_proj.{match[2]}", third.contiguous()
        return
    yield f"text_model.{name}", tensor


def _unet_places() -> Iterator[tuple[str, str]]:
    yield from (
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("middle_block.0.", "mid_block.resnets.0."),
        ("middle_block.1.", "mid_block.attentions.0."),
        ("middle_block.2.", "mid_block.resnets.1."),
        # a level without attention has its upsampler in attention's place
        ("output_blocks.2.1.conv.", "up_blocks.0.upsamplers.0.conv."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
    )
    for level in _LEVELS:
        yield f"input_blocks.{3 * level + 3}.0.op.", f"down_blocks.{level}.downsamplers.0.conv."
        yield f"output_blocks.{3 * level + 2}.2.conv.", f"up_blocks.{level}.upsamplers.0.conv."
        for layer in range(2):
            yield f"input_blocks.{3 * level + layer + 1}.0.", f"down_blocks.{level}.resnets.{layer}."
            yield f"input_blocks.{3 * level + layer + 1}.1.", f"down_blocks.{level}.attentions.{layer}."
        for layer in range(3):
            yield f"output_blocks.{3 * level + layer}.0.", f"up_blocks.{level}.resnets.{layer}."
            yield f"output_blocks.{3 * level + layer}.1.", f"up_blocks.{level}.attentions.{layer}."


def _swapped(name: str, table: Mapping[str, str]) -> str:
    place = next((place for place in table if name.startswith(place)), "")
    return table.get(place, "") + name[len(place) :]


_UNET = MappingProxyType(dict(_unet_places()))
_RESNET = MappingProxyType(
    {
        "in_layers.0.": "norm1.",
        "in_layers.2.": "conv1.",
        "emb_layers.1.": "time_emb_proj.",
        "out_layers.0.": "norm2.",
        "out_layers.3.": "conv2.",
        "skip_connection.": "conv_shortcut.",
    }
)
_VAE = (
    (r"encoder\.down\.(\d)\.", r"encoder.down_blocks.\1."),
    (r"\.block\.(\d)\.", r".resnets.\1."),
    (r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.attentions\.0\.norm\.", ".attentions.0.group_norm."),
    (r"\.attentions\.0\.([qkv])\.", r".attentions.0.to_\1."),
    (r"\.attentions\.0\.proj_out\.", ".attentions.0.to_out.0."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)
_OPEN_CLIP = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)
