"""Make an adapter of what a fine-tuned model learned beyond its base.

sdlora extract models/tuned --base models/base --rank 32 --output tuned.safetensors
"""

import argparse
from pathlib import Path

from sdlora.commands import entries
from sdlora.commands.written import add_form, require_place, told
from sdlora.home import Home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tuned", help="the fine-tuned model: a folder, a .safetensors file or a Hub id")
    parser.add_argument("--base", required=True, help="the model it was tuned from")
    parser.add_argument("--output", type=Path, required=True, help="the file that is made")
    parser.add_argument("--rank", type=int, default=32)
    add_form(parser)


def run(arguments: argparse.Namespace) -> int:
    from sdlora.network.resize import extract

    require_place(arguments.output, ".safetensors")
    home = Home.default()
    tuned, base = entries.load(arguments.tuned, home), entries.load(arguments.base, home)
    written = extract(
        tuned,
        base,
        output=arguments.output,
        rank=arguments.rank,
        dtype=arguments.dtype,
        format=arguments.format,
    )
    print(told(written))
    return 0
