"""The runs of this home: start, watch, stop, resume, and put away."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.errors import RunError, SdloraError
from sdlora.events import Notice
from sdlora.files import within, write_atomic
from sdlora.service.process import start_trainer
from sdlora.service.progress import Fold, RunView
from sdlora.service.trash import Trash
from sdlora.training.run import Command, Run
from sdlora.training.sweep import differences

LOG_BYTES = 20_000


@dataclass(frozen=True)
class Siblings:
    """Runs of one pass, in their order; `own` are the options in which each differs, by their paths.

    `picture` compares their last previews; it is there when the pass has ended.
    """

    views: tuple[RunView, ...]
    own: tuple[Mapping[str, options.Value | None], ...]
    picture: Path | None


class _Child(NamedTuple):
    """A trainer of this process, and how many bytes of a run's events there were before it."""

    process: "subprocess.Popen[bytes]"
    written: int

    def is_starting(self, run: Run) -> bool:
        """Whether it lives and has told nothing of `run` yet."""
        return self.process.poll() is None and _written(run) == self.written


class Runs:
    """The runs in `folder`. All that is known of them is read from their folders."""

    def __init__(self, folder: Path, trash: Trash) -> None:
        self.folder = folder
        self._trash = trash
        self._folds: dict[Path, Fold] = {}
        # children of this process; they bridge the seconds before a trainer takes its run's lock
        self._children: dict[Path, _Child] = {}

    def names(self) -> tuple[str, ...]:
        """All runs, the newest first."""
        found = [path for path in self.folder.glob("*") if (path / "config.toml").is_file()]
        found.sort(key=lambda path: (path / "config.toml").stat().st_mtime, reverse=True)
        return tuple(path.name for path in found)

    def configs(self) -> Iterator[TrainConfig]:
        """What each run was told, the newest first; those whose folders are damaged are left out."""
        for name in self.names():
            with suppress(SdloraError):
                yield self.config(name)

    def view(self, name: str) -> RunView:
        """How the run stands. Raises RunError when there is none of that name."""
        path = self._path(name)
        if path not in self._folds:
            self._folds[path] = Fold(Run.open(path))
        return self._bridged(self._folds[path].view())

    def views(self) -> tuple[RunView, ...]:
        """All runs, the newest first; one whose folder is damaged says so and does not hide the others."""
        found = []
        for name in self.names():
            try:
                found.append(self.view(name))
            except SdloraError as error:
                found.append(_damaged(self.folder / name, error))
        return tuple(found)

    def start(self, config: TrainConfig) -> str:
        """A new run trains in a process of its own; its name."""
        run = Run.create(config, self.folder)
        self._launch(run)
        return run.path.name

    def start_together(self, configs: Sequence[TrainConfig]) -> tuple[str, ...]:
        """New runs train in one pass, in a process of their own; their names."""
        runs = Run.create_together(configs, self.folder)
        self._launch(*runs)
        return tuple(run.path.name for run in runs)

    def resume(self, *names: str) -> None:
        """The runs go on from their last checkpoints, in one pass.

        Raises RunError when one runs or has finished.
        """
        runs = [Run.open(self._path(name)) for name in names]
        for name, run in zip(names, runs, strict=True):
            status = run.status
            if status in ("starting", "running"):
                raise RunError(f"{name} is running already.", "Watch it, or stop it first.")
            if status == "finished":
                raise RunError(f"{name} has finished.", "Start a new run to train longer.")
        self._launch(*runs)

    def siblings(self, name: str) -> Siblings | None:
        """The runs that were started with this one in one pass; None when it is alone."""
        found = Run.open(self._path(name)).siblings
        if not found:
            return None
        views = tuple(self.view(run.path.name) for run in found)
        own = differences([run.config for run in found])
        file = found[0].comparison
        return Siblings(views=views, own=own, picture=file if file.is_file() else None)

    def command(self, name: str, command: Command) -> None:
        """The run's process will obey `command`. Raises RunError when it is not running."""
        Run.open(self._path(name)).command(command)

    def remove(self, name: str) -> Path:
        """The run lies in the trash; its place there. Raises RunError while it runs."""
        run = Run.open(self._path(name))
        if run.status in ("starting", "running"):
            raise RunError(f"{name} is running.", "Stop it first.")
        self._folds.pop(run.path, None)
        return self._trash.throw(run.path)

    def config(self, name: str) -> TrainConfig:
        """What the run was told."""
        return Run.open(self._path(name)).config

    def config_text(self, name: str) -> str:
        """The same as TOML."""
        return options.to_toml(self.config(name))

    def require_none_on(self, dataset: Path) -> None:
        """Raises RunError when a run is being trained on the dataset in this folder."""
        for run in self._on(dataset):
            if self.view(run.path.name).status in ("starting", "running"):
                raise RunError(f"The run {run.path.name} is being trained on it.", "Stop it first.")

    def follow(self, dataset: Path, moved: Path) -> None:
        """The runs on the dataset know that its folder is `moved` now, so that they can go on."""
        for run in self._on(dataset):
            config, at = run.config, (run.path / "config.toml").stat().st_mtime
            changed = replace(config, data=replace(config.data, folder=str(moved)))
            with run.locked():
                write_atomic(run.path / "config.toml", options.to_toml(changed))
                os.utime(run.path / "config.toml", (at, at))  # the age that runs are listed by

    def _on(self, dataset: Path) -> list[Run]:
        found = (Run(self.folder / name) for name in self.names())
        return [run for run in found if _folder(run) == dataset.resolve()]

    def log(self, name: str) -> str:
        """The end of what the run's process printed; of several runs in one pass the first has it."""
        run = Run.open(self._path(name))
        logs = [each.path / "log.txt" for each in (run, *run.siblings)]
        path = next((log for log in logs if log.exists()), None)
        if path is None:
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode("utf-8", errors="replace")

    def _launch(self, *runs: Run) -> None:
        for run in runs:
            if (child := self._children.get(run.path)) and child.is_starting(run):
                raise RunError(f"{run.path.name} is starting already.", "Give it a moment.")
        written = [_written(run) for run in runs]
        process = start_trainer(*(run.path for run in runs))
        for run, count in zip(runs, written, strict=True):
            self._children[run.path] = _Child(process, count)

    def _bridged(self, view: RunView) -> RunView:
        """The view with what only the parent of the trainer knows: that it lives, or died without a word."""
        child = self._children.get(view.path)
        if child is None or view.status == "running":
            return view
        if child.is_starting(Run(view.path)):
            return replace(view, status="starting")
        if child.process.poll() is None or view.status != "starting":
            return view
        return replace(
            view,
            status="failed",
            error=f"The training process ended with code {child.process.returncode} before it began.",
            hint="The log below shows what it printed last.",
        )

    def _path(self, name: str) -> Path:
        path = within(self.folder / name, [self.folder])
        if not (path / "config.toml").is_file():
            raise RunError(f'There is no run "{name}".', f"Runs lie in {self.folder}.")
        return path


def _folder(run: Run) -> Path | None:
    """The dataset's; None of a run whose own folder is damaged."""
    try:
        return Path(run.config.data.folder).resolve()
    except SdloraError:
        return None


def _written(run: Run) -> int:
    """Bytes of the run's events."""
    file = run.path / "events.jsonl"
    return file.stat().st_size if file.exists() else 0


def _damaged(path: Path, error: SdloraError) -> RunView:
    return replace(
        Fold(Run(path)).empty(),
        status="failed",
        notices=(Notice(text="Its folder is damaged."),),
        error=error.message,
        hint=error.hint,
    )
