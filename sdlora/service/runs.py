"""The runs of this home: start, watch, stop, resume, and put away."""

import subprocess
from dataclasses import replace
from pathlib import Path

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.errors import RunError, SdloraError
from sdlora.events import Notice
from sdlora.files import within
from sdlora.service.process import start_trainer
from sdlora.service.progress import Fold, RunView
from sdlora.service.trash import Trash
from sdlora.training.run import Command, Run

LOG_BYTES = 20_000


class Runs:
    """The runs in `folder`. All that is known of them is read from their folders."""

    def __init__(self, folder: Path, trash: Trash) -> None:
        self.folder = folder
        self._trash = trash
        self._folds: dict[Path, Fold] = {}
        # children of this process; they bridge the seconds before a trainer takes its run's lock
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def names(self) -> tuple[str, ...]:
        """All runs, the newest first."""
        found = [path for path in self.folder.glob("*") if (path / "config.toml").is_file()]
        found.sort(key=lambda path: (path / "config.toml").stat().st_mtime, reverse=True)
        return tuple(path.name for path in found)

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

    def resume(self, name: str) -> None:
        """The run goes on from its last checkpoint. Raises RunError when it runs or has finished."""
        run = Run.open(self._path(name))
        status = run.status
        if status in ("starting", "running"):
            raise RunError(f"{name} is running already.", "Watch it, or stop it first.")
        if status == "finished":
            raise RunError(f"{name} has finished.", "Start a new run to train longer.")
        self._launch(run)

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

    def log(self, name: str) -> str:
        """The end of what the run's process printed."""
        path = self._path(name) / "log.txt"
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode("utf-8", errors="replace")

    def _launch(self, run: Run) -> None:
        if (child := self._children.get(run.path)) and child.poll() is None:
            raise RunError(f"{run.path.name} is starting already.", "Give it a moment.")
        self._children[run.path] = start_trainer(run.path)

    def _bridged(self, view: RunView) -> RunView:
        """The view with what only the parent of the trainer knows: that it lives, or died without a word."""
        child = self._children.get(view.path)
        if child is None or view.status == "running":
            return view
        if child.poll() is None:
            return replace(view, status="starting") if view.status != "finished" else view
        if view.status != "starting":
            return view
        return replace(
            view,
            status="failed",
            error=f"The training process ended with code {child.returncode} before it began.",
            hint="The log below shows what it printed last.",
        )

    def _path(self, name: str) -> Path:
        path = within(self.folder / name, [self.folder])
        if not (path / "config.toml").is_file():
            raise RunError(f'There is no run "{name}".', f"Runs lie in {self.folder}.")
        return path


def _damaged(path: Path, error: SdloraError) -> RunView:
    return replace(
        Fold(Run(path)).empty(),
        status="failed",
        notices=(Notice(text="Its folder is damaged."),),
        error=error.message,
        hint=error.hint,
    )
