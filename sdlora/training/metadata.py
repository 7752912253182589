"""What an adapter file says of its training: sd-scripts' `ss_*`, Stability's ModelSpec, our configuration.

Nothing here depends on when or where it was trained, so that equal training gives equal files.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sdlora import __version__, options
from sdlora.config import TrainConfig
from sdlora.contracts import Family
from sdlora.data.captions import usual, with_trigger
from sdlora.data.items import Dataset
from sdlora.network import rounding


def training_metadata(
    config: TrainConfig, family: Family, dataset: Dataset, *, step: int, processes: int = 1
) -> dict[str, str]:
    """The texts of an adapter after `step` steps; `sdlora.config` is the whole configuration as TOML."""
    loop, output, size = config.loop, config.output, config.data.resolution or family.native_size
    trigger = config.data.captions.trigger.strip()
    texts = {
        "sdlora.version": __version__,
        "sdlora.config": options.to_toml(_without_folders(config)),
        "sdlora.base_hash": family.hash,
        rounding.STORAGE: config.base.storage,
        "sdlora.trigger": trigger,
        "ss_output_name": output.name,
        "ss_sd_model_name": family.source.name,
        "ss_new_sd_model_hash": family.hash,
        "ss_resolution": f"({size}, {size})",
        "ss_clip_skip": str(config.base.clip_skip),
        "ss_zero_terminal_snr": str(family.noise.zero_terminal),
        "ss_seed": str(loop.seed),
        "ss_steps": str(step),
        "ss_max_train_steps": str(loop.steps),
        "ss_total_batch_size": str(loop.batch_size * loop.accumulate * processes),
        "ss_batch_size_per_device": str(loop.batch_size),
        "ss_gradient_accumulation_steps": str(loop.accumulate),
        "ss_gradient_checkpointing": str(loop.checkpointing),
        "ss_max_grad_norm": str(loop.clip),
        "ss_num_train_images": str(sum(item.repeats for item in dataset.items)),
        "ss_optimizer": config.optimizer.kind,
        "ss_unet_lr": str(config.optimizer.lr),
        "ss_text_encoder_lr": str(config.optimizer.text_lr),
        "ss_lr_scheduler": config.schedule.shape,
        "ss_caption_dropout_rate": str(config.data.captions.dropout),
        "ss_shuffle_caption": str(config.data.captions.shuffle),
        "ss_keep_tokens": str(config.data.captions.keep_tokens),
        "ss_tag_frequency": json.dumps(_tag_frequency(dataset, trigger), ensure_ascii=False),
        "modelspec.title": output.name,
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": family.noise.prediction.removesuffix("_prediction"),
        "modelspec.usage_hint": f"Use the trigger word {trigger}." if trigger else "",
        "modelspec.trigger_phrase": trigger,
        "modelspec.author": output.author,
        "modelspec.description": output.description,
        "modelspec.license": output.license,
    }
    if config.objective.kind == "denoising":
        texts |= {
            "ss_loss_type": config.objective.distance,
            "ss_min_snr_gamma": str(config.objective.min_snr_gamma or None),
            "ss_noise_offset": str(config.objective.noise_offset or None),
        }
    return {name: text for name, text in texts.items() if text}


def _without_folders(config: TrainConfig) -> TrainConfig:
    """The configuration without the names of the person's folders, which nobody else should read."""
    return replace(
        config,
        base=replace(config.base, model=Path(config.base.model).name),
        data=replace(config.data, folder=Path(config.data.folder).name),
    )


def _tag_frequency(dataset: Dataset, trigger: str) -> Mapping[str, Mapping[str, int]]:
    """How often each tag stands in the captions, most frequent first, under the dataset's name."""
    counts: Counter[str] = Counter()
    for item in dataset.items:
        tags = {tag.strip() for tag in with_trigger(usual(item.caption), trigger).split(",")}
        counts.update({tag: item.repeats for tag in sorted(tags) if tag})
    return {dataset.folder.name: dict(counts.most_common())}
