"""How a command tells what happens.

One moving line on a terminal, plain lines elsewhere, JSON lines for machines.
"""

import dataclasses
import json
import shutil
import sys
import time

from sdlora.events import CheckpointSaved, Event, Notice, Phase, PreviewSaved, RunEnded, RunStarted, StepDone

PLAIN_SECONDS = 5.0  # a line every so often is enough in a log


class Progress:
    """Tells the events of one run as they come. `steps` is known from RunStarted on."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.live = sys.stderr.isatty() and not as_json
        self.steps = 0
        self._smooth = 0.0
        self._seconds = 0.0
        self._told = 0.0

    def __call__(self, event: Event) -> None:
        """`event` is told on standard error; with JSON on standard output."""
        if self.as_json:
            print(
                json.dumps({"type": type(event).__name__, **dataclasses.asdict(event)}, ensure_ascii=False),
                flush=True,
            )
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Phase):
            self._moving(f"{event.name}: {event.done} of {event.total}", last=event.done == event.total)
        else:
            self._line(self._words(event))

    def _words(self, event: Event) -> str:
        if isinstance(event, RunStarted):
            self.steps = event.steps
            where = f"on {event.device}, from step {event.step} of {event.steps}"
            return f"training {event.parameters:,} parameters {where}"
        if isinstance(event, PreviewSaved):
            return f"preview {event.file}"
        if isinstance(event, CheckpointSaved):
            return f"checkpoint {event.file}"
        if isinstance(event, Notice):
            return f"note: {event.text} {event.hint}".rstrip()
        if isinstance(event, RunEnded):
            return f"{event.outcome} at step {event.step}"
        return ""

    def _step(self, event: StepDone) -> None:
        first = self._seconds == 0
        self._smooth = event.loss if first else 0.95 * self._smooth + 0.05 * event.loss
        self._seconds = event.seconds if first else 0.9 * self._seconds + 0.1 * event.seconds
        left = duration((self.steps - event.step) * self._seconds)
        rate = f"{1 / self._seconds:.2f} steps/s" if self._seconds > 0 else ""
        text = (
            f"step {event.step}/{self.steps}  loss {self._smooth:.4f}  lr {event.lr:.2e}  {rate}  {left} left"
        )
        self._moving(text, last=event.step == self.steps)

    def _moving(self, text: str, *, last: bool) -> None:
        now = time.monotonic()
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]:<{width}}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or now - self._told >= PLAIN_SECONDS:
            self._told = now
            print(text, file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text:<{width}}" if self.live else text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words of at most two units: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
