"""A run's events folded into what can be shown of it now."""

import statistics
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from sdlora.events import CheckpointSaved, Event, Notice, Phase, PreviewSaved, RunEnded, RunStarted, StepDone
from sdlora.training.run import Run, Status

POINTS = 300  # of the loss curve; more cannot be seen
_SMOOTHING = 0.97


@dataclass(frozen=True, kw_only=True)
class RunView:
    """How a run stands. `losses` are (step, loss, smoothed loss); seconds are None where not known yet."""

    name: str
    path: Path
    status: Status
    began: float
    step: int = 0
    steps: int = 0
    images: int = 0
    parameters: int = 0
    device: str = ""
    memory: int = 0
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    phase: Phase | None = None
    losses: tuple[tuple[int, float, float], ...] = ()
    previews: tuple[PreviewSaved, ...] = ()
    checkpoints: tuple[CheckpointSaved, ...] = ()
    notices: tuple[Notice, ...] = ()
    error: str = ""
    hint: str = ""
    adapter: Path | None = None


@dataclass
class Fold:
    """The events of one run so far; a poll reads only what is new."""

    run: Run
    offset: int = 0
    started: RunStarted | None = None
    ended: RunEnded | None = None
    phase: Phase | None = None
    last: StepDone | None = None
    began: float = 0.0
    losses: list[tuple[int, float, float]] = field(default_factory=list)
    previews: dict[tuple[int, int], PreviewSaved] = field(default_factory=dict)
    checkpoints: dict[int, CheckpointSaved] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def view(self) -> RunView:
        """The run as it stands now."""
        status = self.run.status
        found, self.offset = self.run.events(self.offset)
        for event in found:
            self._take(event)
        steps = self.started.steps if self.started else self.run.config.loop.steps
        step = self.last.step if self.last else self.started.step if self.started else 0
        pace = statistics.median(self.recent) if self.recent else None
        failed = self.ended if status == "failed" else None
        return RunView(
            name=self.run.path.name,
            path=self.run.path,
            status=status,
            step=step,
            steps=steps,
            images=self.started.images if self.started else 0,
            parameters=self.started.parameters if self.started else 0,
            device=self.started.device if self.started else "",
            memory=self.last.memory if self.last else 0,
            seconds_per_step=pace,
            seconds_left=None if pace is None or status != "running" else pace * (steps - step),
            began=self.began or (self.run.path / "config.toml").stat().st_mtime,
            phase=self.phase if status in ("starting", "running") else None,
            losses=_thinned(self.losses),
            previews=tuple(self.previews.values()),
            checkpoints=self._checkpoints(),
            notices=tuple(self.notices[-5:]),
            error=failed.error if failed else "",
            hint=failed.hint if failed else "",
            adapter=path if (path := self.run.adapter).is_file() else None,
        )

    def empty(self) -> RunView:
        """A view of a run of which nothing can be read."""
        return RunView(
            name=self.run.path.name,
            path=self.run.path,
            status="failed",
            began=(self.run.path / "config.toml").stat().st_mtime,
        )

    def _take(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, StepDone):
            smooth = self.losses[-1][2] if self.losses else event.loss
            self.losses.append((event.step, event.loss, _SMOOTHING * smooth + (1 - _SMOOTHING) * event.loss))
            self.recent.append(event.seconds)
            self.last, self.phase = event, None
        elif isinstance(event, Phase):
            self.phase = event if event.done < event.total else None
        elif isinstance(event, PreviewSaved):
            self.previews[event.step, event.index] = event
        elif isinstance(event, CheckpointSaved):
            self.checkpoints[event.step] = event
        elif isinstance(event, Notice):
            self.notices.append(event)
        else:
            self.ended, self.phase = event, None

    def _start(self, event: RunStarted) -> None:
        """A resumed run goes on from its checkpoint: what came after that is drawn anew."""
        self.started, self.ended, self.last = event, None, None
        self.began = self.began or event.time
        self.losses = [point for point in self.losses if point[0] <= event.step]
        self.notices.clear()
        self.recent.clear()

    def _checkpoints(self) -> tuple[CheckpointSaved, ...]:
        return tuple(c for c in self.checkpoints.values() if (self.run.path / c.file).exists())


def _thinned(points: list[tuple[int, float, float]]) -> tuple[tuple[int, float, float], ...]:
    stride = -(-len(points) // POINTS) or 1
    return tuple(points[::stride]) + ((points[-1],) if points and (len(points) - 1) % stride else ())
