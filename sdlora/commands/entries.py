"""Adapters named on a command line: `FILE[:WEIGHT[:TEXT_ENCODER_WEIGHT]]`."""

from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.errors import AdapterError
from sdlora.home import Home

if TYPE_CHECKING:
    from sdlora.contracts import Family
    from sdlora.network.stack import Entry


def parse(text: str, *, folders: tuple[Path, ...] = ()) -> "Entry":
    """The adapter and its weights; a bare name is looked for in `folders`.

    Raises AdapterError when there is no such file or a weight is no number.
    """
    from sdlora.network.stack import Entry

    # from the right, because a path may hold a colon itself (C:\...)
    name, weights = text, list[float]()
    while len(weights) < 2 and not Path(name).exists():
        head, colon, tail = name.rpartition(":")
        if not colon or (number := _number(tail)) is None:
            break
        name, weights = head, [number, *weights]
    weight, text_weight = (weights or [1.0])[0], weights[1] if len(weights) == 2 else None
    return Entry(_find(name, folders), weight, text_weight)


def load(model: str, home: Home) -> "Family":
    """The base model on the CPU in fp32, for arithmetic on its weights. Raises ModelError."""
    import torch

    from sdlora.loading import load_family

    return load_family(model, device="cpu", dtype=torch.float32, roots=[home.models])


def _find(name: str, folders: tuple[Path, ...]) -> Path:
    for folder in (Path(), *folders):
        for candidate in (folder / name, folder / f"{name}.safetensors"):
            if candidate.is_file():
                return candidate
    places = ", ".join(str(folder) for folder in (Path.cwd(), *folders))
    raise AdapterError(
        f'There is no adapter "{name}" in {places}.', "Give a path such as models/Lora/ink.safetensors:0.8."
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
