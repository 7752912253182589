"""The health of a dataset before it is trained on: what is wrong, and exactly what will happen."""

from dataclasses import dataclass
from pathlib import Path

from sdlora.data.buckets import Bucket, BucketPlan, cropped
from sdlora.data.captions import has_trigger, usual
from sdlora.data.items import Dataset, Item, Problem

MUCH_CROPPED = 0.2  # fraction of the area


@dataclass(frozen=True, kw_only=True)
class BucketRow:
    """One bucket: `samples` are images times repeats; `cropped` is the mean fraction of area cut off."""

    width: int
    height: int
    images: int
    samples: int
    batches: int
    cropped: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Counts are of images; `triggered` have the trigger word; `steps_per_pass` are optimizer steps."""

    folder: Path
    images: int
    captioned: int
    varied: int  # captions of which a part is drawn at every step
    triggered: int
    trigger: str
    problems: tuple[Problem, ...]
    buckets: tuple[BucketRow, ...]
    samples: int
    batches_per_pass: int
    steps_per_pass: float
    cropped: float

    def summary(self) -> tuple[str, ...]:
        """The report in a few sentences, the most important first."""
        left_out = sum(problem.fatal for problem in self.problems)
        lines = [f"{_images(self.images)}, {self.captioned} with a caption."]
        if self.trigger:
            lines.append(
                f'The trigger word "{self.trigger}" is in {self.triggered} of {self.images} captions.'
            )
        if left_out:
            lines.append(f"{left_out} {'file is' if left_out == 1 else 'files are'} not used.")
        lines.append(
            f"One pass over all images is {self.steps_per_pass:g} steps "
            f"({self.samples} samples in {len(self.buckets)} sizes)."
        )
        lines.append(f"{self.cropped:.0%} of the picture area is cut off to fit these sizes.")
        return tuple(lines)


def report(dataset: Dataset, plan: BucketPlan, *, trigger: str = "", accumulate: int = 1) -> Report:
    """What is known of `dataset` when it is trained by `plan`, with the problems that the sizes bring."""
    pairs = list(zip(plan.items, plan.bucket_of, strict=True))
    lost = [cropped(item.width, item.height, bucket) for item, bucket in pairs]
    return Report(
        folder=dataset.folder,
        images=len(pairs),
        captioned=sum(bool(item.caption) for item, _ in pairs),
        varied=sum(usual(item.caption) != item.caption for item, _ in pairs),
        triggered=sum(has_trigger(item.caption, trigger) for item, _ in pairs) if trigger.strip() else 0,
        trigger=trigger.strip(),
        problems=(*dataset.problems, *(p for item, bucket in pairs for p in _size_problems(item, bucket))),
        buckets=_rows(plan),
        samples=sum(plan.samples.values()),
        batches_per_pass=plan.batches_per_pass,
        steps_per_pass=plan.batches_per_pass / accumulate,
        cropped=sum(lost) / len(lost),
    )


def _rows(plan: BucketPlan) -> tuple[BucketRow, ...]:
    rows = []
    for bucket, samples in plan.samples.items():
        items = [item for item, its in zip(plan.items, plan.bucket_of, strict=True) if its == bucket]
        lost = [cropped(item.width, item.height, bucket) for item in items]
        rows.append(
            BucketRow(
                width=bucket.width,
                height=bucket.height,
                images=len(items),
                samples=samples,
                batches=plan.batches_of(samples),
                cropped=sum(lost) / len(lost),
            )
        )
    return tuple(rows)


def _size_problems(item: Item, bucket: Bucket) -> list[Problem]:
    problems = []
    enlarged = max(bucket.width / item.width, bucket.height / item.height)
    if enlarged > 1:
        text = (
            f"{item.name} is {item.width} x {item.height} pixels, smaller than its training size "
            f"of {bucket.width} x {bucket.height}; it is enlarged {enlarged:.1f} times."
        )
        problems.append(Problem(path=item.path, kind="too_small", text=text))
    lost = cropped(item.width, item.height, bucket)
    if lost > MUCH_CROPPED:
        shape = "wide" if item.width / item.height > bucket.aspect else "tall"
        text = f"{item.name} is too {shape} for the sizes that are trained; {lost:.0%} of it is cut off."
        problems.append(Problem(path=item.path, kind="aspect", text=text))
    return problems


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
