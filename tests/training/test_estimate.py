"""A plan says exactly how many steps see what, and learns from runs that were measured."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from sdlora.config import TrainConfig
from sdlora.errors import DatasetError, ModelError
from sdlora.home import Home
from sdlora.training import measured
from sdlora.training.estimate import plan_of
from sdlora.training.loop import train
from tests.training.conftest import MakeRun


def test_passes_follow_from_steps_and_buckets(make_run: MakeRun) -> None:
    plan = plan_of(make_run(loop__steps=8, loop__batch_size=2, loop__accumulate=1).config)
    # 3 square, 2 wide and 1 tall picture in batches of 2: 2 + 1 + 1 = 4 steps a pass
    assert (plan.steps, plan.images, plan.passes) == (8, 6, 2.0)
    assert plan.base == "Stable Diffusion 1.x, 64 pixels, predicts epsilon"
    assert sum(bucket.samples for bucket in plan.buckets) == 6


def test_a_noise_that_cannot_be_is_told_before_the_run(make_run: MakeRun) -> None:
    with pytest.raises(ModelError, match="cannot be combined"):
        plan_of(make_run(base__zero_terminal="on").config)


def test_time_is_unknown_until_a_like_run_was_measured(make_run: MakeRun) -> None:
    run = make_run(loop__steps=10)
    before = plan_of(run.config)
    assert before.seconds is None and before.estimated
    train(run)
    after = plan_of(run.config)
    assert after.seconds is not None and 0 < after.seconds < 100 and not after.estimated
    other = replace(run.config, loop=replace(run.config.loop, batch_size=3))
    assert plan_of(other).seconds is None


def test_more_of_anything_is_estimated_to_need_more_memory(make_run: MakeRun) -> None:
    config = make_run().config
    least = plan_of(config).memory_bytes

    def needed(config: TrainConfig) -> int:
        return plan_of(config).memory_bytes

    assert needed(replace(config, loop=replace(config.loop, batch_size=8))) > least
    assert needed(replace(config, data=replace(config.data, resolution=128))) > least
    assert needed(replace(config, adapter=replace(config.adapter, rank=512))) > least
    assert needed(replace(config, loop=replace(config.loop, checkpointing=True))) < least


def test_less_than_one_pass_and_files_of_no_use_are_told(make_run: MakeRun, image_folder: Path) -> None:
    (image_folder / "broken.png").write_bytes(b"no picture")
    warnings = " ".join(plan_of(make_run(loop__steps=1, objective__preservation=0.1).config).warnings)
    assert "1 file of the dataset cannot be used" in warnings
    assert "less than one pass" in warnings
    assert "Without a trigger word" in warnings
    keeping = make_run(objective__preservation=0.1, data__captions__trigger="cat")
    assert not any("trigger" in text for text in plan_of(keeping.config).warnings)


def test_a_missing_dataset_or_base_is_told_before_the_start(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        plan_of(make_run(data__folder=str(tmp_path / "nothing")).config)
    with pytest.raises(ModelError):
        plan_of(make_run(base__model=str(tmp_path / "nothing")).config)


def test_the_median_of_steady_steps_is_remembered(make_run: MakeRun) -> None:
    config, cache = make_run().config, Home.default().cache
    seconds = [9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 5.0]
    measured.remember(cache, config, seconds, model="m", resolution=64, memory=7)
    found = measured.recall(cache, config, model="m", resolution=64)
    assert found is not None and math.isclose(found.seconds, 1.0) and found.memory == 7
    assert measured.recall(cache, config, model="m", resolution=128) is None


def test_a_damaged_memory_is_no_memory(make_run: MakeRun) -> None:
    config, cache = make_run().config, Home.default().cache
    cache.mkdir(parents=True)
    (cache / "step-times.json").write_text("{")
    assert measured.recall(cache, config, model="m", resolution=64) is None
