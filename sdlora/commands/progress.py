"""How a command tells what happens.

One moving line on a terminal, plain lines elsewhere, JSON lines for machines.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
import time

from sdlora.events import CheckpointSaved, Event, Notice, Phase, PreviewSaved, RunEnded, RunStarted, StepDone

PLAIN_SECONDS = 5.0  # a line every so often is enough in a log


class Teller:
    """Tells a person what happens, on standard error: a line that moves, or one that stays.

    On a terminal the moving line is written over itself; elsewhere it is told every few seconds.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._live = sys.stderr.isatty()
        self._told = 0.0

    def move(self, text: str, *, last: bool) -> None:
        """`text` stands in the moving line, for good if it is the `last` of its kind."""
        now = time.monotonic()
        if self._silent or not (self._live or last or now - self._told >= PLAIN_SECONDS):
            return
        self._told = now
        self._print(text, end="\n" if last or not self._live else "")

    def clear(self) -> None:
        """The moving line is empty, for what another output tells in its place."""
        if self._live and not self._silent:
            self._print("\r", end="")

    def download(self, done: int, total: int) -> None:
        """So many bytes of a base model have come from the Hub."""
        text = f"downloading the base: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        self.move(text, last=done >= total)

    def say(self, text: str) -> None:
        """`text` stands in a line of its own."""
        if not self._silent:
            self._print(text, end="\n")

    def _print(self, text: str, *, end: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more, as behind `| head`
            print(f"\r{text[:width]:<{width}}" if self._live else text, end=end, file=sys.stderr, flush=True)


class Progress:
    """Tells the events of one run as they come."""

    def __init__(self, *, as_json: bool, name: str = "", teller: Teller | None = None) -> None:
        """`name` says which of several runs it is; they tell through one `teller`."""
        self._as_json = as_json
        self._name = name
        self._teller = teller or Teller(silent=as_json)
        self._steps = 0  # known from RunStarted on
        self._loss = 0.0
        self._seconds = 0.0

    def __call__(self, event: Event) -> None:
        """`event` is told on standard error; with JSON on standard output."""
        if self._as_json:
            fields = {"type": type(event).__name__, **dataclasses.asdict(event)}
            fields |= {"run": self._name} if self._name else {}
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(fields, ensure_ascii=False), flush=True)
        elif isinstance(event, StepDone):
            self._teller.move(self._named(self._step(event)), last=event.step == self._steps)
        elif isinstance(event, Phase):
            done = event.done == event.total
            self._teller.move(self._named(f"{event.name}: {event.done} of {event.total}"), last=done)
        else:
            self._teller.say(self._named(self._words(event)))

    def _named(self, text: str) -> str:
        return f"{self._name}: {text}" if self._name else text

    def _words(self, event: Event) -> str:
        if isinstance(event, RunStarted):
            self._steps = event.steps
            where = f"on {event.device}, from step {event.step} of {event.steps}"
            return f"training {event.parameters:,} parameters {where}"
        if isinstance(event, PreviewSaved):
            return f"preview {event.file}"
        if isinstance(event, CheckpointSaved):
            return f"checkpoint {event.file}"
        if isinstance(event, Notice):
            return f"note: {event.text} {event.hint}".rstrip()
        return f"{event.outcome} at step {event.step}" if isinstance(event, RunEnded) else ""

    def _step(self, event: StepDone) -> str:
        first = self._seconds == 0
        self._loss = event.loss if first else 0.95 * self._loss + 0.05 * event.loss
        self._seconds = event.seconds if first else 0.9 * self._seconds + 0.1 * event.seconds
        rate = f"{1 / self._seconds:.2f} steps/s" if self._seconds > 0 else ""
        left = duration((self._steps - event.step) * self._seconds)
        where = f"step {event.step}/{self._steps}"
        return f"{where}  loss {self._loss:.4f}  lr {event.lr:.2e}  {rate}  {left} left"


def duration(seconds: float) -> str:
    """Seconds in words of at most two units: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
