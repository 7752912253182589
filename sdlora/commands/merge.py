"""Make one adapter file that does what a stack of several does.

  sdlora merge style.safetensors:0.8 character.safetensors:0.5 --output both.safetensors

`concat` is the stack itself, exactly, and its ranks add up; `svd` is the closest adapter of a smaller rank;
`ties` and `dare` thin out the deltas, so that several adapters get into each other's way less.
"""

import argparse
from pathlib import Path

from sdlora.commands import entries
from sdlora.commands.written import add_form, require_place, told
from sdlora.errors import UserError
from sdlora.home import Home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    word = "FILE[:WEIGHT[:TEXT_WEIGHT]]"
    parser.add_argument("adapters", nargs="+", metavar=word, help="what is merged, and how strongly")
    parser.add_argument("--output", type=Path, required=True, help="the file that is made")
    parser.add_argument("--method", choices=("concat", "svd", "ties", "dare"), default="concat")
    parser.add_argument(
        "--rank", type=int, default=0, help="of svd, ties and dare; 0 is the largest of the parts"
    )
    parser.add_argument(
        "--density", type=float, default=0.5, help="part of the values that ties and dare keep"
    )
    parser.add_argument("--base", help="needed for kinds other than LoRA: the model they were made for")
    add_form(parser)


def run(arguments: argparse.Namespace) -> int:
    from sdlora.network.merge import merge

    require_place(arguments.output, ".safetensors")
    if arguments.rank and arguments.method == "concat":
        raise UserError("--rank is not for concat, which adds the ranks up.", "Choose --method svd as well.")
    home = Home.default()
    written = merge(
        [entries.parse(text, folders=home.adapter_folders) for text in arguments.adapters],
        output=arguments.output,
        method=arguments.method,
        rank=arguments.rank,
        density=arguments.density,
        dtype=arguments.dtype,
        format=arguments.format,
        family=entries.load(arguments.base, home) if arguments.base else None,
    )
    print(told(written))
    return 0
