"""Names of modules: one canonical name for a layer, whatever a file calls it.

Files spell a layer of Stable Diffusion in the block names of diffusers (`down_blocks.1.attentions.0`) or of
the original code, called sgm here (`input_blocks.4.1`), with dots or underscores, and a text encoder's
with or without `text_model`. The canonical name is diffusers' path with underscores, without
`text_model`; it is computed from the text alone, so that files can be compared without a model.
"""

import re
from typing import NamedTuple

from torch import nn

from sdlora.contracts import Family, Layer


class Name(NamedTuple):
    """A layer: component (`unet`, `text_encoder`, `text_encoder_2`) and canonical name in it."""

    component: str
    name: str


def name_of(layer: Layer) -> Name:
    """The canonical name of a layer."""
    return canonical(layer.component, layer.path)


def canonical(component: str, path: str) -> Name:
    """The canonical name of the layer that a file calls `path`, dotted or with underscores."""
    flat = path.replace(".", "_")
    if component == "unet":
        flat = flat.replace("_processor_", "_")
        flat = re.sub(r"_to_out$", "_to_out_0", flat)
        return Name(component, _from_sgm(flat))
    flat = flat.removeprefix("text_model_")
    return Name(component, re.sub(r"_self_attn_to_(q|k|v|out)$", r"_self_attn_\1_proj", flat))


def index(family: Family) -> dict[Name, Layer]:
    """Canonical name -> layer, of every module of the family that has a weight or a bias of its own."""
    return {
        canonical(component, path): Layer(component, path)
        for component, root in family.components.items()
        for path, module in root.named_modules()
        if path and _has_weight(module)
    }


def dotted(name: Name) -> str:
    """The path in diffusers' and transformers' modules of the layer with a canonical name."""
    return ".".join(_MODULE.findall(name.name))


def _has_weight(module: nn.Module) -> bool:
    return any(name in ("weight", "bias") for name, _ in module.named_parameters(recurse=False))


def to_sgm(name: str) -> str:
    """The canonical UNet name in the block names of the original code, as SDXL adapters are written."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return _TOP.get(name, name)
    side, block, part, layer, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if part == "downsamplers":
        return f"input_blocks_{3 * block + 3}_0_op"
    if part == "upsamplers":
        # Third in its place: SDXL's up-blocks that have an upsampler all have attention.
        return f"output_blocks_{3 * block + 2}_2_conv"
    resnet = part == "resnets"
    rest = _RESNET.get(rest, rest) if resnet else rest
    if side == "mid":
        return f"middle_block_{2 * layer if resnet else 1}_{rest}"
    number = 3 * block + layer + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks_{number}_{0 if resnet else 1}_{rest}"


def _from_sgm(name: str) -> str:
    if name in _TOP_BACK:
        return _TOP_BACK[name]
    if match := re.fullmatch(r"(input|output)_blocks_(\d{1,3})_(\d)_(.+)", name):
        side, number, part, rest = match[1], int(match[2]), match[3], match[4]
        block, layer = divmod(number - 1 if side == "input" else number, 3)
        where = "down_blocks" if side == "input" else "up_blocks"
        if rest == "op":
            return f"{where}_{block}_downsamplers_0_conv"
        if rest == "conv":
            return f"{where}_{block}_upsamplers_0_conv"
        return f"{where}_{block}_{_part(part == '0', layer, rest)}"
    if match := re.fullmatch(r"middle_block_(\d)_(.+)", name):
        return f"mid_block_{_part(match[1] != '1', int(match[1]) // 2, match[2])}"
    return name


def _part(resnet: bool, layer: int, rest: str) -> str:
    return f"resnets_{layer}_{_RESNET_BACK.get(rest, rest)}" if resnet else f"attentions_{layer}_{rest}"


_TOP = {
    "conv_in": "input_blocks_0_0",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
_RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_MODULE = re.compile(
    r"(?:(?:down|up|mid|transformer)_blocks?|(?:time|add)_embedding|time_emb_proj|conv_(?:in|out|norm_out|shortcut)"
    r"|proj_(?:in|out)|to_(?:q|k|v|out)|linear_\d|self_attn|(?:q|k|v|out)_proj|(?:final_)?layer_norm\d?"
    r"|(?:token|position)_embedding|text_projection)(?=_|$)|[^_]+"
)
_TOP_BACK = {sgm: name for name, sgm in _TOP.items()}
_RESNET_BACK = {sgm: name for name, sgm in _RESNET.items()}
_BLOCK = re.compile(
    r"(down|mid|up)_blocks?(?:_(\d{1,3}))?_(resnets|attentions|downsamplers|upsamplers)_(\d{1,3})_(.+)"
)
