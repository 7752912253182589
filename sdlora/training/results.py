"""Results of steps, read a few steps late, so that the device never waits for the host."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

LAG = 4  # steps that a CUDA device may be ahead of what was read


@dataclass(frozen=True, kw_only=True)
class Result:
    """Step number `step` (from 1) as it was; `seconds` since the one before."""

    step: int
    lr: float
    loss: float
    grad_norm: float
    skipped: bool
    seconds: float


class Clock:
    """The time that is spent on steps. Runs that train together have one, and stop it for one another."""

    def __init__(self) -> None:
        self._stopped = 0.0

    def now(self) -> float:
        """Seconds since some moment, without those for which it was stopped."""
        return time.perf_counter() - self._stopped

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Inside, no time goes by."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._stopped += time.perf_counter() - began


class Results:
    """The results that lie in `tensor` after each step: loss, gradient norm, 1 where it was left out."""

    def __init__(self, tensor: Tensor, clock: Clock) -> None:
        self._tensor = tensor
        self._clock = clock
        self._late = tensor.is_cuda
        self._waiting: deque[tuple[int, float, Tensor, torch.cuda.Event | None]] = deque()
        self._last = clock.now()

    def push(self, step: int, *, lr: float) -> Iterator[Result]:
        """Step `step` was started; the results that can be read without waiting for it."""
        copy = self._tensor.to("cpu", copy=True) if not self._late else _pinned_copy(self._tensor)
        event = _event() if self._late else None
        if event is not None:
            event.record()
        self._waiting.append((step, lr, copy, event))
        yield from self._read(leave=LAG if self._late else 0)

    def flush(self) -> Iterator[Result]:
        """All results; waits for the device."""
        yield from self._read(leave=0)

    def restart(self) -> None:
        """What happened until now is no part of the next step's time."""
        self._last = self._clock.now()

    def _read(self, *, leave: int) -> Iterator[Result]:
        while len(self._waiting) > leave:
            step, lr, copy, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            loss, norm, skipped = copy.tolist()
            before, self._last = self._last, self._clock.now()
            yield Result(
                step=step,
                lr=lr,
                loss=loss,
                grad_norm=norm,
                skipped=bool(skipped),
                seconds=self._last - before,
            )


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own gap


def _pinned_copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, pin_memory=True).copy_(tensor, non_blocking=True)
