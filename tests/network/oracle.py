"""Files of other writers, and the deltas that they must give, both by hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdlora.contracts import Layer

Factors = dict[str, tuple[Tensor, Tensor, float]]
"""Dotted path -> (down, up, alpha)."""


@dataclass
class Bare:
    """Networks without what else makes a family: enough for reading files."""

    name: str
    title: str
    components: Mapping[str, nn.Module]
    presets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def sd15() -> Bare:
    """The networks of Stable Diffusion 1.5 in their true sizes, without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(_text(768, 3072, 12))
    return Bare("sd1", "Stable Diffusion 1.x", {"unet": unet, "text_encoder": text})


def sdxl() -> Bare:
    """The networks of SDXL in their true sizes, without memory."""
    with torch.device("meta"):
        components = {
            "unet": sdxl_unet((320, 640, 1280), (1, 2, 10), 2048, 2816),
            "text_encoder": CLIPTextModel(_text(768, 3072, 12)),
            "text_encoder_2": CLIPTextModelWithProjection(_text(1280, 5120, 32)),
        }
    return Bare("sdxl", "Stable Diffusion XL", components)


def sdxl_unet(
    widths: tuple[int, ...], depths: tuple[int, ...], cross: int, projection: int
) -> UNet2DConditionModel:
    """A UNet of SDXL's topology."""
    return UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        transformer_layers_per_block=depths,
        attention_head_dim=8,
        cross_attention_dim=cross,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256 if projection > 1000 else 8,
        projection_class_embeddings_input_dim=projection,
        norm_num_groups=8,
    )


def tiny_sdxl() -> Bare:
    """SDXL's topology at tiny width, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        components = {
            "unet": sdxl_unet((32, 64, 64), (1, 2, 3), 32, 80),
            "text_encoder": CLIPTextModel(_text(32, 64, 3)),
            "text_encoder_2": CLIPTextModelWithProjection(_text(64, 96, 4)),
        }
    return Bare("sdxl", "Stable Diffusion XL", {n: m.requires_grad_(False) for n, m in components.items()})


def _text(width: int, inner: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=100,
        projection_dim=width,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def factors(root: nn.Module, wanted: Callable[[str], bool], *, seed: int = 0, rank: int = 2) -> Factors:
    """Random LoRA factors of the wanted layers; rank and alpha differ from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    found: Factors = {}
    for number, (path, module) in enumerate(root.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)) and wanted(path):
            outputs, inputs, *kernel = module.weight.shape
            r = rank + number % 3
            down = torch.randn(r, inputs, *kernel, generator=generator)
            up = torch.randn(outputs, r, *(1 for _ in kernel), generator=generator)
            found[path] = (down, up, 0.5 * r if number % 2 else 1.0 * r)
    return found


def attention(path: str) -> bool:
    """Whether sd-scripts adapts the layer by default."""
    return ".attentions." in path or ".self_attn." in path or ".mlp." in path


def deltas(component: str, held: Factors, *, scaled: bool = True) -> dict[Layer, Tensor]:
    """alpha / rank * up @ down of every layer, in the shape [O, I...]."""
    return {
        Layer(component, path): (alpha / down.shape[0] if scaled else 1.0)
        * (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
        for path, (down, up, alpha) in held.items()
    }


def pairs(held: Factors, stem: Callable[[str], str], down_name: str, up_name: str) -> dict[str, Tensor]:
    """The factors under the keys stem(path) + name."""
    tensors = {}
    for path, (down, up, _) in held.items():
        tensors[stem(path) + down_name] = down
        tensors[stem(path) + up_name] = up
    return tensors


def alphas(held: Factors, stem: Callable[[str], str]) -> dict[str, Tensor]:
    """The alphas under stem(path) + ".alpha"."""
    return {f"{stem(path)}.alpha": torch.tensor(alpha) for path, (_, _, alpha) in held.items()}


def flat(prefix: str) -> Callable[[str], str]:
    """kohya's stem of a dotted path."""
    return lambda path: prefix + path.replace(".", "_")


def processor(prefix: str) -> Callable[[str], str]:
    """The stem that diffusers' attention processors had: to_out.0 is to_out, and `processor` in between."""

    def stem(path: str) -> str:
        module, _, name = path.removesuffix(".0").rpartition(".")
        return f"{prefix}{module}.processor.{name}"

    return stem
