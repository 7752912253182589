"""The caption of an image at a step.

The order is kohya's, with the trigger last so that nothing takes it away:
whole-caption dropout -> one of each `{these|those}` -> shuffle of the tags behind the kept ones
-> tag dropout -> trigger in front.
"""

import re
from collections.abc import Callable, Sequence

from sdlora.config import CaptionSpec
from sdlora.data.chance import choices
from sdlora.data.items import Item

_ALTERNATIVES = re.compile(r"\{([^{}]*\|[^{}]*)\}")


def caption_at(item: Item, spec: CaptionSpec, *, seed: int, step_key: str) -> str:
    """What the text encoder is told of `item`: a pure function of seed, image and `step_key`."""
    chance = choices(seed, "caption", item.name, step_key)
    if chance.random() < spec.dropout:
        return ""
    caption = settled(item.caption, chance.choice)
    if _loosens(spec):
        tags = [tag for part in caption.split(",") if (tag := part.strip())]
        kept, loose = tags[: spec.keep_tokens], tags[spec.keep_tokens :]
        if spec.shuffle:
            chance.shuffle(loose)
        loose = [tag for tag in loose if chance.random() >= spec.tag_dropout]
        caption = ", ".join((*kept, *loose))
    return with_trigger(caption, spec.trigger)


def all_captions(item: Item, spec: CaptionSpec) -> tuple[str, ...]:
    """Every caption that `item` can have when its captions do not vary."""
    whole = with_trigger(item.caption, spec.trigger)
    return (whole, "") if spec.dropout else (whole,)


def varies(item: Item, spec: CaptionSpec) -> bool:
    """Whether the caption changes from step to step, so that its encoding cannot be kept."""
    return _loosens(spec) or _ALTERNATIVES.search(item.caption) is not None


def settled(caption: str, choose: Callable[[Sequence[str]], str]) -> str:
    """`caption` with what `choose` says of the parts of every `{these|those}`; a part may be empty."""
    if not _ALTERNATIVES.search(caption):
        return caption
    return _tidied(_ALTERNATIVES.sub(lambda found: choose(found[1].split("|")), caption))


def usual(caption: str) -> str:
    """`caption` with the first of all alternatives."""
    return settled(caption, lambda parts: parts[0])


def with_trigger(caption: str, trigger: str) -> str:
    """`caption`, with `trigger` in front if it lacks it."""
    trigger = trigger.strip()
    if not trigger or has_trigger(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def without_trigger(caption: str, trigger: str) -> str:
    """`caption` with `trigger` left out wherever it stands, and no gap where it stood."""
    return _tidied(_as_words(trigger).sub("", caption))


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether `trigger` stands in `caption` as words of its own, in any case: CLIP knows no capitals."""
    return _as_words(trigger).search(caption) is not None


def _as_words(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(trigger.strip())}(?!\w)", re.IGNORECASE)


def _loosens(spec: CaptionSpec) -> bool:
    return spec.shuffle or spec.tag_dropout > 0


def _tidied(caption: str) -> str:
    """Without empty tags and needless blanks."""
    tags = [" ".join(tag.split()) for tag in caption.split(",")]
    return ", ".join(tag for tag in tags if tag)
