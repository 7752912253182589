"""The training step as CUDA graphs: recorded once for each shape, then replayed without Python.

At small batches a GPU waits for the host between kernels; replayed, it does not. What is replayed are exactly
the kernels of `TrainStep`, so that the result is the same. All graphs draw their memory from one
pool, since no two run at once.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sdlora.contracts import Step
from sdlora.errors import SdloraError, first_line
from sdlora.training.step import OptimizerStep

_WARM_UP = 2  # calls before recording, in which libraries choose their kernels and workspaces


class CaptureError(SdloraError):
    """The step cannot be recorded on this machine; uncaptured it can run."""


class CapturedStep:
    """Runs `train_step` by replaying it."""

    def __init__(self, train_step: OptimizerStep) -> None:
        self._step = train_step
        self._stream = _stream(train_step.family.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._micro: dict[tuple[object, ...], tuple[Step, torch.cuda.CUDAGraph]] = {}
        self._update: torch.cuda.CUDAGraph | None = None

    def run(self, micro_batches: Sequence[Step]) -> None:
        """One optimizer step. Raises CaptureError, with everything as before, when it cannot be recorded.

        Raises torch's OutOfMemoryError likewise.
        """
        for step in micro_batches:
            if form_of(step) not in self._micro:
                self._record(step)
        for step in micro_batches:
            inputs, graph = self._micro[form_of(step)]
            _fill(inputs, step)
            graph.replay()
        self._step.exchange()
        assert self._update is not None
        self._update.replay()

    def _record(self, step: Step) -> None:
        device = self._step.family.device
        try:
            inputs = step.map(lambda part: torch.empty_like(part, device=device))
            _fill(inputs, step)
            with _unchanged(self._step.tensors()), torch.random.fork_rng([device]):
                self._warm_up(inputs)
                self._micro[form_of(step)] = inputs, self._graph(lambda: self._step.accumulate(inputs))
                if self._update is None:
                    self._update = self._graph(self._step.update)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._micro.pop(form_of(step), None)
            raise CaptureError(f"The training step could not be captured: {first_line(error)}.") from error

    def _warm_up(self, inputs: Step) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                self._step.accumulate(inputs)
                self._step.update()
        torch.cuda.current_stream().wait_stream(self._stream)

    def _graph(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # other threads go on preparing batches in page-locked memory meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one to record on: cuBLAS keeps 32 MiB for each that it has met, and a step may be recorded anew."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's gap


@contextmanager
def _unchanged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """After it the tensors hold what they held before; meanwhile that waits in the machine's memory."""
    before = [tensor.to("cpu", copy=True) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)


def _fill(inputs: Step, step: Step) -> None:
    for target, value in zip(parts_of(inputs), parts_of(step), strict=True):
        target.copy_(value, non_blocking=True)


def form_of(step: Step) -> tuple[object, ...]:
    """What a recorded step is bound to: whose samples and which parts it has, shapes and number formats."""
    present = tuple(part is not None for part in step)
    return (step.members, step.keeps, present, *((tuple(part.shape), part.dtype) for part in parts_of(step)))


def parts_of(step: Step) -> list[Tensor]:
    """All tensors of a step, in one order."""
    parts: list[Tensor] = []

    def keep(part: Tensor) -> Tensor:
        parts.append(part)
        return part

    step.map(keep)
    return parts
