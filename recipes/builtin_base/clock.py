"""A stage's time: how far it has come, and a line about it every ten seconds."""

import time


class Clock:
    """Counts from its making to `seconds`; `progress` is the fraction gone, 1 at the end."""

    def __init__(self, stage: str, seconds: float) -> None:
        self.stage = stage
        self.seconds = seconds
        self.started = time.monotonic()
        self._said = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """In [0,1]."""
        return min(1.0, self.elapsed / self.seconds)

    def due(self) -> bool:
        """True about every ten seconds: the caller then reads the loss back and says it."""
        if self.elapsed - self._said < 10:
            return False
        self._said = self.elapsed
        return True

    def say(self, text: str) -> None:
        """One line with the stage and its time."""
        print(f"[{self.stage} {self.elapsed:5.0f}s] {text}", flush=True)
