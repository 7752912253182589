"""The learning rate is a function of the step alone."""

import pytest

from sdlora.config import ScheduleSpec
from sdlora.training.lr import factor


def rates(steps: int, **spec: object) -> list[float]:
    return [factor(ScheduleSpec(**spec), step, steps=steps) for step in range(steps)]


def test_a_constant_rate_is_constant() -> None:
    assert rates(4, shape="constant", warmup=0) == [1, 1, 1, 1]


def test_the_warm_up_rises_evenly_to_the_peak() -> None:
    assert rates(10, shape="constant", warmup=0.4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_linear_falls_evenly() -> None:
    assert rates(4, shape="linear", warmup=0) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_cosine_is_half_way_in_the_middle() -> None:
    found = rates(100, shape="cosine", warmup=0)
    assert found[0] == 1 and found[50] == pytest.approx(0.5) and found[99] < 0.001


def test_the_floor_is_never_crossed() -> None:
    assert min(rates(50, shape="cosine", warmup=0, floor=0.2)) >= 0.2


def test_one_step_and_a_whole_run_of_warm_up_are_allowed() -> None:
    assert rates(1, shape="cosine", warmup=0) == [1]
    assert rates(4, warmup=1) == pytest.approx([0.2, 0.4, 0.6, 0.8])
