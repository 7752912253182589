"""Randomness without state: every draw is a pure function of a seed and of what it is drawn for.

Nothing has to be saved to resume a run, and no draw depends on what was drawn before it.
"""

import hashlib
import random

import torch


def number(seed: int, *what: int | str) -> int:
    """A number in [0, 2**63) that looks random and is the same everywhere for the same arguments."""
    text = "\0".join(str(part) for part in (seed, *what))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *what: int | str) -> torch.Generator:
    """A generator on the CPU, so that a seed means the same on every device."""
    return torch.Generator().manual_seed(number(seed, *what))


def choices(seed: int, *what: int | str) -> random.Random:
    """Python's generator, for decisions about texts and orders."""
    return random.Random(number(seed, *what))
