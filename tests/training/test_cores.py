"""Samples side by side on a CPU's cores learn what they learn together."""

import threading
from collections.abc import Iterator

import pytest
import torch

from sdlora.contracts import Step
from sdlora.training.cores import side_by_side
from sdlora.training.step import Slope
from tests.training.test_step import OneLayer, example, made, run, weights


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    """torch has three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_side_by_side_learns_what_one_after_the_other_learns(dtype: torch.dtype) -> None:
    plain, parted, again = (made(OneLayer(dtype)) for _ in range(3))
    step = example(3, count=4)._replace(weight=torch.tensor([1.0, 0.5, 2.0, 1.0]))
    with side_by_side(parted.step, most=4):
        found = run(parted, step)
    assert found == pytest.approx(run(plain, step), rel=1e-5 if dtype == torch.float32 else 1e-2)
    with side_by_side(again.step, most=4):
        assert run(again, step) == found
    assert all(torch.equal(*pair) for pair in zip(weights(parted), weights(again), strict=True))


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [1, 1]), (4, [2, 2]), (6, [2, 2, 2])])
def test_each_part_has_threads_of_its_own(
    monkeypatch: pytest.MonkeyPatch, count: int, sizes: list[int]
) -> None:
    it, seen = made(), []
    slope = it.step.slope

    def watched(step: Step) -> Slope:
        seen.append((len(step.weight), torch.get_num_threads(), threading.current_thread().name))
        return slope(step)

    monkeypatch.setattr(it.step, "slope", watched)
    with side_by_side(it.step, most=count):
        run(it, example(0, count=count))
    assert sorted(part for part, _, _ in seen) == sizes
    assert all((used == 3) == (count == 1) == ("cores" not in name) for _, used, name in seen)
    assert torch.get_num_threads() == 3


def test_what_draws_stays_together() -> None:
    it = made(adapter__dropout=0.5)
    before = it.step.slopes
    with side_by_side(it.step, most=4):
        assert it.step.slopes is before


def test_a_failure_of_a_part_is_that_of_the_step() -> None:
    it = made()
    before, bad = it.step.slopes, example(0, count=4)._replace(timesteps=torch.tensor([0, 1, 2, 5000]))
    with side_by_side(it.step, most=4), pytest.raises(IndexError):
        run(it, bad)
    assert it.step.slopes is before
