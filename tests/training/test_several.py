"""Two processes learn what one learns from batches of twice the size, and end as one."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdlora.errors import RunError, SdloraError
from sdlora.events import CheckpointSaved, Event, RunEnded, RunStarted, StepDone
from sdlora.training.loop import train
from sdlora.training.run import Run
from sdlora.training.several import joined
from sdlora.training.step import TrainStep
from tests.training.conftest import MakeRun

# Children are forked from a server that has imported everything, and so begin at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["sdlora.training.loop", "accelerate", "tests.training.test_several"])

Listen = Callable[[Run, int], Callable[[Event], None]]


def silent(run: Run, rank: int) -> Callable[[Event], None]:
    return lambda event: None


def stopping_at_two(run: Run, rank: int) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            run.command("stop")

    return on_event


def failing_in_the_second(run: Run, rank: int) -> Callable[[Event], None]:
    if rank == 1:

        def accumulate(self: TrainStep, step: object) -> None:
            raise SdloraError("The second card is on fire.", "Put it out.")

        TrainStep.accumulate = accumulate  # type: ignore[method-assign]
    return lambda event: None


def dying_in_the_second(run: Run, rank: int) -> Callable[[Event], None]:
    if rank == 1:
        TrainStep.accumulate = lambda self, step: os._exit(9)  # type: ignore[method-assign]
    return lambda event: None


def diverging_in_the_second(run: Run, rank: int) -> Callable[[Event], None]:
    if rank == 1:
        update = TrainStep.update

        def crooked(self: TrainStep) -> None:
            update(self)
            next(iter(self.parameters.values())).data.add_(1)

        TrainStep.update = crooked  # type: ignore[method-assign]
    return lambda event: None


def process(folder: Path, rank: int, port: int, listen: Listen) -> None:
    """Process `rank` of two, as a launcher starts it."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, 2, 2, "127.0.0.1", port)
    os.environ |= {name: str(value) for name, value in zip(names, values, strict=True)}
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    run = Run.open(folder)
    with joined() as processes:
        train(run, on_event=listen(run, rank), processes=processes)


def train_with_two(run: Run, listen: Listen = silent) -> list[int | None]:
    """The exit codes of two processes that trained the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [SERVER.Process(target=process, args=(run.path, rank, port, listen)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    return [one.exitcode for one in both]


def of(run: Run, kind: type) -> list:
    return [event for event in run.events()[0] if isinstance(event, kind)]


def weights(run: Run) -> torch.Tensor:
    held = load_file(run.checkpoints()[-1] / "state.safetensors")
    return torch.cat([held[name].flatten() for name in sorted(held) if name.startswith("weight/")])


def test_two_processes_learn_what_one_learns_from_twice_the_batch(make_run: MakeRun) -> None:
    """Losses to 1e-5 of their size; weights, which move by 1e-3 a step, to 1e-5."""
    same = {"adapter__dropout": 0.0, "loop__accumulate": 2, "adapter__text_encoder": True}
    one, two = make_run(loop__batch_size=4, **same), make_run(loop__batch_size=2, **same)
    train(one)
    assert train_with_two(two) == [0, 0]
    losses = [[event.loss for event in of(run, StepDone)] for run in (one, two)]
    assert len(losses[1]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert torch.allclose(weights(two), weights(one), rtol=0, atol=1e-5)
    assert [event.step for event in of(two, CheckpointSaved)] == [2, 4, 6]
    assert len(of(two, RunStarted)) == len(of(two, RunEnded)) == 1
    assert two.adapter.is_file()


def test_a_stop_reaches_all_and_as_many_go_on_to_the_same_bytes(make_run: MakeRun) -> None:
    straight, broken = (make_run(loop__steps=4, loop__save_every=4) for _ in range(2))
    assert train_with_two(straight) == [0, 0]
    assert train_with_two(broken, stopping_at_two) == [0, 0]
    (ended,) = of(broken, RunEnded)
    assert (ended.outcome, ended.step) == ("stopped", 3)
    assert train_with_two(broken) == [0, 0]
    assert broken.adapter.read_bytes() == straight.adapter.read_bytes()
    with pytest.raises(RunError, match="processes that train together were 2 and are 1"):
        train(broken)


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        (failing_in_the_second, "The second card is on fire."),
        (dying_in_the_second, "Another process of this run ended without a word."),
        (diverging_in_the_second, "The GPUs of this run no longer hold the same adapter."),
    ],
)
def test_what_ends_one_ends_all_in_one_sentence(make_run: MakeRun, listen: Listen, message: str) -> None:
    run = make_run()
    codes = train_with_two(run, listen)
    assert codes[0] == 1
    (ended,) = of(run, RunEnded)
    assert (ended.outcome, ended.error) == ("failed", message)
