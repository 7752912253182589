"""Make one adapter file that does what a stack of several does.

sdlora merge style.safetensors:0.8 character.safetensors:0.5 --output both.safetensors
"""

import argparse
from pathlib import Path

from sdlora.commands import entries
from sdlora.home import Home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters", nargs="+", metavar="FILE[:WEIGHT[:TEXT_WEIGHT]]", help="what is merged, and how strongly"
    )
    parser.add_argument("--output", type=Path, required=True, help="the file that is made")
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="its number format")


def run(arguments: argparse.Namespace) -> int:
    from sdlora.network.merge import merge

    stack = [entries.parse(text, folders=(Home.default().adapters,)) for text in arguments.adapters]
    merge(stack, output=arguments.output, dtype=arguments.dtype)
    print(arguments.output)
    return 0
