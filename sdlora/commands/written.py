"""What the commands that make adapter files have in common."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdlora.network.merge import Written


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """The number format of the file."""
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="its number format")


def told(written: "Written") -> str:
    """What was made, in one line."""
    low, high = written.ranks
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return f"{written.path}: {written.layers} layers, {ranks}, {written.kept:.2%} of the energy kept"
