"""Flags of kohya's sd-scripts (`train_network.py`), and what says the same here."""

import re
from collections.abc import Mapping
from types import MappingProxyType

FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "pretrained_model_name_or_path": "--base MODEL",
        "train_data_dir": "sdlora train FOLDER",
        "output_dir": "--output FILE",
        "output_name": "--output.name",
        "network_module": "--adapter.kind",
        "network_dim": "--adapter.rank",
        "network_alpha": "--adapter.alpha",
        "network_dropout": "--adapter.dropout",
        "network_train_unet_only": "--adapter.text_encoder false",
        "network_train_text_encoder_only": "--adapter.unet false",
        "learning_rate": "--optimizer.lr",
        "unet_lr": "--optimizer.lr",
        "text_encoder_lr": "--optimizer.text_lr",
        "optimizer_type": "--optimizer.kind",
        "lr_scheduler": "--schedule.shape",
        "lr_warmup_steps": "--schedule.warmup, a fraction of the run",
        "max_train_steps": "--loop.steps",
        "max_train_epochs": "--loop.steps; docs/datasets.md tells how many make a pass",
        "train_batch_size": "--loop.batch_size",
        "gradient_accumulation_steps": "--loop.accumulate",
        "max_grad_norm": "--loop.clip",
        "seed": "--loop.seed",
        "mixed_precision": "--loop.precision",
        "save_precision": "--output.dtype",
        "gradient_checkpointing": "--loop.checkpointing",
        "blocks_to_swap": "--loop.offload",
        "fp8_base": "--base.storage fp8",
        "torch_compile": "--loop.compile always",
        "save_every_n_steps": "--loop.save_every",
        "sample_every_n_steps": "--preview.every",
        "sample_prompts": "--preview.prompts, once for each",
        "resolution": "--data.resolution, one side",
        "bucket_reso_steps": "--data.bucket_step",
        "flip_aug": "--data.flip",
        "shuffle_caption": "--data.captions.shuffle",
        "keep_tokens": "--data.captions.keep_tokens",
        "caption_dropout_rate": "--data.captions.dropout",
        "caption_tag_dropout_rate": "--data.captions.tag_dropout",
        "clip_skip": "--base.clip_skip",
        "v_parameterization": "--base.prediction v_prediction, mostly found by itself",
        "zero_terminal_snr": "--base.zero_terminal on, mostly found by itself",
        "min_snr_gamma": "--objective.min_snr_gamma",
        "noise_offset": "--objective.noise_offset",
        "loss_type": "--objective.distance",
        "huber_c": "--objective.huber_c",
        "huber_schedule": "--objective.huber_schedule",
        "min_timestep": "--objective.timestep_min",
        "max_timestep": "--objective.timestep_max",
        "reg_data_dir": "--objective.preservation, which needs no pictures",
        "prior_loss_weight": "--objective.preservation",
        "training_comment": "--output.description",
        "config_file": "--config FILE, of our own form",
        "resume": "sdlora resume RUN",
        "cache_latents": "leave it out: latents are always cached",
        "cache_latents_to_disk": "leave it out: latents are always cached",
        "enable_bucket": "leave it out: buckets are always used",
        "sdpa": "leave it out: torch's own attention is used",
        "xformers": "leave it out: torch's own attention is used",
    }
)


def told(words: str) -> str:
    """A sentence for the first flag of theirs among `words`, "" for none."""
    flag = next((flag for flag in re.findall(r"--(\w+)", words) if flag in FLAGS), "")
    if not flag:
        return ""
    here = FLAGS[flag]
    return f"{here.capitalize()}." if here.startswith("leave") else f"--{flag} is {here} here."


def table() -> str:
    """All of them as a Markdown table."""
    rows = [f"| `--{flag}` | {_cell(words)} |" for flag, words in FLAGS.items()]
    return "\n".join(["| sd-scripts | here |", "| --- | --- |", *rows]) + "\n"


def _cell(words: str) -> str:
    """The flag itself as code, what is said of it as text."""
    if words.startswith("leave"):
        return words
    flag, mark, rest = words.partition("," if "," in words else ";")
    return f"`{flag}`{mark}{rest}"
