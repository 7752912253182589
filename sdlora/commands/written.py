"""What the commands that make files have in common."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.errors import ConfigError
from sdlora.files import replacing, require_writable

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdlora.network.merge import Written


def add_form(parser: argparse.ArgumentParser) -> None:
    """The number format and the keys of the file."""
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="its number format")
    parser.add_argument(
        "--format",
        choices=("kohya", "peft"),
        default="kohya",
        help="whose keys it has; kohya's load everywhere",
    )


def require_place(output: Path, suffix: str) -> None:
    """A file of that kind can be written at `output`, which is known before the work.

    Raises ConfigError for another suffix and StorageError for a place that takes no file.
    """
    if output.suffix.lower() != suffix:
        name = output.stem or "name"
        raise ConfigError(f'--output "{output}" is no {suffix} file.', f"Write {name}{suffix}.")
    require_writable(output)


def draw(path: Path, picture: "Image") -> None:
    """`path` is the picture, whole. Raises StorageError."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def told(written: "Written") -> str:
    """What was made, in one line."""
    low, high = written.ranks
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return f"{written.path}: {written.layers} layers, {ranks}, {written.kept:.2%} of the energy kept"
