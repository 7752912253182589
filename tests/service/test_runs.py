"""A run belongs to nobody's process: it is started, watched, stopped and resumed through its folder."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdlora.config import TrainConfig
from sdlora.errors import ConfigError, RunError, UserError
from sdlora.events import RunEnded, RunStarted, StepDone
from sdlora.options import build
from sdlora.service.progress import POINTS, Fold, RunView
from sdlora.service.runs import Runs
from sdlora.service.studio import Studio
from sdlora.training.run import Run


def config(folder: Path, **changes: object) -> TrainConfig:
    return build(
        TrainConfig, {"data.folder": str(folder), "output.name": "ink", "preview.every": -1, **changes}
    )


def until(studio: Studio, name: str, *statuses: str) -> RunView:
    for _ in range(600):
        view = studio.runs.view(name)
        if view.status in statuses:
            return view
        time.sleep(0.2)
    pytest.fail(f"{view.status}: {studio.runs.log(name)}")


def step(number: int, loss: float = 1.0) -> StepDone:
    return StepDone(step=number, loss=loss, lr=1e-4, grad_norm=1.0, seconds=0.5)


def started(number: int = 0) -> RunStarted:
    return RunStarted(step=number, steps=1000, images=6, parameters=10, device="CPU")


def test_a_run_survives_its_studio_and_stops_and_resumes_through_another(
    studio: Studio, image_folder: Path
) -> None:
    name = studio.start(config(image_folder, **{"loop.steps": 100_000}))
    until(studio, name, "running")
    other = Studio(studio.home, device="cpu")
    studio.close()
    while other.runs.view(name).step < 2:
        time.sleep(0.1)
    other.runs.command(name, "stop")
    stopped = until(other, name, "stopped")
    assert stopped.adapter is not None and stopped.step >= 2
    with pytest.raises(UserError):
        other.runs.command(name, "stop")
    other.resume(name)
    until(other, name, "running")
    other.runs.command(name, "stop")
    assert until(other, name, "stopped").step >= stopped.step
    for child in (*studio.runs._children.values(), *other.runs._children.values()):
        child.process.wait()


def test_plans_that_are_asked_for_at_once_do_not_disturb_one_another(
    studio: Studio, image_folder: Path
) -> None:
    asked = [config(image_folder, **{"adapter.rank": rank}) for rank in range(2, 8)]
    studio.plan(config(image_folder, **{"adapter.rank": 1}))  # from here on the model's outline is shared
    usual = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)  # threads meet wherever they can
        with ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(studio.plan, asked))
    finally:
        sys.setswitchinterval(usual)
    assert together == [studio.plan(each) for each in asked]


def test_only_new_events_are_read_and_the_curve_stays_small(tmp_path: Path) -> None:
    run = Run.create(build(TrainConfig, {}), tmp_path)
    fold = Fold(run)
    run.report(started(), *(step(number) for number in range(1, 1001)))
    first = fold.view()
    run.report(step(1001))
    second = fold.view()
    assert (first.step, second.step) == (1000, 1001)
    assert len(second.losses) <= POINTS + 1 and second.losses[-1][0] == 1001


def test_a_resumed_run_forgets_the_curve_after_its_checkpoint(tmp_path: Path) -> None:
    run = Run.create(build(TrainConfig, {}), tmp_path)
    run.report(started(), *(step(number) for number in range(1, 30)))
    run.report(RunEnded(outcome="failed", step=29, error="Broken."), started(10), step(11))
    view = Fold(run).view()
    assert [point[0] for point in view.losses] == list(range(1, 12))


def test_a_failed_run_tells_why(tmp_path: Path) -> None:
    run = Run.create(build(TrainConfig, {}), tmp_path)
    run.report(started(), RunEnded(outcome="failed", step=0, error="Out of memory.", hint="Use less."))
    view = Fold(run).view()
    assert (view.status, view.error, view.hint) == ("failed", "Out of memory.", "Use less.")


def test_a_damaged_run_hides_no_other(studio: Studio) -> None:
    good = Run.create(build(TrainConfig, {}), studio.home.runs)
    bad = Run.create(build(TrainConfig, {}), studio.home.runs)
    (bad.path / "config.toml").write_text("not [ toml")
    statuses = {view.name: view for view in studio.runs.views()}
    assert set(statuses) == {good.path.name, bad.path.name}
    assert statuses[bad.path.name].error


def test_names_reach_no_other_folder(studio: Studio) -> None:
    with pytest.raises(UserError):
        studio.runs.view("../../etc")


def test_a_removed_run_lies_in_the_trash(studio: Studio) -> None:
    run = Run.create(build(TrainConfig, {}), studio.home.runs)
    run.report(started(), RunEnded(outcome="stopped", step=0))
    place = studio.runs.remove(run.path.name)
    assert studio.runs.names() == () and (place / run.path.name / "config.toml").exists()
    with pytest.raises(RunError):
        studio.runs.view(run.path.name)


def test_a_trainer_that_dies_at_once_is_seen_at_once(
    tmp_path: Path, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    runs = Runs(studio.home.runs, studio.trash)
    name = runs.start(build(TrainConfig, {}))
    for _ in range(100):
        if runs.view(name).status == "failed":
            break
        time.sleep(0.05)
    assert "before it began" in runs.view(name).error


def test_a_sweep_is_one_process_and_each_of_its_runs_stops_by_itself(
    studio: Studio, image_folder: Path
) -> None:
    asked = config(image_folder, **{"loop.steps": 100_000, "data.max_aspect": 1})
    sweep = studio.several(asked, datasets=[image_folder], swept={"optimizer.lr": ["1e-3", "1e-4"]})
    alone, both = studio.plan(asked), studio.plan_together(sweep)
    assert alone.memory_bytes < both.memory_bytes < 2 * alone.memory_bytes
    first, second = studio.start_together(sweep)
    assert (first, second) == ("ink-lr-1e-3", "ink-lr-1e-4")
    until(studio, first, "running")
    while studio.runs.view(second).step < 1:
        time.sleep(0.1)
    studio.runs.command(first, "stop")
    until(studio, first, "stopped")
    step = studio.runs.view(second).step
    while studio.runs.view(second).step < step + 3:
        time.sleep(0.1)
    assert studio.runs.view(first).status == "stopped"
    found = studio.runs.siblings(second)
    assert found is not None and found.picture is None
    assert [view.name for view in found.views] == [first, second]
    assert found.own == ({"optimizer.lr": 1e-3}, {"optimizer.lr": 1e-4})
    studio.runs.command(second, "stop")
    until(studio, second, "stopped")
    children = {each.process for each in studio.runs._children.values()}
    assert [child.wait() for child in children] == [130]


def test_runs_that_cannot_go_together_are_refused_before_they_start(
    studio: Studio, image_folder: Path
) -> None:
    swept = {"loop.batch_size": ["1", "2"]}
    with pytest.raises(ConfigError, match="share"):
        studio.start_together(studio.several(config(image_folder), datasets=[image_folder], swept=swept))
    assert studio.runs.names() == ()
