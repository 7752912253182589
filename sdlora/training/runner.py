"""How steps are run: captured, compiled and with every activation kept where that can be, else as it can be.

What is given up on the way changes how long a step takes, and not what it learns.
"""

import contextlib
import gc
import importlib.util
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from sdlora import runtime
from sdlora.base.stored import unpacked_twice
from sdlora.config import TrainConfig
from sdlora.contracts import Family, Step
from sdlora.errors import first_line
from sdlora.events import Notice
from sdlora.network.attach import attached
from sdlora.runtime import Runtime
from sdlora.training.capture import CapturedStep, CaptureError
from sdlora.training.compile import compiled, repays
from sdlora.training.cores import side_by_side
from sdlora.training.fused import fused, hindrance
from sdlora.training.ladder import Ladder
from sdlora.training.session import Tell
from sdlora.training.step import OptimizerStep, run

_TRIAL = 50  # steps after which it is known how long one takes


class Work(Protocol):
    """Whose steps are run: a session, or several that train together."""

    @property
    def config(self) -> TrainConfig: ...
    @property
    def family(self) -> Family: ...
    @property
    def train_step(self) -> OptimizerStep: ...
    @property
    def tell(self) -> Tell: ...


class Runner:
    """Runs the steps of a session."""

    def __init__(self, session: Work, machine: Runtime, *, whole: bool = False) -> None:
        """Micro-batches stay `whole` where they cannot be parted when memory does not suffice."""
        self.session = session
        self.machine = machine
        self.loop = session.config.loop
        self._on_cuda = machine.device.type == "cuda"
        self._capturing = self.loop.capture and self._on_cuda and not self.loop.offload
        self._compiling = self.loop.compile == "always"
        self._ladder = Ladder(self.loop, whole=whole)
        self._fusing = False
        self._hindrance = hindrance(machine.device, session.family.dtype)
        self._captured: CapturedStep | None = None
        self._changes = contextlib.ExitStack()
        self._forms = 1
        self._trial: deque[float] = deque(maxlen=_TRIAL)

    @contextlib.contextmanager
    def ready(self, *, forms: int) -> Iterator[None]:
        """Inside, the adapters are on the base and steps can be run, of pictures of so many `forms`."""
        self._forms = forms
        working = self.session.train_step.working
        with attached(self.session.family, working), self._changes:
            working.train()
            self._fusing = self._on_cuda and not self._told_hindrance()
            self._arrange()
            yield

    def run(self, micro_batches: Sequence[Step], *, step: int) -> None:
        """One optimizer step, the one after `step`. Raises OutOfMemoryError when nothing makes it fit."""
        while not self._done(micro_batches, step):
            self._arrange()

    def took(self, seconds: float, *, remaining: int) -> None:
        """A step took `seconds`; from now on the `remaining` ones may run differently."""
        self._trial.append(seconds)
        if self.loop.compile != "auto" or self._compiling or len(self._trial) < _TRIAL:
            return
        # with kernels that repeat their bits, so must the decision, which a clock cannot
        allowed = self._on_cuda and not self.loop.deterministic and importlib.util.find_spec("triton")
        if allowed and repays(statistics.median(self._trial), remaining, forms=self._forms):
            self._tell("The run is long, so the base's blocks are compiled now.", "It takes a minute or two.")
            self._compiling = True
            self._arrange()
        self._trial.clear()

    def _done(self, micro_batches: Sequence[Step], step: int) -> bool:
        # Apart from what follows a failure, because an error that is being handled holds on to its memory.
        processes = self.machine.processes  # each with draws of its own, for samples of its own
        runtime.seed(self.loop.seed, step * processes.count + processes.rank)
        micro_batches = self._ladder.parted(micro_batches)
        try:
            with runtime.allocating():
                if self._captured is not None:
                    self._captured.run(micro_batches)
                else:
                    run(self.session.train_step, micro_batches)
        except torch.OutOfMemoryError:
            given_up = self._ladder.descend()
            if not given_up:
                raise
            self._tell(
                f"The device's memory did not suffice; {given_up} from now on.",
                "The result is the same, the steps are slower.",
            )
            return False
        except (CaptureError, RuntimeError) as error:
            self._simplify(error)
            return False
        return True

    def _simplify(self, error: CaptureError | RuntimeError) -> None:
        reason = first_line(error)
        if self._compiling:
            self._compiling = False
            self._tell(f"The base's blocks could not be compiled: {reason}.", "The run goes on without.")
        elif isinstance(error, CaptureError):
            self._capturing = False
            self._tell(f"{reason}.", "The run goes on uncaptured, more slowly.")
        else:
            raise error

    def _arrange(self) -> None:
        """The base and the step are as they are to be run, with nothing half done."""
        unet = self.session.family.components["unet"]
        self._captured = None
        self._changes.close()
        self.session.train_step.forget()
        gc.collect()  # the frames of a failure refer to one another, and hold on to what they computed
        runtime.release(self.machine.device)
        if self._compiling:
            self._changes.enter_context(unpacked_twice(unet))
            self._changes.enter_context(compiled(unet))
        elif self._fusing:
            self._changes.enter_context(fused(unet))
        else:
            self._changes.enter_context(side_by_side(self.session.train_step, most=self.loop.batch_size))
        self._changes.enter_context(self._ladder.applied(unet))
        if self._capturing:
            self._captured = CapturedStep(self.session.train_step)

    def _told_hindrance(self) -> str:
        if reason := self._hindrance.result():
            self._tell(f"Kernels of our own cannot run here: {reason}.", "The run goes on with torch's.")
        return reason

    def _tell(self, text: str, hint: str) -> None:
        self.session.tell(Notice(text=text, hint=hint))
