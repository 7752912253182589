"""The learning rate as a pure function of the step, so that resuming needs no state of it."""

import math

from sdlora.config import ScheduleSpec


def factor(spec: ScheduleSpec, step: int, *, steps: int) -> float:
    """The learning rate of step `step` in [0, steps) as a fraction of its peak.

    It rises evenly over the warm-up, so that the step after it is the first at the peak, and then falls to
    `floor` at the end of the run.
    """
    warm = round(spec.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    if spec.shape == "constant":
        return 1.0
    progress = (step - warm) / max(1, steps - warm)
    fall = progress if spec.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return 1 - (1 - spec.floor) * fall
