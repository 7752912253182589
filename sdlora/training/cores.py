"""A step on a CPU: the samples of a micro-batch side by side, each part of them on cores of its own.

Cores that share every operation wait for one another a thousand times a step, and work that holds one of
them up holds up all. With parts of their own they meet once. What is learned stays the same, up to rounding.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from sdlora.contracts import Step
from sdlora.training.ladder import parted
from sdlora.training.step import OptimizerStep, Slope, TrainStep


@contextmanager
def side_by_side(train_step: OptimizerStep, *, most: int) -> Iterator[None]:
    """Inside, where it can be, `train_step` computes the samples of a micro-batch side by side.

    There are at most `most` of them, and they are shared out to the threads that torch has here.
    """
    threads = torch.get_num_threads()
    parts = min(threads, most)
    if parts == 1 or not isinstance(train_step, TrainStep) or not _can_part(train_step):
        yield
        return
    named, shares = "cores", (threads // parts,)
    with ThreadPoolExecutor(parts, named, initializer=torch.set_num_threads, initargs=shares) as pool:

        def slopes(step: Step) -> Iterator[Slope]:
            if len(step.weight) == 1:
                return iter([train_step.slope(step)])
            return pool.map(train_step.slope, parted(step, math.ceil(len(step.weight) / parts)))

        before, train_step.slopes = train_step.slopes, slopes
        try:
            yield
        finally:
            train_step.slopes = before


def _can_part(train_step: TrainStep) -> bool:
    """On a CPU, where nothing is drawn: threads would draw from torch's one generator in any order."""
    draws = any(getattr(adapter, "dropout", 0) for adapter in train_step.working.adapters.values())
    return train_step.family.device.type == "cpu" and not draws
