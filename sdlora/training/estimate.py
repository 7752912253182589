"""What a run will take, told before it starts: steps, passes, buckets, time and memory.

Time is known when a like run was measured on this machine, and so is memory; else `memory` counts it.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.data.batches import NO_TRIGGER, lacks_trigger, plan_for
from sdlora.data.folder import scan
from sdlora.data.report import BucketRow, Report, report
from sdlora.files import free_bytes
from sdlora.home import Home
from sdlora.loading import ModelInfo, describe
from sdlora.runtime import require_device
from sdlora.training import measured
from sdlora.training.memory import PROCESS, Setting, count, needed
from sdlora.training.session import taught
from sdlora.training.sweep import require_alike

_OFTEN = 400  # passes from which pictures tend to be learned by heart
_MARGIN = 1.05  # of memory, because what a run needs is known to some percent
_WAYS = 3  # to need less memory, told at most
_SIDE = 64  # pixels that a lower resolution is a multiple of
_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "loop.checkpointing": "gradient checkpointing",
        "loop.batch_size": "a batch of {}",
        "loop.accumulate": "{} times accumulated",
        "base.storage": "base weights in {}",
        "adapter.text_encoder": "the UNet alone",
        "data.resolution": "{} pixels",
    }
)

Fit = Literal["fits", "tight", "too big"]


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """`base` is what was detected of it; `passes` is how often each picture is seen.

    `seconds` is None when no like run was measured here. `estimated` says that `memory_bytes` was counted and
    not measured.
    """

    base: str
    steps: int
    passes: float
    images: int
    buckets: tuple[BucketRow, ...]
    memory_bytes: int
    estimated: bool
    seconds: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Way:
    """Options that make a run need less memory, and the bytes that it needs with them."""

    values: Mapping[str, object]
    memory_bytes: int

    @property
    def title(self) -> str:
        """The options in words: "gradient checkpointing, a batch of 1, 4 times accumulated"."""
        told = [_WORDS[name].format(value) for name, value in self.values.items() if name in _WORDS]
        return ", ".join(told)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the memory of a run goes with its device, in bytes; `ways` to need less where it does not fit.

    "tight" is what only fits when other programs give some back. Without any way that fits, the one is told
    that needs least.
    """

    fit: Fit
    needed: int
    total: int
    free: int
    ways: tuple[Way, ...] = ()

    @property
    def text(self) -> str:
        """The verdict in one sentence."""
        needed, total, free = map(gigabytes, (self.needed, self.total, self.free))
        if self.fit == "fits":
            return f"It fits: it needs about {needed}, and {free} of {total} are free."
        if self.fit == "tight":
            return f"Tight: it needs about {needed}, and {free} of {total} are free now."
        return f"Too big: it needs about {needed}, and the device has {total}."

    @property
    def hint(self) -> str:
        """What to change, if that is needed."""
        told = "; or ".join(f"{way.title} ({gigabytes(way.memory_bytes)})" for way in self.ways)
        if any(way.memory_bytes * _MARGIN <= self.free for way in self.ways):
            return f"What fits: {told}."
        return f"The least that it takes: {told}." if told else ""


def gigabytes(count: float) -> str:
    """Bytes as "7.1 GB"."""
    return f"{count / 1e9:.1f} GB"


def plan_of(config: TrainConfig) -> TrainPlan:
    """What the run will take. Raises SdloraError when its dataset or base cannot be used."""
    home = Home.default()
    require_device(config.loop.device)
    info = _described(config)
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
        base=info.text,
        steps=config.loop.steps,
        passes=passes,
        images=told.images,
        buckets=told.buckets,
        memory_bytes=_with_process(known.memory, config) if known else _memory(config, info),
        estimated=known is None,
        seconds=known.seconds * config.loop.steps if known else None,
        warnings=tuple(_warnings(config, info, told, passes, home)),
    )


def plan_together(configs: Sequence[TrainConfig]) -> TrainPlan:
    """What the runs will take in one pass: steps and pictures of the first, the memory of all.

    Raises SdloraError when one could not start, or when they could not go together.
    """
    require_alike(configs)
    unlike = {(config.data, config.loop): config for config in configs}  # adapters need no plan of their own
    plans = [plan_of(config) for config in unlike.values()]
    return replace(
        plans[0],
        memory_bytes=_memory_together(configs, _described(configs[0])),
        estimated=True,
        seconds=None,
        warnings=tuple(dict.fromkeys(text for plan in plans for text in plan.warnings)),
    )


def _described(config: TrainConfig) -> ModelInfo:
    base = config.base
    return describe(
        base.model,
        family=base.family,
        prediction=base.prediction,
        zero_terminal=base.zero_terminal,
        roots=Home.default().model_folders,
    )


