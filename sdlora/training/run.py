"""The run folder: everything that a run was told, does and has made.

    config.toml  events.jsonl  log.txt  lock  commands/  checkpoints/  previews/  NAME.safetensors
    together.json (the names of the runs that were started in one pass)  comparison.png

The process that trains holds the operating system's lock on `lock` for life and alone writes events; pages
and command lines read the folder and leave commands in it. Alive means the lock is held, so a killed process
is seen as such at once.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sdlora import events, options
from sdlora.config import TrainConfig
from sdlora.errors import RunError
from sdlora.events import Event, RunEnded
from sdlora.files import held_lock, is_locked, safe_name, storage_error, write_atomic

Status = Literal["starting", "running", "finished", "stopped", "failed", "interrupted"]
Command = Literal["stop", "checkpoint", "preview"]

# A child process needs this long at most, in seconds, to import torch and take the lock.
_PATIENCE = 60


@dataclass(frozen=True)
class Run:
    """The run in the folder `path`."""

    path: Path

    @classmethod
    def create(cls, config: TrainConfig, root: Path) -> "Run":
        """A new run in a folder of its own under `root`, named after the output and numbered where needed."""
        name = safe_name(config.output.name)
        number = 1
        while True:
            folder = root / (name if number == 1 else f"{name}-{number}")
            if not folder.exists():
                with contextlib.suppress(FileExistsError):  # another process was quicker with this number
                    return cls._make(config, folder)
            number += 1

    @classmethod
    def create_together(cls, configs: Sequence[TrainConfig], root: Path) -> tuple["Run", ...]:
        """New runs under `root` that are trained in one pass; each knows the others."""
        runs = tuple(cls.create(config, root) for config in configs)
        names = json.dumps([run.path.name for run in runs])
        for run in runs:
            write_atomic(run.path / "together.json", names)
        return runs

    @classmethod
    def create_at(cls, config: TrainConfig, folder: Path) -> "Run":
        """A new run in exactly `folder`. Raises RunError when something lies there already."""
        if (folder / "config.toml").exists():
            raise RunError(f"{folder} holds a run already.", "Resume it, or name another folder.")
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file, and a run is a folder.", "Name a new or an empty folder.")
        if folder.exists() and any(folder.iterdir()):
            raise RunError(f"{folder} is not empty.", "Name a new or an empty folder.")
        if folder.exists():
            return cls._fill(config, folder)
        return cls._make(config, folder)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run in `folder`. Raises RunError when there is none."""
        if not (folder / "config.toml").is_file():
            raise RunError(f"{folder} holds no run.", "A run's folder has a config.toml.")
        return cls(folder)

    @property
    def config(self) -> TrainConfig:
        """What the run was told. Raises ConfigError when the file was damaged."""
        path = self.path / "config.toml"
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        return options.build(TrainConfig, options.from_toml(text, str(path)))

    @property
    def status(self) -> Status:
        """How the run stands, by its lock and its last event."""
        last = self._last_event()
        if is_locked(self.path / "lock"):
            return "starting" if last is None or isinstance(last, RunEnded) else "running"
        if isinstance(last, RunEnded):
            return last.outcome
        age = time.time() - (self.path / "config.toml").stat().st_mtime
        return "starting" if last is None and age < _PATIENCE else "interrupted"

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """The events after byte `offset`, and the offset to go on from."""
        return events.read(self.path / "events.jsonl", offset)

    def checkpoints(self) -> tuple[Path, ...]:
        """The whole checkpoints, oldest first."""
        folders = (self.path / "checkpoints").glob("step-*")
        whole = (path for path in folders if path.name.removeprefix("step-").isdecimal())
        return tuple(sorted(whole, key=step_of))

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of `step` is, if there is one."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    @property
    def siblings(self) -> tuple["Run", ...]:
        """The runs that were started with this one in one pass, itself included; () when it is alone.

        Those that are gone since are left out, and a damaged list is none.
        """
        try:
            names = json.loads((self.path / "together.json").read_text(encoding="utf-8"))
            folders = [self.path.parent / safe_name(name) for name in names]
        except (OSError, ValueError, TypeError, AttributeError):
            return ()
        found = tuple(Run(folder) for folder in folders if (folder / "config.toml").is_file())
        return found if len(found) > 1 and self in found else ()

    @property
    def comparison(self) -> Path:
        """The picture that compares the siblings (it exists once their pass has ended)."""
        return next(iter(self.siblings), self).path / "comparison.png"

    @property
    def adapter(self) -> Path:
        """The file that the run makes (it exists once the run has finished or was stopped)."""
        return self.path / f"{safe_name(self.config.output.name)}.safetensors"

    def command(self, command: Command) -> None:
        """The training process will obey `command` after its present step.

        Raises RunError when no process is there to do so.
        """
        if command not in get_args(Command):
            raise RunError(f'"{command}" is no command of a run.', f"Known: {', '.join(get_args(Command))}.")
        if self.status not in ("starting", "running"):
            raise RunError(f"{self.path.name} is not running.", "Resume it first.")
        name = f"{time.time_ns():020d}.json"
        write_atomic(self.path / "commands" / name, json.dumps({"command": command}))

    def take_commands(self) -> list[Command]:
        """The waiting commands in their order; they are gone from the folder."""
        taken: list[Command] = []
        for file in self._commands():
            taken.append(json.loads(file.read_text(encoding="utf-8"))["command"])
            file.unlink()
        return taken

    def told_to_stop(self) -> bool:
        """Whether a `stop` waits; it goes on waiting."""
        texts = (file.read_text(encoding="utf-8") for file in self._commands())
        return any(json.loads(text)["command"] == "stop" for text in texts)

    def report(self, *happened: Event) -> None:
        """The events stand in the run's file. Only for the process that holds the lock."""
        events.append(self.path / "events.jsonl", happened)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, this process is the run's only one. Raises RunError when another one is.

        What a crash left is mended: a torn line of events is ended; half-written checkpoints, and commands
        for the process that died, are gone.
        """
        busy = RunError(f"The run in {self.path} is being trained already.", "Watch it, or stop it first.")
        with held_lock(self.path / "lock", busy):
            self._end_torn_line()
            for half in (self.path / "checkpoints").glob("*.tmp"):
                shutil.rmtree(half, ignore_errors=True)
            last = self._last_event()
            for file in self._commands():
                if last is not None and int(file.stem) < last.time * 1e9:
                    file.unlink()
            yield

    @classmethod
    def _make(cls, config: TrainConfig, folder: Path) -> "Run":
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(folder, error) from error
        try:
            folder.mkdir()
        except FileExistsError:
            raise
        except OSError as error:
            raise storage_error(folder, error) from error
        return cls._fill(config, folder)

    @classmethod
    def _fill(cls, config: TrainConfig, folder: Path) -> "Run":
        try:
            for part in ("commands", "checkpoints", "previews"):
                (folder / part).mkdir()
        except OSError as error:
            raise storage_error(folder, error) from error
        write_atomic(folder / "config.toml", options.to_toml(config))
        return cls(folder)

    def _commands(self) -> list[Path]:
        """The waiting commands, oldest first; a file that another program left there is none."""
        files = (self.path / "commands").glob("*.json")
        return sorted(file for file in files if file.stem.isdecimal())

    def _end_torn_line(self) -> None:
        path = self.path / "events.jsonl"
        if path.exists() and path.stat().st_size:
            with path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def _last_event(self) -> Event | None:
        """The newest event that can be read, from the last bytes of the file."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return None
        size = path.stat().st_size
        for reach in (1 << 14, size):
            found, _ = events.read(path, max(0, size - reach))
            if found:
                return found[-1]
        return None


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint folder `step-NNNNNN`."""
    return int(checkpoint.name.removeprefix("step-"))
