"""A run folder has one writer, any number of readers, and a status that cannot lie."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.errors import RunError, StorageError
from sdlora.events import CheckpointSaved, Phase, RunEnded, RunStarted
from sdlora.training.run import Run

CONFIG = options.build(TrainConfig, {"output.name": "my: style", "loop.steps": 7})
STARTED = RunStarted(step=0, steps=7, images=1, parameters=1, device="CPU")
HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom sdlora.training.run import Run\n"
    "with Run.open(Path(sys.argv[1])).locked():\n    print('held', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(CONFIG, tmp_path / "runs")


def test_a_run_remembers_its_configuration(run: Run) -> None:
    assert Run.open(run.path).config == CONFIG


def test_runs_of_one_name_are_numbered(tmp_path: Path) -> None:
    names = [Run.create(CONFIG, tmp_path).path.name for _ in range(3)]
    assert names == ["my- style", "my- style-2", "my- style-3"]


def test_a_named_folder_is_used_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    assert Run.create_at(CONFIG, folder).path == folder
    with pytest.raises(RunError, match="holds a run already"):
        Run.create_at(CONFIG, folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_text("")
    with pytest.raises(RunError, match="is not empty"):
        Run.create_at(CONFIG, tmp_path / "full")


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="not writable"):
        Run.create(CONFIG, tmp_path / "runs")


def test_the_status_follows_lock_and_events(run: Run) -> None:
    assert run.status == "starting"
    with run.locked():
        assert run.status == "starting"
        run.report(STARTED)
        assert run.status == "running"
    assert run.status == "interrupted"
    with run.locked():
        run.report(RunEnded(outcome="stopped", step=3))
    assert run.status == "stopped"
    with run.locked():
        assert run.status == "starting"


def test_a_run_that_never_began_is_interrupted_after_a_minute(run: Run) -> None:
    old = time.time() - 100
    os.utime(run.path / "config.toml", (old, old))
    assert run.status == "interrupted"


def test_a_killed_process_leaves_an_interrupted_run(run: Run) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    run.report(STARTED)
    assert run.status == "running"
    with pytest.raises(RunError, match="trained already"), run.locked():
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    assert run.status == "interrupted"


def test_events_are_read_by_offset_and_survive_a_torn_line(run: Run) -> None:
    with run.locked():
        run.report(STARTED, Phase(name="encoding images", done=1, total=2))
    found, offset = run.events()
    assert [type(event) for event in found] == [RunStarted, Phase]
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"type": "StepDo')
    with run.locked():
        run.report(CheckpointSaved(step=5, file="checkpoints/step-000005"))
    later, _ = run.events(offset)
    assert [type(event) for event in later] == [CheckpointSaved]


def test_commands_are_taken_once_in_their_order(run: Run) -> None:
    with run.locked():
        run.report(STARTED)
        run.command("preview")
        run.command("stop")
        assert run.take_commands() == ["preview", "stop"]
        assert run.take_commands() == []


def test_a_command_to_a_dead_run_is_refused(run: Run) -> None:
    with run.locked():
        run.report(RunEnded(outcome="finished", step=7))
    with pytest.raises(RunError, match="is not running"):
        run.command("stop")


def test_a_command_that_a_dead_process_left_does_not_stop_the_next_one(run: Run) -> None:
    with run.locked():
        run.report(STARTED)
        run.command("stop")
        time.sleep(0.01)
        run.report(Phase(name="x", done=0, total=1))
    with run.locked():
        assert run.take_commands() == []


def test_an_early_stop_reaches_a_process_that_is_only_starting(run: Run) -> None:
    run.command("stop")
    with run.locked():
        assert run.take_commands() == ["stop"]


def test_checkpoints_are_listed_oldest_first_without_half_written_ones(run: Run) -> None:
    for name in ("step-000010", "step-1000000", "step-000002", "step-000030.tmp"):
        (run.path / "checkpoints" / name).mkdir()
    assert [path.name for path in run.checkpoints()] == ["step-000002", "step-000010", "step-1000000"]


def test_runs_of_one_pass_know_each_other_until_they_are_gone(tmp_path: Path) -> None:
    alone = Run.create(TrainConfig(), tmp_path)
    first, second, third = Run.create_together([TrainConfig()] * 3, tmp_path)
    assert alone.siblings == ()
    assert first.siblings == third.siblings == (first, second, third)
    assert third.comparison == first.path / "comparison.png"
    shutil.rmtree(second.path)
    assert first.siblings == (first, third)
    (third.path / "together.json").write_text('[3, "x')
    assert third.siblings == ()
    shutil.rmtree(third.path)
    assert first.siblings == ()
