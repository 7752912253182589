"""Killed, or out of disk, a run loses nothing that it had saved, and goes on to the same bytes."""

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora.events import CheckpointSaved, RunEnded, RunStarted
from sdlora.network.codec import AdapterFile
from sdlora.training.checkpoint import Checkpoint
from sdlora.training.loop import train
from sdlora.training.run import Run
from tests.training.conftest import MakeRun

resource = pytest.importorskip("resource", reason="Windows cannot limit a file's size")

# Children are forked from a server that has imported everything, and so begin at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["sdlora.training.loop", "tests.training.test_crashes"])
DISK_FULL = 20_000  # bytes; more than the events, less than a checkpoint


def train_here(folder: Path) -> None:
    train(Run.open(folder))


def train_until_the_disk_is_full(folder: Path) -> None:
    def on_event(event: object) -> None:
        if isinstance(event, CheckpointSaved):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_FULL, DISK_FULL))

    train(Run.open(folder), on_event=on_event)


def child(target: Callable[[Path], None], run: Run) -> multiprocessing.process.BaseProcess:
    process = SERVER.Process(target=target, args=(run.path,))
    process.start()
    return process


def kill_somewhere(process: multiprocessing.process.BaseProcess, run: Run, moments: random.Random) -> None:
    """It is killed some events from now, in the middle of whatever follows the last of them."""
    wanted = len(run.events()[0]) + moments.randrange(1, 10)
    while process.is_alive() and len(run.events()[0]) < wanted:
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.1))
    process.kill()
    process.join()


def check_whatever_can_be_read(run: Run) -> None:
    """Every file under its final name is whole."""
    run.events()
    for folder in run.checkpoints():
        AdapterFile.open(folder / "adapter.safetensors")
    last = Checkpoint.latest(run)
    if last is not None:
        assert last.state()
    if run.adapter.exists():
        AdapterFile.open(run.adapter)


@pytest.mark.slow
def test_a_run_killed_ten_times_goes_on_to_the_same_bytes(make_run: MakeRun) -> None:
    straight, killed = (make_run(loop__steps=15, loop__save_every=1, loop__accumulate=2) for _ in range(2))
    train(straight)
    moments = random.Random(0)
    for _ in range(10):
        process = child(train_here, killed)
        kill_somewhere(process, killed, moments)
        assert killed.status in ("interrupted", "finished", "starting")
        check_whatever_can_be_read(killed)
    starts = {event.step for event in killed.events()[0] if isinstance(event, RunStarted)}
    assert len(starts) > 2  # it was killed at several steps, and went on
    assert train(killed).outcome == "finished"
    assert killed.adapter.read_bytes() == straight.adapter.read_bytes()
    assert not list((killed.path / "checkpoints").glob("*.tmp"))


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_is_whole(make_run: MakeRun) -> None:
    straight, full = make_run(), make_run()
    train(straight)
    process = child(train_until_the_disk_is_full, full)
    process.join()
    ended = full.events()[0][-1]
    assert isinstance(ended, RunEnded) and ended.outcome == full.status == "failed"
    assert ended.error.startswith("Could not write") and "\n" not in ended.error
    assert [path.name for path in full.checkpoints()] == ["step-000002"]
    assert not list((full.path / "checkpoints").glob("*.tmp"))
    check_whatever_can_be_read(full)
    assert train(full).outcome == "finished"
    assert full.adapter.read_bytes() == straight.adapter.read_bytes()
