"""Aspect-ratio buckets: every image is trained at nearly its own shape, all shapes at nearly the same area.

Every batch is full, because a captured training step needs fixed shapes: where the images of a bucket do
not fill its last batch of a pass, some of them are drawn twice and share the weight of one (see
docs/decisions/006-full-batches.md). So no image is dropped, none counts more than another, and a pass takes
exactly `sum(ceil(samples of the bucket / batch size))` batches.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from sdlora.data.items import Item
from sdlora.errors import DatasetError

MULTIPLE = 8  # pixels of a latent


class Bucket(NamedTuple):
    """A training size in pixels."""

    width: int
    height: int

    @property
    def aspect(self) -> float:
        return self.width / self.height


@dataclass(frozen=True, kw_only=True)
class BucketPlan:
    """Which bucket each item is trained in: `bucket_of[i]` is that of `items[i]`."""

    items: tuple[Item, ...]
    bucket_of: tuple[Bucket, ...]
    batch_size: int

    @cached_property
    def samples(self) -> dict[Bucket, int]:
        """Images times repeats of each bucket that is used, in the order of the buckets' widths."""
        counts: Counter[Bucket] = Counter()
        for item, bucket in zip(self.items, self.bucket_of, strict=True):
            counts[bucket] += item.repeats
        return dict(sorted(counts.items()))

    @cached_property
    def batches_per_pass(self) -> int:
        """Batches in which every image was trained on `repeats` times."""
        return sum(map(self.batches_of, self.samples.values()))

    def batches_of(self, samples: int) -> int:
        """Batches that hold so many samples of one bucket."""
        return math.ceil(samples / self.batch_size)


def plan(
    items: Sequence[Item], *, resolution: int, step: int, max_aspect: float, batch_size: int
) -> BucketPlan:
    """Every item has the bucket nearest to its aspect ratio. Raises DatasetError without items."""
    if not items:
        raise DatasetError("There are no images to train on.")
    choice = buckets(resolution, step=step, max_aspect=max_aspect)
    chosen = tuple(nearest(item.width, item.height, choice) for item in items)
    return BucketPlan(items=tuple(items), bucket_of=chosen, batch_size=batch_size)


def buckets(resolution: int, *, step: int, max_aspect: float) -> tuple[Bucket, ...]:
    """All sizes of at most `resolution` squared pixels, none more oblong than `max_aspect`.

    Sides are multiples of `step`, which is reduced to an eighth of the resolution; for each side the other
    is the longest that the area allows.
    """
    step = max(MULTIPLE, min(step, resolution // 8) // MULTIPLE * MULTIPLE)
    square = max(step, resolution // step * step)
    found = {Bucket(square, square)}
    for side in range(step, int(resolution * max_aspect) + 1, step):
        other = resolution * resolution // side // step * step
        if other and max(side, other) <= max_aspect * min(side, other):
            found |= {Bucket(side, other), Bucket(other, side)}
    return tuple(sorted(found))


def nearest(width: int, height: int, choice: Sequence[Bucket]) -> Bucket:
    """The bucket that crops an image of this size least."""
    return min(choice, key=lambda bucket: (cropped(width, height, bucket), -bucket.width * bucket.height))


def cropped(width: int, height: int, bucket: Bucket) -> float:
    """Fraction of an image's area that is cut off to fill the bucket, in [0, 1)."""
    ratio = width / height / bucket.aspect
    return 1 - min(ratio, 1 / ratio)