def verdict(config: TrainConfig, needed: int, *, total: int, free: int) -> Verdict:
    """How a run that needs so many bytes goes with a device of `total`, of which `free` can be had now."""
    if needed * _MARGIN <= free:
        return Verdict(fit="fits", needed=needed, total=total, free=free)
    fit: Fit = "tight" if needed * _MARGIN <= total else "too big"
    return Verdict(fit=fit, needed=needed, total=total, free=free, ways=_ways(config, free))


def _ways(config: TrainConfig, room: int) -> tuple[Way, ...]:
    """Changes that make the run fit into `room` bytes: those that change least, at most three.

    When none does, the one that needs least.
    """
    info = _described(config)
    tried: list[Way] = []
    fitting: list[Way] = []
    for values in _changes(config, info):
        if any(way.values.items() <= values.items() for way in fitting):
            continue  # a part of it is enough
        changed = options.build(TrainConfig, {**options.flatten(config), **values})
        tried.append(Way(values=values, memory_bytes=_memory(changed, info)))
        if tried[-1].memory_bytes * _MARGIN <= room:
            fitting.append(tried[-1])
        if len(fitting) == _WAYS:
            break
    return tuple(fitting) or (min(tried, key=lambda way: way.memory_bytes),)


def _changes(config: TrainConfig, info: ModelInfo) -> Iterator[dict[str, object]]:
    """What a person could change to need less: first what changes the speed alone, then lesser results."""
    loop, side = config.loop, config.data.resolution or info.native_size
    again: dict[str, object] = {} if loop.checkpointing else {"loop.checkpointing": True}
    batches: list[dict[str, object]] = [
        {"loop.batch_size": size, "loop.accumulate": loop.accumulate * loop.batch_size // size}
        for size in dict.fromkeys((loop.batch_size // 2, 1))
        if 1 <= size < loop.batch_size
    ]
    least: dict[str, object] = {**again, **(batches[-1] if batches else {})}
    lesser: list[dict[str, object]] = []
    if config.base.storage == "full":
        lesser.append({"base.storage": "nf4"})
    if config.adapter.unet and config.adapter.text_encoder:
        lesser.append({"adapter.text_encoder": False})
    smaller = max(_SIDE, side * 3 // 4 // _SIDE * _SIDE)
    if smaller < side:
        lesser.append({"data.resolution": smaller})
    everything = {name: value for change in (least, *lesser) for name, value in change.items()}
    yield from (change for change in (again, *batches, least) if change)
    yield from lesser
    yield from ({**least, **change} for change in lesser)
    yield everything


def _memory(config: TrainConfig, info: ModelInfo) -> int:
    """Bytes that the run needs of its device."""
    return needed(info, _setting(config, info), on_gpu=_on_gpu(config))


def _memory_together(configs: Sequence[TrainConfig], info: ModelInfo) -> int:
    """Bytes of the hungriest run if the samples of all were its own, and of what the other runs learn."""
    settings = [
        replace(_setting(config, info), batch=config.loop.batch_size * len(configs)) for config in configs
    ]
    peaks = [needed(info, setting, on_gpu=_on_gpu(configs[0])) for setting in settings]
    learned = [count(info, setting).learned for setting in settings]
    return max(peak + sum(learned) - own for peak, own in zip(peaks, learned, strict=True))


def _setting(config: TrainConfig, info: ModelInfo) -> Setting:
    """What the memory of the run depends on."""
    on_gpu = _on_gpu(config)
    return Setting(
        adapter=taught(config),
        objective=config.objective,
        dtype=_dtype(config, on_gpu=on_gpu),
        side=config.data.resolution or info.native_size,
        batch=config.loop.batch_size,
        clip_skip=config.base.clip_skip,
        storage=config.base.storage,
        offload=config.loop.offload and on_gpu,
        fused=on_gpu and importlib.util.find_spec("triton") is not None,
        checkpointing=config.loop.checkpointing,
        averaged=config.loop.ema > 0,
        previews=config.preview.every >= 0,
    )


def _with_process(memory: int, config: TrainConfig) -> int:
    """Bytes that torch had of a GPU, with what CUDA takes for itself; on a CPU all is measured."""
    return memory + (int(PROCESS) if _on_gpu(config) else 0)


def _on_gpu(config: TrainConfig) -> bool:
    """Whether the run is for a GPU, found without starting CUDA in this process."""
    if config.loop.device == "auto":
        return torch.cuda.device_count() > 0 or torch.backends.mps.is_available()
    return config.loop.device != "cpu"


def _dtype(config: TrainConfig, *, on_gpu: bool) -> torch.dtype:
    """The number format of the base, or one as wide; `auto` is one of 16 bits on a GPU."""
    if config.loop.precision == "auto":
        return torch.bfloat16 if on_gpu else torch.float32
    return torch.float32 if config.loop.precision == "fp32" else torch.bfloat16


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
    if lacks_trigger(config):
        found.append(f"{NO_TRIGGER} Name the one that the captions use.")
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
