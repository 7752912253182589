"""The three networks of the base, the judge's sizes aside, at full and at tiny scale.

The one decision: of the 16.7 M parameters that 32 MiB allow, two thirds go to the denoiser, and
there to 16x16 and 8x8 latents only: at 4x4 they would be exercised too rarely to be worth their
bytes.
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is; `picture` in pixels a side, `texture` too."""

    picture: int = 128
    texture: int = 160
    vae_channels: tuple[int, ...] = (32, 64, 96, 96)
    unet_channels: tuple[int, ...] = (160, 160)
    groups: int = 32
    text_width: int = 256
    text_layers: int = 4
    merges: int = 3000
    judge_channels: tuple[int, ...] = (32, 64, 128, 160)
    augmentations: int = 64
    vae_batch: int = 96
    judge_batch: int = 512
    batch: int = 512


FULL = Scale()
TINY = Scale(
    picture=32,
    texture=40,
    vae_channels=(8, 8, 8, 8),
    unet_channels=(16, 16),
    groups=8,
    text_width=32,
    text_layers=1,
    merges=60,
    judge_channels=(8, 8, 8, 8),
    augmentations=2,
    vae_batch=4,
    judge_batch=8,
    batch=8,
)
"""A scale at which the whole recipe runs on two cores in seconds; its pictures mean nothing."""


def autoencoder(scale: Scale) -> AutoencoderKL:
    """A fresh autoencoder: 8x downsampling, 4 latent channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=scale.vae_channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=min(16, scale.vae_channels[0]),
        sample_size=scale.picture,
        force_upcast=False,
    )


def tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer that `tokenizer.learn` left in the folder."""
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(scale: Scale, words: CLIPTokenizer) -> CLIPTextModel:
    """A fresh CLIP text encoder for this vocabulary, `text_width` wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=scale.text_width,
            intermediate_size=2 * scale.text_width,
            num_hidden_layers=scale.text_layers,
            num_attention_heads=4,
            max_position_embeddings=words.model_max_length,
            projection_dim=scale.text_width,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def unet(scale: Scale) -> UNet2DConditionModel:
    """A fresh denoiser of Stable Diffusion 1's blocks, with attention at every resolution."""
    levels = len(scale.unet_channels)
    return UNet2DConditionModel(
        sample_size=scale.picture // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=scale.unet_channels,
        layers_per_block=1,
        cross_attention_dim=scale.text_width,
        attention_head_dim=4,
        norm_num_groups=scale.groups,
    )
