"""One run on several GPUs: a process for each, which train on parts of every batch and learn the same.

`accelerate launch` or `torchrun` starts them. A process takes its samples of the batch that one alone would
draw for all; between the micro-batches and the update, loss and gradients become their means over all
processes, in one piece. So all make the same update of the same numbers. The first process alone reads
commands and writes to the run's folder.

The processes meet before their devices do. One that failed says so there, so that no device waits for
another that will not come.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from sdlora.errors import Cancelled, SdloraError, unforeseen
from sdlora.runtime import Processes
from sdlora.training.run import Run
from sdlora.training.step import TrainStep

R = TypeVar("R")

_FAILED = "failed"
_END = "the end"


class ProcessFailed(SdloraError):
    """Another process of the run has failed; the message is its own."""


@contextmanager
def joined() -> Iterator[Processes]:
    """Inside, this process and the others that were started with it train together; mostly it is alone.

    An error of any of them ends all. The first raises it, the others exit quietly, as they do with success:
    the exit code is the first one's to give.
    """
    processes = Processes.joined()
    try:
        yield processes
        meet(processes, _END)
    except BaseException as error:
        if not isinstance(error, ProcessFailed):
            _tell_failed(processes, error)
        if processes.rank > 0:
            raise SystemExit(0) from None
        raise
    finally:
        processes.leave()


def shared_run(processes: Processes, make: Callable[[], Run]) -> Run:
    """The run that the first process makes."""
    made = str(make().path) if processes.rank == 0 else ""
    return Run.open(Path(meet(processes, "the run", made)[0]))


class Crew:
    """The processes of a run, as its loop sees them. `stopping` says that all stop now."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.first = processes.rank == 0
        self.asked = False  # to stop, which others may not know yet
        self.stopping = False

    def stop(self) -> None:
        """All will be stopping: at once when this process is alone, else from where they meet next."""
        self.asked = True
        self.stopping = self.processes.count == 1

    def all_do(self, work: Callable[[], R]) -> R:
        """What `work` returns, once all have done theirs. Raises Cancelled when one was told to stop."""
        done: list[R] = []
        with suppress(Cancelled):
            done.append(work())
        self._meet("encoded images")
        if self.stopping:
            raise Cancelled("Stopped while encoding.")
        return done[0]

    def begin(self, train_step: TrainStep, where: Callable[[], str]) -> None:
        """All begin as the first does, and every step is of the means of all; `where` names the step."""
        if self.processes.count == 1:
            return
        for tensor in train_step.state().values():
            self.processes.spread(tensor)

        def exchange(sums: Tensor) -> None:
            self._meet(where())
            self.processes.average(sums)

        train_step.share = exchange

    def require_same(self, tensors: Iterable[Tensor]) -> None:
        """Raises SdloraError when `tensors` (fp32) have other bits in another process."""
        if self.processes.count > 1:
            sums = [tensor.detach().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors]
            digest = str(hash(tuple(torch.stack(sums).tolist())))
            if len(set(meet(self.processes, "a comparison of adapters", digest))) > 1:
                raise SdloraError(
                    "The GPUs of this run no longer hold the same adapter.",
                    "Resume from its last checkpoint, on GPUs of one kind.",
                )

    def _meet(self, place: str) -> None:
        self.stopping = "stop" in meet(self.processes, place, "stop" if self.asked else "")


def meet(processes: Processes, place: str, said: str = "") -> list[str]:
    """What each process says, once all are at `place`. Raises ProcessFailed."""
    try:
        texts = processes.exchange(f"{place}\n{said}")
    except RuntimeError as error:  # torch's, when a connection breaks
        raise ProcessFailed(
            "Another process of this run ended without a word.",
            "Look at what it printed; `sdlora resume` goes on from the last checkpoint.",
        ) from error
    words = [text.partition("\n")[::2] for text in texts]
    for there, rest in words:
        if there == _FAILED:
            message, _, hint = rest.partition("\n")
            raise ProcessFailed(message, hint)
    places = [there for there, _ in words]
    if places[0] == _END != place:
        raise ProcessFailed("The first process has ended.")
    if place != _END and set(places) != {place}:
        raise ProcessFailed(f"The processes of this run lost step: they are at {', '.join(places)}.")
    return [rest for _, rest in words]


def _tell_failed(processes: Processes, error: BaseException) -> None:
    """The others, where they meet next, raise what went wrong here."""
    message, hint = unforeseen(error), ""
    if isinstance(error, SdloraError):
        message, hint = error.message, error.hint
    elif isinstance(error, KeyboardInterrupt):
        message = "Cancelled."
    with suppress(RuntimeError):  # the others have gone already
        processes.exchange("\n".join((_FAILED, " ".join(message.split()), hint)))
