"""Adapters named in a prompt, in A1111's words: `<lora:NAME>`, `<lora:NAME:0.8>`, `<lora:NAME:0.5:0.9>`.

One number is the weight; of two the first is the text encoder's and the second the UNet's, as in A1111, and
so is the named form `<lora:NAME:te=0.5:unet=0.9>`.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from sdlora.errors import AdapterError
from sdlora.network.stack import Entry

_TAG = re.compile(r"<(lora|lyco):([^<>]*)>")


class Tag(NamedTuple):
    """An adapter that a prompt names, with the weights it gives."""

    name: str
    weight: float = 1.0
    text_weight: float | None = None


def extract_tags(prompt: str) -> tuple[str, tuple[Tag, ...]]:
    """The prompt without its tags, and the tags. Raises AdapterError for a tag that is not understood."""
    tags = tuple(_parse(match.group(), match.group(2)) for match in _TAG.finditer(prompt))
    return " ".join(_TAG.sub("", prompt).split(" ")).strip() if tags else prompt, tags


def resolve_tags(tags: Iterable[Tag], folders: Iterable[Path]) -> tuple[Entry, ...]:
    """The adapter files that the tags name, looked up in the folders and those below them.

    Raises AdapterError that names the nearest adapter when there is none of a name.
    """
    tags = tuple(tags)
    known = adapters_in(folders) if tags else {}
    for tag in tags:
        if tag.name not in known:
            near = get_close_matches(tag.name, known, n=1, cutoff=0.4)
            hint = f'Did you mean "<lora:{near[0]}>"?' if near else "Put its file into models/Lora."
            raise AdapterError(f'The prompt names the adapter "{tag.name}", which is not there.', hint)
    return tuple(Entry(known[tag.name], tag.weight, tag.text_weight) for tag in tags)


def adapters_in(folders: Iterable[Path]) -> dict[str, Path]:
    """Name -> file of every .safetensors in the folders and below; the first of a name wins."""
    files = [file for folder in folders for file in sorted(folder.rglob("*.safetensors"))]
    return {file.stem: file for file in reversed(files)}


def write_tag(entry: Entry) -> str:
    """The tag that says the same as `entry`, for other tools to read."""
    name = re.sub(r"[<>:,]", "", entry.file.stem)
    if entry.text_weight is None or entry.text_weight == entry.weight:
        return f"<lora:{name}:{entry.weight:g}>"
    return f"<lora:{name}:{entry.text_weight:g}:{entry.weight:g}>"


def _parse(tag: str, content: str) -> Tag:
    name, *arguments = content.split(":")
    named = dict(part.split("=", 1) for part in arguments if "=" in part)
    numbers = [part for part in arguments if "=" not in part]
    try:
        if not name.strip() or len(numbers) > 2 or named.keys() - {"te", "unet"}:
            raise ValueError
        text = float(named.get("te", numbers[0] if numbers else "1"))
        unet = float(named.get("unet", numbers[1] if len(numbers) > 1 else str(text)))
    except ValueError:
        raise AdapterError(
            f"The prompt's {tag} is not understood.",
            "Write <lora:NAME:WEIGHT>, or <lora:NAME:TEXT_ENCODER_WEIGHT:UNET_WEIGHT>.",
        ) from None
    return Tag(name.strip(), unet, None if text == unet else text)
