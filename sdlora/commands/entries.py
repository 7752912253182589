"""Adapters named on a command line: `FILE[:WEIGHT[:TEXT_WEIGHT]][:WORD=VALUE]...`.

A curve such as `0@0,1@0.5` may stand for the weight; the words are those of `generation.words`.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.errors import AdapterError, ConfigError
from sdlora.home import Home

if TYPE_CHECKING:
    from sdlora.contracts import Family
    from sdlora.network.stack import Entry

_ARGUMENT = re.compile(r"[a-z_]+=.*|[-+.0-9e@, ]+|[-+]?(nan|inf|infinity)", re.IGNORECASE)


def parse(text: str, *, folders: tuple[Path, ...] = ()) -> "Entry":
    """The adapter, its weights and how they vary; a bare name is looked for in `folders`.

    Raises AdapterError when there is no such file, ConfigError when an argument is not understood.
    """
    from sdlora.generation.prompt import Tag
    from sdlora.generation.words import number, read, split

    name, arguments = _split(text)
    file = find(name, folders)
    numbers, named = split(arguments)
    if numbers and "@" in numbers[0]:
        if "curve" in named:
            raise ConfigError(f'"{text}" gives two curves.', "Leave out one of them.")
        named["curve"], numbers[0] = numbers[0], "1"
    if len(numbers) > 2:
        raise ConfigError(f'"{text}" gives {len(numbers)} weights.', "Write FILE:WEIGHT:TEXT_WEIGHT.")
    weight, text_weight = ([number(part) for part in numbers] + [None, None])[:2]
    return Tag(name, 1.0 if weight is None else weight, text_weight, *read(named)).entry(file)


def find(name: str, folders: tuple[Path, ...]) -> Path:
    """The adapter file that `name` is: a path, or a name in the folders and below. Raises AdapterError."""
    from sdlora.generation.prompt import adapters_in

    for folder in (Path(), *folders):
        for candidate in (folder / name, folder / f"{name}.safetensors"):
            if candidate.is_file():
                return candidate
    known = adapters_in(folders)
    if name in known:
        return known[name]
    places = ", ".join(str(folder) for folder in (Path.cwd(), *folders))
    near = get_close_matches(name, known, n=1)
    hint = f'Did you mean "{near[0]}"?' if near else "Give a path such as models/Lora/ink.safetensors:0.8."
    raise AdapterError(f'There is no adapter "{name}" in {places}.', hint)


def load(model: str, home: Home) -> "Family":
    """The base model on the CPU in fp32, for arithmetic on its weights. Raises ModelError."""
    import torch

    from sdlora.loading import load_family

    return load_family(model, device="cpu", dtype=torch.float32, roots=home.model_folders)


def _split(text: str) -> tuple[str, list[str]]:
    """The file and its arguments, from the right, because a path may hold a colon itself (C:\\...)."""
    name, arguments = text, list[str]()
    while not Path(name).exists():
        head, colon, tail = name.rpartition(":")
        if not colon or not _ARGUMENT.fullmatch(tail):
            break
        name, arguments = head, [tail, *arguments]
    return name, arguments
