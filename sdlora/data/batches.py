"""What is trained on at a step: a pure function of (seed, step, image), ready as static tensors.

There is no iterator state: `at(step)` can be asked in any order, by any process, and resuming is asking for
the next step. All draws are made on the CPU, each for one image alone, so that they depend neither on the
device nor on the rest of the batch.

Shapes: B batch, C latent channels, h w latents, E text encoders, L tokens, D width, P pooled width.
"""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sdlora.config import TrainConfig
from sdlora.contracts import Conditioning, Family, Step
from sdlora.data.ahead import ahead
from sdlora.data.buckets import Bucket, BucketPlan, plan
from sdlora.data.cache import LatentCache, TextCache, View, prune
from sdlora.data.captions import all_captions, caption_at, settled, varies, with_trigger, without_trigger
from sdlora.data.chance import choices, generator, number
from sdlora.data.images import place
from sdlora.data.items import Dataset, Item
from sdlora.home import cache_limit
from sdlora.residence import text_encoders

STEPS_AHEAD = 3
NO_TRIGGER = "Without a trigger word nothing keeps the adapter from showing where nobody called it."
KEPT = 4  # one sample of so many also keeps what the base makes of its caption without the trigger word


class Draw(NamedTuple):
    """One use of an image in a pass: the `copy`-th, with a loss weight of `weight`."""

    item: Item
    copy: int
    weight: float


def plan_for(dataset: Dataset, config: TrainConfig, native_size: int) -> BucketPlan:
    """The bucket plan of a run on a base of `native_size` pixels."""
    return plan(
        dataset.items,
        resolution=config.data.resolution or native_size,
        step=config.data.bucket_step,
        max_aspect=config.data.max_aspect,
        batch_size=config.loop.batch_size,
    )


