"""Captions changed by hand: one, or many after a look at what would change.

A change of many captions is made in two steps: a function that says what would change, then `apply`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.data import sidecars
from sdlora.data.captions import with_trigger
from sdlora.data.folder import MASK, is_image, is_mask
from sdlora.data.items import Dataset
from sdlora.errors import DatasetError
from sdlora.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class Change:
    """The caption of an image before and after."""

    image: Path
    before: str
    after: str


def set_caption(image: Path, caption: str) -> None:
    """`image.txt` holds the caption, on one line, in UTF-8. Raises StorageError."""
    write_atomic(sidecars.beside(image), sidecars.one_line(caption))


def add_trigger(dataset: Dataset, trigger: str) -> tuple[Change, ...]:
    """What changes when `trigger` is put in front of all captions that lack it."""
    return _changes(dataset, [with_trigger(item.caption, trigger) for item in dataset.items])


def replace(dataset: Dataset, search: str, replacement: str) -> tuple[Change, ...]:
    """What changes when `search` (as typed, capitals matter) is replaced in all captions.

    A tag that is replaced by nothing leaves no empty place between commas.
    """
    if not search:
        return ()
    return _changes(dataset, [_replaced(item.caption, search, replacement) for item in dataset.items])


def apply(dataset: Dataset, changes: Sequence[Change]) -> None:
    """The captions are as the changes say.

    Raises DatasetError, before anything is changed, when a caption of `dataset` is no longer what it was when
    the changes were told, and StorageError.
    """
    now = {item.path: item.caption for item in dataset.items}
    for change in changes:
        if now.get(change.image) != change.before:
            raise DatasetError(
                f"The caption of {change.image.name} was changed meanwhile; no caption was replaced.",
                "Look once more at what would change.",
            )
    for change in changes:
        set_caption(change.image, change.after)


def belongings(image: Path) -> tuple[Path, ...]:
    """The image and the files that are only there for it: captions and mask.

    A caption that another image of the same name uses as well stays.
    """
    beside = [path for path in sorted(image.parent.iterdir()) if path.stem in (image.stem, image.stem + MASK)]
    shared = any(path != image and is_image(path) for path in beside)
    return (image,) if shared else tuple(path for path in beside if path == image or _serves(path))


def _serves(path: Path) -> bool:
    return is_mask(path) or path.suffix.lower() in sidecars.SUFFIXES


def _changes(dataset: Dataset, captions: Sequence[str]) -> tuple[Change, ...]:
    return tuple(
        Change(image=item.path, before=item.caption, after=caption)
        for item, caption in zip(dataset.items, captions, strict=True)
        if caption != item.caption
    )


def _replaced(caption: str, search: str, replacement: str) -> str:
    if search not in caption:
        return caption
    text = sidecars.one_line(caption.replace(search, replacement))
    return (
        text if replacement.strip() else ", ".join(part.strip() for part in text.split(",") if part.strip())
    )
