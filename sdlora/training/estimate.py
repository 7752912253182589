"""What a run will take, told before it starts: steps, passes, buckets, time and memory.

Time is known when a like run was measured on this machine. Memory is then that run's; else it is estimated:

    weights + adapters x (value, gradient, two moments[, average]) + activations + runtime

Activations follow a rule fitted to SD 1.5 and SDXL in bf16: per sample and latent pixel 9 KB times the
square root of the UNet's parameters in millions. Recomputing keeps about a quarter of them.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from sdlora import options
from sdlora.base.files import read_header
from sdlora.config import TrainConfig
from sdlora.data.batches import plan_for
from sdlora.data.folder import scan
from sdlora.data.report import BucketRow, Report, report
from sdlora.families import FAMILIES
from sdlora.files import free_bytes
from sdlora.home import Home
from sdlora.loading import ModelInfo, describe
from sdlora.training import measured

_RUNTIME = 600 << 20  # bytes of a process with torch in it
_ACTIVATIONS = 4_500  # bytes in 8 bit per latent pixel and root of a million parameters
_LATENT_PIXEL = 8  # pixels
_OFTEN = 400  # passes from which pictures tend to be learned by heart


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """`passes` is how often each picture is seen; `seconds` None when no like run was measured here.

    `estimated` says that `memory_bytes` was calculated and not measured.
    """

    steps: int
    passes: float
    images: int
    buckets: tuple[BucketRow, ...]
    memory_bytes: int
    estimated: bool
    seconds: float | None
    warnings: tuple[str, ...]


def plan_of(config: TrainConfig) -> TrainPlan:
    """What the run will take. Raises SdloraError when its dataset or base cannot be used."""
    home = Home.default()
    info = describe(config.base.model, roots=(home.models,))
    dataset = scan(Path(config.data.folder), repeats=config.data.repeats)
    told = report(
        dataset,
        plan_for(dataset, config, info.native_size),
        trigger=config.data.captions.trigger,
        accumulate=config.loop.accumulate,
    )
    resolution = config.data.resolution or info.native_size
    known = measured.recall(home.cache, config, model=str(info.path), resolution=resolution)
    passes = config.loop.steps / told.steps_per_pass
    return TrainPlan(
        steps=config.loop.steps,
        passes=passes,
        images=told.images,
        buckets=told.buckets,
        memory_bytes=known.memory if known else _memory(config, info, resolution),
        estimated=known is None,
        seconds=known.seconds * config.loop.steps if known else None,
        warnings=tuple(_warnings(config, info, told, passes, home)),
    )


def _memory(config: TrainConfig, info: ModelInfo, resolution: int) -> int:
    """The estimate of this module's head, in bytes."""
    shapes = [
        (name.removesuffix(".weight"), entry["shape"])
        for file in info.files.weights
        for name, entry in read_header(file).items()
        if name != "__metadata__"
    ]
    count = sum(math.prod(shape) for _, shape in shapes)
    width = _bytes_a_number(config)
    adapters = sum(_adapter_size(config, info, name, shape) for name, shape in shapes)
    pixels = (resolution / _LATENT_PIXEL) ** 2 * config.loop.batch_size
    activations = pixels * _ACTIVATIONS * width * math.sqrt(count / 1e6)
    copies = 5 if config.loop.ema else 4
    kept = activations / 4 if config.loop.checkpointing else activations
    return int(count * width + adapters * 4 * copies + kept + _RUNTIME)


def _adapter_size(config: TrainConfig, info: ModelInfo, name: str, shape: list[int]) -> int:
    """How many numbers an adapter of the weight `name` has; 0 where it gets none."""
    rank = options.flatten(config).get("adapter.rank", 0)
    if len(shape) not in (2, 4) or not isinstance(rank, int):
        return 0
    presets = FAMILIES.get(info.family).presets
    wanted = (part.strip() for part in config.adapter.targets.split(","))
    patterns = (pattern for part in wanted for pattern in presets.get(part, (f".*({part}).*",)))
    if not any(re.fullmatch(pattern, name) for pattern in patterns):
        return 0
    outputs, inputs, *kernel = shape
    return int(rank * (outputs + inputs * math.prod(kernel)))


def _bytes_a_number(config: TrainConfig) -> int:
    """Of the base, without starting CUDA in this process."""
    if config.loop.precision != "auto":
        return 4 if config.loop.precision == "fp32" else 2
    return 2 if config.loop.device != "cpu" and torch.cuda.device_count() else 4


def _warnings(config: TrainConfig, info: ModelInfo, told: Report, passes: float, home: Home) -> list[str]:
    found = []
    unused = sum(problem.fatal for problem in told.problems)
    small = sum(problem.kind == "too_small" for problem in told.problems)
    if unused:
        found.append(f"{_files(unused)} of the dataset cannot be used; its report says why.")
    if small:
        found.append(f"{small} of {told.images} pictures are smaller than the training size and get blurred.")
    if told.captioned < told.images:
        found.append(f"{told.images - told.captioned} of {told.images} pictures have no caption.")
    if passes < 1:
        found.append(f"{config.loop.steps} steps are less than one pass: some pictures are never seen.")
    if passes > _OFTEN:
        found.append(f"Each picture is seen {passes:.0f} times; it may be learned by heart.")
    if config.loop.precision == "fp16" and not torch.cuda.device_count():
        found.append("Without a GPU fp16 is slower than fp32 and less exact.")
    if free_bytes(home.runs) < info.bytes:
        found.append("The disk is nearly full; checkpoints may fail to be written.")
    return found


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
