"""What a step gives up when the device's memory does not suffice: one thing after the other, until it fits.

First activations are computed again, those that pay most before the rest; then micro-batches are halved. What
is learned stays the same, up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from sdlora.config import LoopSpec
from sdlora.contracts import Step
from sdlora.training.recompute import Parts, recomputed


class Ladder:
    """How far down the steps of a run are."""

    def __init__(self, loop: LoopSpec, *, whole: bool = False) -> None:
        """Micro-batches that are `whole` are not parted."""
        self._recomputing: Parts | None = "blocks" if loop.checkpointing else None
        self._most = 0 if whole else loop.batch_size  # samples a micro-batch; 0 is any number

    def descend(self) -> str:
        """One thing more is given up: what that is, in words. Empty when nothing is left to give up."""
        if self._recomputing is None:
            self._recomputing = "feed-forwards"
            return "activations of feed-forward layers are recomputed"
        if self._recomputing == "feed-forwards":
            self._recomputing = "blocks"
            return "all activations are recomputed"
        if self._most > 1:
            self._most = (self._most + 1) // 2
            images = "image" if self._most == 1 else "images"
            return f"micro-batches are of {self._most} {images}, which add up to the same batch"
        return ""

    def applied(self, unet: nn.Module) -> AbstractContextManager[None]:
        """Inside, `unet` computes again what it is to compute again."""
        return recomputed(unet, self._recomputing) if self._recomputing else nullcontext()

    def parted(self, micro_batches: Sequence[Step]) -> tuple[Step, ...]:
        """The micro-batches in parts that are small enough, and whose gradients add up to theirs."""
        if not self._most:
            return tuple(micro_batches)
        return tuple(part for step in micro_batches for part in parted(step, self._most))


def parted(step: Step, most: int) -> Iterator[Step]:
    """`step` in parts of at most `most` samples.

    Its loss is the mean over its samples; so that of a part counts by the part's share of them.
    """
    count = len(step.weight)
    if count <= most:
        yield step
        return
    for start in range(0, count, most):

        def taken(part: Tensor, start: int = start) -> Tensor:
            return part[start : start + most]

        part = step.map(taken)
        yield part._replace(weight=part.weight * (len(part.weight) / count))
