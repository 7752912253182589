"""Add adapters to a model for good, as a model of its own for tools that know no adapters.

A folder becomes a folder, a single file in the original layout a single file:

  sdlora bake style.safetensors:0.8 --base models/base --output models/base-with-style
  sdlora bake ink:0.8 --base sdxl.safetensors --output sdxl-ink.safetensors
"""

import argparse
from pathlib import Path

from sdlora.commands import entries
from sdlora.home import Home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    word = "FILE[:WEIGHT[:TEXT_WEIGHT]]"
    parser.add_argument("adapters", nargs="+", metavar=word, help="what is baked in, and how strongly")
    parser.add_argument("--base", default="builtin", help="builtin, a folder or a .safetensors file")
    parser.add_argument("--output", type=Path, required=True, help="the folder or file that is made")


def run(arguments: argparse.Namespace) -> int:
    from sdlora.network import rounding
    from sdlora.network.bake import bake

    home = Home.default()
    stack = [entries.parse(text, folders=home.adapter_folders) for text in arguments.adapters]
    family = entries.load(arguments.base, home)
    reports = bake(family, stack, output=arguments.output)
    for report in reports:
        layers = ", ".join(f"{count} layers of {name}" for name, count in report.layers.items())
        print(f"{report.entry.file}: {layers or 'no layers'}")
        for word in report.embeddings:
            print(f'  the word "{word}" stays in that file; a model has no place for it')
    for text in rounding.told(family, stack):
        print(text)
    print(arguments.output)
    return 0
