"""What happens in a run, as lines of a file with one writer.

Every line of `events.jsonl` is one event: its class name as `type`, its time, and its fields. Readers
remember a byte offset, and ignore a last line that is not yet ended. Any number of pages, a restarted
page and the command line therefore see the same run.
"""

import dataclasses
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from sdlora.files import storage_error

Outcome = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """The process began (again) at `step` of `steps`."""

    step: int
    steps: int
    images: int
    parameters: int
    device: str
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the work that is no training step, e.g. "encoding images": `done` of `total`."""

    name: str
    done: int
    total: int
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """An optimizer step ended. `seconds` is its duration, `memory` the peak bytes on the device."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    memory: int = 0
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class PreviewSaved:
    """A preview of prompt number `index` after `step` steps lies at `file` (relative to the run)."""

    step: int
    index: int
    prompt: str
    file: str
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """The state after `step` steps lies at `file` (relative to the run) and can be used or resumed from."""

    step: int
    file: str
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something the person should know that does not end the run."""

    text: str
    hint: str = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """The process ended at `step`; `file` is the adapter when there is one (relative to the run)."""

    outcome: Outcome
    step: int
    file: str = ""
    error: str = ""
    hint: str = ""
    time: float = field(default_factory=time.time)


Event: TypeAlias = RunStarted | Phase | StepDone | PreviewSaved | CheckpointSaved | Notice | RunEnded
_TYPES: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (RunStarted, Phase, StepDone, PreviewSaved, CheckpointSaved, Notice, RunEnded)
}


def append(path: Path, events: Iterable[Event]) -> None:
    """The events stand at the end of `path`, whole lines, handed to the system. Raises StorageError."""
    lines = "".join(
        json.dumps({"type": type(event).__name__, **dataclasses.asdict(event)}, ensure_ascii=False) + "\n"
        for event in events
    )
    try:
        with path.open("ab") as file:
            file.write(lines.encode())
    except OSError as error:
        raise storage_error(path, error) from error


def read(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The events after byte `offset`, and the offset to go on from.

    Events of types that this version does not know are left out.
    """
    if not path.exists():
        return [], 0
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    events = [event for line in whole.splitlines() if (event := _parse(line)) is not None]
    return events, offset + len(whole)


def _parse(line: bytes) -> Event | None:
    try:
        values = json.loads(line)
        return _TYPES[values.pop("type")](**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        # A line torn by a power cut, or of a newer version: the rest of the history is still good.
        return None
