"""List every option of a run, its default and what it allows.

As a table by default, as a configuration file with --toml, for machines with --json.
"""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--toml", action="store_true", help="a configuration file with every default")
    form.add_argument("--json", action="store_true", help="one JSON list")


def run(arguments: argparse.Namespace) -> int:
    from sdlora.config import TrainConfig
    from sdlora.options import allowed, table, to_toml, walk

    if arguments.toml:
        print(to_toml(TrainConfig()), end="")
    elif arguments.json:
        rows = [
            {"option": leaf.path, "default": leaf.default, "allowed": allowed(leaf), "help": leaf.meta.help}
            for leaf in walk(TrainConfig)
        ]
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        print(table(TrainConfig), end="")
    return 0
