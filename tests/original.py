"""Single files in the original layout, made from folders of the tiny models.

The names are written here a second time, the other way round, from the structure of the original code.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def write_original(folder: Path, file: Path, *, family: str, **markers: Tensor) -> Path:
    """`file` holds the folder's weights as the original code of the family names them, and `markers`."""
    state = {**markers, **dict(_unet(_read(folder, "unet"))), **dict(_vae(_read(folder, "vae")))}
    texts = {
        "sd1": {"text_encoder": "cond_stage_model.transformer."},
        "sd2": {"text_encoder": "cond_stage_model.model."},
        "sdxl": {
            "text_encoder": "conditioner.embedders.0.transformer.",
            "text_encoder_2": "conditioner.embedders.1.model.",
        },
    }
    for component, prefix in texts[family].items():
        rename = _clip if prefix.endswith("transformer.") else _open_clip
        state |= {prefix + name: tensor for name, tensor in rename(_read(folder, component))}
    if family == "sd2":  # its last layer, which nobody uses
        state["cond_stage_model.model.transformer.resblocks.23.ln_1.weight"] = torch.ones(32)
        state["cond_stage_model.model.text_projection"] = torch.ones(32, 32)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


def _read(folder: Path, component: str) -> dict[str, Tensor]:
    (file,) = (folder / component).glob("*.safetensors")
    return load_file(file)


def _unet(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    attentive = {name.split(".attentions")[0] for name in state if ".attentions." in name}
    for name, tensor in state.items():
        yield f"model.diffusion_model.{_unet_name(name, attentive)}", tensor


def _unet_name(name: str, attentive: set[str]) -> str:
    for ours, theirs in TOP.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    side, level, kind, index, rest = re.fullmatch(
        r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.(\w+)\.(\d)\.(.+)", name
    ).groups()
    if kind == "resnets":
        part, _, end = rest.rpartition(".")
        rest = f"{RESNET[part]}.{end}"
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * int(level) + 3}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if f"up_blocks.{level}" in attentive else 1
        return f"output_blocks.{3 * int(level) + 2}.{place}.{rest}"
    number = 3 * int(level) + int(index)
    block = f"input_blocks.{number + 1}" if side == "down_blocks" else f"output_blocks.{number}"
    return f"{block}.{1 if kind == 'attentions' else 0}.{rest}"


def _vae(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        if match := re.match(r"decoder\.up_blocks\.(\d)", name):
            name = name.replace(match[0], f"decoder.up.{3 - int(match[1])}")
        name = name.replace("down_blocks", "down").replace("conv_norm_out", "norm_out")
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace(
            "mid_block.resnets.1", "mid.block_2"
        )
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            # the original's projections are 1x1 convolutions
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        name = name.replace("resnets", "block").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
        yield f"first_stage_model.{name}", tensor


def _clip(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        yield f"text_model.{name.removeprefix('text_model.')}", tensor
    yield "text_model.embeddings.position_ids", torch.arange(77)[None]


def _open_clip(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    table = {
        "text_model.": "",
        "embeddings.token_embedding.": "token_embedding.",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.": "ln_final.",
        "encoder.layers.": "transformer.resblocks.",
        "layer_norm": "ln_",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn": "attn",
    }
    for whole, tensor in state.items():
        name = whole
        for ours, theirs in table.items():
            name = name.replace(ours, theirs)
        if name == "text_projection.weight":
            yield "text_projection", tensor.T
        elif "q_proj" in name:
            thirds = [state[whole.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            yield name.replace("q_proj.", "in_proj_"), torch.cat(thirds)
        elif "k_proj" not in name and "v_proj" not in name:
            yield name, tensor
    yield "logit_scale", torch.tensor(4.6)
