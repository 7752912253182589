"""Draw and merge for the page: JSON lines in, JSON lines out. Started by the page, of no use by hand."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none: everything comes on standard input."""


def run(arguments: argparse.Namespace) -> int:
    from sdlora.service.worker import main

    return main()
