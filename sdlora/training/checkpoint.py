"""Checkpoints: all that a run needs to go on to the same bytes, in a folder that is whole or not there.

    checkpoints/step-000500/adapter.safetensors   the adapter so far, usable as it is
                            state.safetensors     weights in full precision, optimizer, average
                            state.json            the step, and what must be the same when the run goes on

A folder is written under another name, flushed to the disk and renamed. Randomness needs no state: it
follows from seed and step.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.data.items import Dataset
from sdlora.errors import AdapterError, RunError
from sdlora.files import flush, storage_error
from sdlora.network import container
from sdlora.network.container import Container
from sdlora.options import Value
from sdlora.training.run import Run


@dataclass(frozen=True)
class Fixed:
    """What may not change while a run lives.

    `options` are those that are not resumable, `data` maps an image's name to its bytes and caption,
    `base` is the hash of the base's weights, `processes` how many train together. Number format and CPU
    threads are taken over by the next process, because `auto` may mean something else there.
    """

    options: Mapping[str, Value]
    data: Mapping[str, str]
    base: str
    precision: str
    threads: int
    processes: int = 1

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        dataset: Dataset,
        *,
        base: str,
        precision: str,
        threads: int,
        processes: int = 1,
    ) -> "Fixed":
        """That of a run as it stands now."""
        resumable = {leaf.path for leaf in options.walk(TrainConfig) if leaf.meta.resumable}
        told = {path: value for path, value in options.flatten(config).items() if path not in resumable}
        data = {
            item.name: f"{item.sha256} {item.mask_sha256} {item.repeats} {item.caption}"
            for item in dataset.items
        }
        return cls(told, data, base, precision, threads, processes)

    def require_same(self, now: "Fixed") -> None:
        """Raises RunError that names everything that differs `now`."""
        changes = [*_changed_options(self.options, now.options), *_changed_images(self.data, now.data)]
        if self.base != now.base:
            changes.append("the base is another model")
        if self.processes != now.processes:
            changes.append(f"processes that train together were {self.processes} and are {now.processes}")
        if changes:
            more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
            raise RunError(
                f"The run cannot go on, because it changed: {'; '.join(changes[:5])}{more}.",
                "Put it back as it was, or begin a new run.",
            )


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint in `folder`."""

    folder: Path
    step: int
    fixed: Fixed

    @classmethod
    def latest(cls, run: Run) -> "Checkpoint | None":
        """The newest checkpoint of the run. Raises RunError when it is damaged."""
        folders = run.checkpoints()
        if not folders:
            return None
        try:
            held = json.loads((folders[-1] / "state.json").read_text(encoding="utf-8"))
            return cls(folders[-1], int(held["step"]), Fixed(**held["fixed"]))
        except OSError as error:
            raise _damaged(folders[-1], f"its state.json cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise _damaged(folders[-1], "its state.json is not what was written") from None

    def state(self) -> dict[str, Tensor]:
        """What `TrainStep.restore` takes. Raises RunError when the file is damaged."""
        try:
            held = Container.open(self.folder / "state.safetensors")
            return held.read(held.entries)
        except AdapterError as error:
            raise _damaged(self.folder, error.message.removesuffix(".")) from None


def save(
    run: Run, step: int, fixed: Fixed, *, state: Mapping[str, Tensor], write_adapter: Callable[[Path], object]
) -> Path:
    """The run's checkpoint of `step`, whole on the disk.

    Raises StorageError when it cannot be written; then nothing of it remains and the older ones are whole.
    """
    folder = run.checkpoint(step)
    parts = folder.with_suffix(".tmp")
    shutil.rmtree(parts, ignore_errors=True)
    try:
        parts.mkdir(parents=True)
        write_adapter(parts / "adapter.safetensors")
        container.write(parts / "state.safetensors", state, {})
        about = {"step": step, "fixed": asdict(fixed)}
        (parts / "state.json").write_text(json.dumps(about, ensure_ascii=False, indent=1), encoding="utf-8")
        for part in parts.iterdir():
            flush(part)
        parts.rename(folder)
        _flush_folder(folder.parent)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return folder


def prune(run: Run, *, keep: int) -> None:
    """Of the run's checkpoints the newest and `keep` before it remain; 0 keeps all."""
    for folder in run.checkpoints()[: -1 - keep] if keep else ():
        # renamed first, so that nobody takes a half-deleted one for whole
        doomed = folder.rename(folder.with_suffix(".tmp"))
        shutil.rmtree(doomed, ignore_errors=True)


def _changed_options(before: Mapping[str, Value], now: Mapping[str, Value]) -> Iterator[str]:
    for path in sorted(before.keys() | now.keys()):
        old, new = before.get(path), now.get(path)
        old = tuple(old) if isinstance(old, list) else old  # JSON has no tuples
        if old != new:
            yield f"{path} was {old!r} and is {new!r}"


def _changed_images(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            yield f"the image {name} is gone"
        elif name not in before:
            yield f"the image {name} is new"
        elif before[name] != now[name]:
            yield f"the image {name} or its caption is another"


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows has no handle for it
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damaged(folder: Path, reason: str) -> RunError:
    hint = "Delete its folder to go on from the one before."
    return RunError(f"The checkpoint {folder} is damaged: {reason}.", hint)
