"""How long a step took and how much memory it needed on this machine, remembered from run to run."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sdlora.config import TrainConfig
from sdlora.data.batches import preserves
from sdlora.files import write_atomic

_WARM_UP = 3  # steps that are slower than the rest


@dataclass(frozen=True)
class Measured:
    """The median seconds of an optimizer step, and the most memory that the run held, in bytes."""

    seconds: float
    memory: int


def recall(cache: Path, config: TrainConfig, *, model: str, resolution: int) -> Measured | None:
    """What a run like this one took, if there was one."""
    found = _table(cache).get(_key(config, model, resolution))
    return Measured(found["seconds"], int(found["memory"])) if found else None


def remember(
    cache: Path, config: TrainConfig, seconds: Sequence[float], *, model: str, resolution: int, memory: int
) -> None:
    """`recall` knows what the steps of this run took, if they were enough to tell."""
    if len(seconds) <= 2 * _WARM_UP:
        return
    middle = statistics.fmean if preserves(config) else statistics.median  # some steps keep, and take longer
    measured = Measured(round(middle(seconds[_WARM_UP:]), 6), memory)
    table = _table(cache) | {_key(config, model, resolution): asdict(measured)}
    write_atomic(_file(cache), json.dumps(table, indent=1, sort_keys=True))


def _key(config: TrainConfig, model: str, resolution: int) -> str:
    """All that a step's time depends on; the number of cards stands for the machine's hardware."""
    loop, adapter = config.loop, config.adapter  # the whole adapter: its rank decides the memory
    parts = (
        model,
        resolution,
        f"batch {loop.batch_size}x{loop.accumulate}",
        f"{loop.device} of {torch.cuda.device_count()}",
        loop.precision,
        f"stored {config.base.storage}",
        f"recomputed {loop.checkpointing} fetched {loop.offload}",
        f"kept {preserves(config)}",
        f"captured {loop.capture} compiled {loop.compile} repeated {loop.deterministic}",
        str(adapter),
    )
    return ", ".join(map(str, parts))


def _table(cache: Path) -> dict[str, dict[str, float]]:
    """What is remembered; nothing when the file is missing or damaged, for it is only a help."""
    try:
        table = json.loads(_file(cache).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _file(cache: Path) -> Path:
    return cache / "step-times.json"
