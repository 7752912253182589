"""Start the web page. All further arguments are the page's own: see `sdlora ui --help`."""

import argparse
import subprocess
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER)


def run(arguments: argparse.Namespace) -> int:
    # A process of its own: the page stands above the command line, which must not import it.
    return subprocess.call([sys.executable, "-m", "ui", *arguments.arguments])
