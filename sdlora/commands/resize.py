"""Change the rank of an adapter, keeping as much of it as that rank can hold.

sdlora resize big.safetensors --rank 8 --output small.safetensors
sdlora resize big.safetensors --energy 0.98 --output small.safetensors   (each layer as it needs)
"""

import argparse
from pathlib import Path

from sdlora.commands import entries
from sdlora.commands.written import add_form, require_place, told
from sdlora.home import Home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="the adapter: a file, or a name in models/Lora")
    parser.add_argument("--output", type=Path, required=True, help="the file that is made")
    parser.add_argument("--rank", type=int, default=0, help="at most this; 0 is no limit")
    parser.add_argument("--energy", type=float, default=1.0, help="part of each layer's energy that is kept")
    parser.add_argument(
        "--ratio", type=float, default=0.0, help="drop singular values below the largest / RATIO"
    )
    add_form(parser)


def run(arguments: argparse.Namespace) -> int:
    from sdlora.network.resize import resize

    require_place(arguments.output, ".safetensors")
    written = resize(
        entries.find(arguments.file, Home.default().adapter_folders),
        output=arguments.output,
        rank=arguments.rank,
        energy=arguments.energy,
        ratio=arguments.ratio,
        dtype=arguments.dtype,
        format=arguments.format,
    )
    print(told(written))
    return 0