def prepare(
    dataset: Dataset,
    config: TrainConfig,
    family: Family,
    *,
    cache: Path,
    train_text: bool,
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> "Batches":
    """The batches of a run, with everything encoded that can be encoded once.

    Captions are encoded only when that can be kept: the text encoder is not trained, and captions do not
    vary. `on_progress` is told (what, done, total); what it raises ends the work, which is kept.
    """
    limit, buckets = cache_limit(), plan_for(dataset, config, family.native_size)
    latents = LatentCache(cache, family)
    flips = (False, True) if config.data.flip else (False,)
    views = [
        View(item, bucket, flip)
        for item, bucket in zip(buckets.items, buckets.bucket_of, strict=True)
        for flip in flips
    ]
    latents.fill(views, lambda done, total: on_progress("encoding images", done, total))
    texts = None
    if not train_text and not any(varies(item, config.data.captions) for item in dataset.items):
        texts = TextCache(cache, family, clip_skip=config.base.clip_skip)
        captions = {text for item in dataset.items for text in all_captions(item, config.data.captions)}
        if preserves(config):
            captions |= {without_trigger(text, config.data.captions.trigger) for text in captions}
        texts.fill(captions, lambda done, total: on_progress("encoding captions", done, total))
    prune(cache, limit=limit)
    return Batches(buckets, config, family, latents=latents, texts=texts)


def preserves(config: TrainConfig) -> bool:
    """Whether steps also keep what the base makes of captions without the trigger word."""
    return bool(config.objective.preservation) and not lacks_trigger(config)


def lacks_trigger(config: TrainConfig) -> bool:
    """Whether nothing can be kept because there is no trigger word to leave out."""
    return bool(config.objective.preservation) and not config.data.captions.trigger.strip()


def pass_order(buckets: BucketPlan, *, seed: int, number_of_pass: int) -> list[tuple[Bucket, list[Draw]]]:
    """The batches of one pass, in order. All are full; the weights of each image add up to its repeats.

    Where a bucket's samples do not fill its last batch, the first ones of its order are drawn again, and all
    draws of a sample share its weight.
    """
    batches = []
    for bucket in buckets.samples:
        draws = _bucket_order(buckets, bucket, seed=seed, number_of_pass=number_of_pass)
        for start in range(0, len(draws), buckets.batch_size):
            place_in_pass = number(seed, "batch", number_of_pass, *bucket, start)
            batches.append((place_in_pass, bucket, draws[start : start + buckets.batch_size]))
    return [(bucket, draws) for _, bucket, draws in sorted(batches, key=lambda batch: batch[0])]


def _bucket_order(buckets: BucketPlan, bucket: Bucket, *, seed: int, number_of_pass: int) -> list[Draw]:
    samples = [
        (item, repeat)
        for item, its in zip(buckets.items, buckets.bucket_of, strict=True)
        if its == bucket
        for repeat in range(item.repeats)
    ]
    samples.sort(key=lambda sample: number(seed, "order", number_of_pass, sample[0].name, sample[1]))
    slots = buckets.batches_of(len(samples)) * buckets.batch_size
    laps, more = divmod(slots, len(samples))
    draws = []
    for slot in range(slots):
        lap, index = divmod(slot, len(samples))
        item, repeat = samples[index]
        draws.append(Draw(item, repeat + lap * item.repeats, 1 / (laps + (index < more))))
    return draws


class Batches:
    """The micro-batches of every step of a run."""

    def __init__(
        self,
        buckets: BucketPlan,
        config: TrainConfig,
        family: Family,
        *,
        latents: LatentCache,
        texts: TextCache | None,
    ) -> None:
        self.plan = buckets
        self.config = config
        self.family = family
        self._latents = latents
        self._texts = texts
        self._masked = any(item.mask for item in buckets.items)
        self._bucket_of = dict(zip((item.name for item in buckets.items), buckets.bucket_of, strict=True))
        self._longest = "" if texts else _longest_caption(family, buckets.items, config)
        self._order: tuple[int, list[tuple[Bucket, list[Draw]]]] = (-1, [])
        self._part = slice(None)  # of every micro-batch

    def part(self, number: int, *, of: int) -> "Batches":
        """Part `number` (from 0) `of` so many: its share of the samples of each of these micro-batches."""
        size = self.plan.batch_size // of
        part = copy.copy(self)
        part._part = slice(number * size, (number + 1) * size)
        return part

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that the steps are for: text encoders too where captions could not be encoded once."""
        return ("unet",) if self._texts else ("unet", *text_encoders(self.family))

    @property
    def forms(self) -> int:
        """In how many shapes micro-batches come."""
        return len(self.plan.samples) * (2 if preserves(self.config) else 1)

    @property
    def batches_per_pass(self) -> int:
        """Micro-batches in which every image was trained on `repeats` times."""
        return self.plan.batches_per_pass

    @property
    def steps_per_pass(self) -> float:
        """Optimizer steps a pass; whole when the micro-batches of a step divide those of a pass."""
        return self.batches_per_pass / self.config.loop.accumulate

    def at(self, step: int) -> tuple[Step, ...]:
        """The micro-batches of optimizer step `step` (from 0), on the CPU; pinned for a CUDA device."""
        count = self.config.loop.accumulate
        return tuple(part for i in range(count) for part in self._micro_batch(step * count + i))

    def stream(self, start: int = 0) -> Generator[tuple[Step, ...], None, None]:
        """`at(start)`, `at(start + 1)` and so on without end, made by a thread a few steps ahead."""
        return ahead(self.at, count(start), depth=STEPS_AHEAD)

    def _micro_batch(self, index: int) -> Iterator[Step]:
        """What is learned, then what is kept of the base where that is asked for."""
        number_of_pass, place_in_pass = divmod(index, self.batches_per_pass)
        bucket, draws = self._pass(number_of_pass)[place_in_pass]
        draws = draws[self._part]
        samples = [self._sample(draw, bucket, number_of_pass) for draw in draws]
        sizes = self._sizes([draw.item for draw in draws], bucket)
        yield self._step(samples, [sample.caption for sample in samples], sizes)
        every = max(1, KEPT // len(samples))  # micro-batches
        if preserves(self.config) and index % every == 0:
            yield self._keeping(samples[::KEPT], None if sizes is None else sizes[::KEPT], weight=every)

    def _keeping(self, samples: Sequence["_Sample"], sizes: Tensor | None, *, weight: float) -> Step:
        """The samples with what is said of them but for the trigger word."""
        spec, weight = self.config.data.captions, weight * self.config.objective.preservation
        kept = [sample._replace(mask=None, weight=weight) for sample in samples]
        captions = [without_trigger(sample.caption, spec.trigger) for sample in samples]
        return self._step(kept, captions, sizes)._replace(keeps=True)

    def _step(self, samples: Sequence["_Sample"], captions: Sequence[str], sizes: Tensor | None) -> Step:
        masks = [sample.mask for sample in samples if sample.mask is not None]
        step = Step(
            latents=torch.stack([sample.latents for sample in samples]),
            noise=torch.stack([sample.noise for sample in samples]),
            timesteps=torch.cat([sample.timestep for sample in samples]),
            tokens=None if self._texts else self._tokens(captions),
            conditioning=_stack([self._texts.read(text) for text in captions]) if self._texts else None,
            sizes=sizes,
            weight=torch.tensor([sample.weight for sample in samples]),
            mask=torch.stack(masks) if masks else None,
        )
        return step.map(Tensor.pin_memory) if self.family.device.type == "cuda" else step

    def _pass(self, number_of_pass: int) -> list[tuple[Bucket, list[Draw]]]:
        kept, order = self._order
        if kept != number_of_pass:
            order = pass_order(self.plan, seed=self.config.loop.seed, number_of_pass=number_of_pass)
            self._order = (number_of_pass, order)
        return order

    def _sample(self, draw: Draw, bucket: Bucket, number_of_pass: int) -> "_Sample":
        item, seed, objective = draw.item, self.config.loop.seed, self.config.objective
        which = (item.name, number_of_pass, draw.copy)
        flip = self.config.data.flip and choices(seed, "flip", *which).random() < 0.5
        latents, mask = self._latents.read(View(item, bucket, flip))
        chance = generator(seed, "noise", *which)
        white = torch.randn(latents.shape, generator=chance)
        return _Sample(
            latents=latents,
            mask=torch.ones_like(latents[:1]) if self._masked and mask is None else mask,
            noise=objective.shape_noise(white, chance),
            timestep=objective.timesteps(generator(seed, "timestep", *which), 1),
            caption=caption_at(item, self.config.data.captions, seed=seed, step_key=f"{which[1]} {which[2]}"),
            weight=draw.weight,
        )

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        """Ids [B,E,L] of captions, as long as those of the longest of the dataset: shapes never change."""
        return self.family.tokenize([*captions, self._longest]).ids[:-1]

    def _sizes(self, items: Sequence[Item], bucket: Bucket) -> Tensor | None:
        return self.family.sizes(
            [(item.height, item.width) for item in items],
            [place(item.width, item.height, bucket).top_left for item in items],
            [(bucket.height, bucket.width)] * len(items),
        )


class _Sample(NamedTuple):
    latents: Tensor
    mask: Tensor | None
    noise: Tensor
    timestep: Tensor
    caption: str
    weight: float


def _longest_caption(family: Family, items: Sequence[Item], config: TrainConfig) -> str:
    """The caption with the most tokens of all."""

    def length(*captions: str) -> int:
        return family.tokenize(captions).ids.shape[-1]

    trigger = config.data.captions.trigger
    captions = sorted(
        {with_trigger(settled(item.caption, lambda parts: max(parts, key=length)), trigger) for item in items}
    )
    return max(captions, key=length) if length(*captions) > length("") else ""


def _stack(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of single captions as one of a batch."""
    pooled = [one.pooled for one in conditionings if one.pooled is not None]
    return Conditioning(
        torch.stack([one.states for one in conditionings]), torch.stack(pooled) if pooled else None
    )
