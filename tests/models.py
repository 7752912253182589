"""Base models of true topology and tiny width, with random weights of a fixed seed."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = ("a", "an", "of", "in", "photo", "painting", "red", "green", "blue", "cat", "dog", "house", "style")


def make_sd1(folder: Path, *, sample_size: int = 8) -> Path:
    """`folder` is a Stable Diffusion 1 in diffusers' layout: 16 UNet blocks with attention, 12 CLIP layers.

    `sample_size` latents a side, eight pixels each.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = make_tokenizer(folder / "tokenizer")
        networks = {
            "unet": make_unet(sample_size=sample_size, attention_head_dim=8),
            "vae": make_vae(scaling_factor=0.18215),
            "text_encoder": CLIPTextModel(text_config(tokenizer, layers=12)),
        }
    save(folder, "StableDiffusionPipeline", networks, scheduler=make_scheduler())
    return folder


def make_sd2(folder: Path, *, prediction: str = "v_prediction") -> Path:
    """`folder` is a Stable Diffusion 2: linear projections, 23 layers of OpenCLIP's encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = make_tokenizer(folder / "tokenizer", pad="!")
        networks = {
            "unet": make_unet(attention_head_dim=[4, 8, 8, 8], use_linear_projection=True),
            "vae": make_vae(scaling_factor=0.18215),
            "text_encoder": CLIPTextModel(text_config(tokenizer, layers=23, hidden_act="gelu")),
        }
    save(folder, "StableDiffusionPipeline", networks, scheduler=make_scheduler(prediction_type=prediction))
    return folder


def make_sdxl(folder: Path) -> Path:
    """`folder` is an SDXL: 70 transformer blocks in 11 places, text encoders of 12 and 32 layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = make_tokenizer(folder / "tokenizer")
        second = make_tokenizer(folder / "tokenizer_2", pad="!")
        unet = make_unet(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=[4, 8, 8],
            cross_attention_dim=32 + 48,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 40,
        )
        wide = {"hidden_size": 48, "hidden_act": "gelu", "projection_dim": 40}
        networks = {
            "unet": unet,
            "vae": make_vae(scaling_factor=0.13025),
            "text_encoder": CLIPTextModel(text_config(first, layers=12)),
            "text_encoder_2": CLIPTextModelWithProjection(text_config(second, layers=32, **wide)),
        }
    save(folder, "StableDiffusionXLPipeline", networks, scheduler=make_scheduler())
    return folder


def make_unet(**changes: object) -> UNet2DConditionModel:
    """Stable Diffusion 1's UNet, 32 to 64 channels wide."""
    known = {
        "sample_size": 8,
        "block_out_channels": (32, 64, 64, 64),
        "layers_per_block": 2,
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**known, **changes})


def save(folder: Path, pipeline: str, networks: Mapping[str, nn.Module], *, scheduler: DDIMScheduler) -> None:
    """`folder` holds the networks as the diffusers pipeline of that name reads them."""
    tokenizers = sorted(path.name for path in folder.glob("tokenizer*"))
    parts = {name: type(network).__name__ for name, network in networks.items()}
    index: dict[str, object] = {"_class_name": pipeline, "scheduler": ["diffusers", type(scheduler).__name__]}
    for name, kind in {**parts, **dict.fromkeys(tokenizers, "CLIPTokenizer")}.items():
        index[name] = ["transformers" if kind.startswith("CLIP") else "diffusers", kind]
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index))


def make_vae(*, scaling_factor: float) -> AutoencoderKL:
    """An eightfold autoencoder of four latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def make_scheduler(**changes: object) -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    known = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(
        **{**known, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **changes}
    )


def text_config(tokenizer: CLIPTokenizer, *, layers: int, **changes: object) -> CLIPTextConfig:
    """A CLIP text encoder 32 wide that fits the tokenizer."""
    return CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
            "projection_dim": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **changes,
        }
    )


def make_tokenizer(folder: Path, *, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer in `folder` that knows WORDS as whole tokens and everything else as bytes."""
    letters = _byte_letters()
    merges = list(dict.fromkeys(pair for word in WORDS for pair in _merges_of(word)))
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {**special, "pad_token": pad, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def _merges_of(word: str) -> list[tuple[str, str]]:
    """The merges that build `word` from its letters, from the left."""
    parts = [*word[:-1], word[-1] + "</w>"]
    merges = []
    while len(parts) > 1:
        merges.append((parts[0], parts[1]))
        parts[:2] = [parts[0] + parts[1]]
    return merges


def _byte_letters() -> list[str]:
    """The letter that byte-level BPE has for each of the 256 bytes, in CLIP's order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(code) for code in (*plain, *range(256, 256 + 256 - len(plain)))]
