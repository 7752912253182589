"""The finished folder: a diffusers Stable Diffusion in fp16, as `StableDiffusionPipeline` loads it."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, __version__
from safetensors.torch import load_file, save_file

from . import models
from .diffuse import BETAS, TIMESTEPS
from .models import Scale

LIMIT_BYTES = 32 * 2**20
"""What the whole folder may weigh."""


def export(work: Path, folder: Path, scale: Scale) -> int:
    """`folder` is the base made of the work folder's parts; says its bytes, at most LIMIT_BYTES."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(work / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    words = models.tokenizer(work / "tokenizer")
    learned = load_file(work / "denoiser.safetensors")
    unet = models.unet(scale)
    unet.load_state_dict(_under("unet.", learned))
    unet.half().save_pretrained(folder / "unet")
    AutoencoderKL.from_pretrained(work / "vae").half().save_pretrained(folder / "vae")
    _save_text_encoder(models.text_encoder(scale, words), _under("text.", learned), folder / "text_encoder")
    _save_solver(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_index(), indent=2) + "\n")
    weight = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if weight > LIMIT_BYTES:
        raise SystemExit(f"{folder} weighs {weight} bytes, allowed are {LIMIT_BYTES}")
    return weight


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _save_text_encoder(text: torch.nn.Module, learned: dict[str, torch.Tensor], folder: Path) -> None:
    """Keys begin with `text_model.` as in every published Stable Diffusion 1, whatever the
    installed transformers calls them; it reads both. The configuration says float32, because
    transformers obeys it where diffusers' models load as float32 whatever the file holds."""
    text.save_pretrained(folder)
    tensors = {
        "text_model." + key.removeprefix("text_model."): value.half() for key, value in learned.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _save_solver(folder: Path) -> None:
    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        steps_offset=1,
    )
    solver.save_pretrained(folder)
    path = folder / "scheduler_config.json"
    settings = json.loads(path.read_text())
    settings.pop("lambda_min_clipped")  # -Infinity, the default, which strict JSON readers refuse
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _index() -> dict:
    nothing = [None, None]
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": __version__,
        "feature_extractor": nothing,
        "image_encoder": nothing,
        "requires_safety_checker": False,
        "safety_checker": nothing,
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
