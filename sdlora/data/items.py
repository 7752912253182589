"""What a folder of images amounts to: items to train on, and problems to tell."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal[
    "unreadable",  # no picture can be got out of the file
    "too_large",  # more pixels than a training image can need
    "format",  # an image of a format that is not read
    "animated",  # only the first frame is used
    "file_name",  # the name is no text
    "no_caption",
    "two_captions",
    "encoding",  # the caption was not UTF-8
    "long_caption",
    "orphan",  # a caption or mask without its image
    "metadata",  # a line of metadata.jsonl that cannot be used
    "mask",  # a mask that does not fit its image, or a picture that looks like one by its name
    "repeats",  # a folder's name means surprisingly many repeats
    "duplicate",  # the same pixels twice
    "foreign",  # neither image nor caption
    "too_small",  # smaller than the training size
    "aspect",  # more oblong than the most oblong bucket
]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image that can be trained on.

    `width` and `height` are pixels after EXIF orientation; `sha256` is of the file's bytes; `name` is the
    path within the dataset with forward slashes, and identifies the image in all randomness.
    """

    path: Path
    name: str
    caption: str
    width: int
    height: int
    repeats: int
    sha256: str
    mask: Path | None = None
    mask_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something to know about a file, in one sentence; `fatal` means that the file is not used."""

    path: Path
    kind: Kind
    text: str
    fatal: bool = False


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The images of a folder in the order of their names, and everything that is wrong with it."""

    folder: Path
    items: tuple[Item, ...]
    problems: tuple[Problem, ...] = ()
