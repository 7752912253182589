"""Base models of the true sizes with random weights, made on the device in seconds."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdlora.base.autoencoder import Autoencoder
from sdlora.contracts import Family
from sdlora.families.sd1 import StableDiffusion1
from sdlora.families.sdxl import StableDiffusionXL
from sdlora.noise import NoiseProcess
from tests.models import make_tokenizer

_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
_SDXL_UNET = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


def make(name: str, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Family:
    """The family `sd1` or `sdxl`, frozen, waiting for `device`; its tokenizer lies in `folder`."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder / "tokenizer")
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with device:
        small = CLIPTextModel(CLIPTextConfig(**_CLIP_L, **ends))
        vae = AutoencoderKL(**_VAE)
        if name == "sd1":
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        else:
            unet = UNet2DConditionModel(**_SDXL_UNET)
            large = CLIPTextModelWithProjection(
                CLIPTextConfig(**_CLIP_G, **ends, projection_dim=1280, hidden_act="gelu")
            )
    shared = {
        "source": folder,
        "hash": f"random {name}",
        "noise": NoiseProcess.scaled_linear(),
        "autoencoder": Autoencoder(_frozen(vae, torch.float32), dtype=dtype),
        "unet": _frozen(unet, dtype),
        "text_encoder": _frozen(small, dtype),
        "device": device,
        "dtype": dtype,
    }
    if name == "sd1":
        return StableDiffusion1(**shared, native_size=512, tokenizer=tokenizer)
    second = _frozen(large, dtype)
    return StableDiffusionXL(
        **shared, native_size=1024, text_encoder_2=second, tokenizers=(tokenizer, tokenizer)
    )


def _frozen(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    return model.to("cpu", dtype).requires_grad_(False).eval()
