"""Adapters named in a prompt, in A1111's words: `<lora:NAME>`, `<lora:NAME:0.8>`, `<lora:NAME:0.5:0.9>`.

One number is the weight; of two the first is the text encoder's and the second the UNet's, as in A1111, and
so is the named form `<lora:NAME:te=0.5:unet=0.9>`. What varies follows in `words`, such as
`<lora:NAME:0.8:start=0.2:box=0,0,0.5,1>`; a curve may stand for the UNet's weight: `<lora:NAME:0@0,1@0.5>`.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from sdlora.errors import AdapterError, ConfigError
from sdlora.generation import words
from sdlora.network.change import Change
from sdlora.network.stack import Entry

_TAG = re.compile(r"<(lora|lyco):([^<>]*)>")
_FORM = "Write <lora:NAME:WEIGHT>, or <lora:NAME:TEXT_ENCODER_WEIGHT:UNET_WEIGHT>."


class Tag(NamedTuple):
    """An adapter by its name, with weights, how they change, and the blocks that are named."""

    name: str
    weight: float = 1.0
    text_weight: float | None = None
    change: Change = Change()
    parts: words.Parts = ()

    def entry(self, file: Path) -> Entry:
        """The stack's entry for the file of this name. Raises SdloraError when it has no such blocks."""
        change = words.with_parts(self.change, self.parts, file)
        return Entry(file, self.weight, self.text_weight, change)


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
    return tuple(tag.entry(known[tag.name]) for tag in tags)


def adapters_in(folders: Iterable[Path]) -> dict[str, Path]:
    """Name -> file of every .safetensors in the folders and below; the first of a name wins."""
    files = [file for folder in folders for file in sorted(folder.rglob("*.safetensors"))]
    return {file.stem: file for file in reversed(files)}


def write_tag(entry: Entry) -> str:
    """The tag that says the same as `entry`, but for a mask.

    Weights come first and what varies in named words, which tools that do not know them pass over.
    """
    name = re.sub(r"[<>:,]", "", entry.file.stem)
    same = entry.text_weight is None or entry.text_weight == entry.weight
    weights = [entry.weight] if same else [entry.weight_of("text_encoder"), entry.weight]
    told = words.write(replace(entry.change, mask=None))
    return f"<lora:{':'.join([name, *map(words.figure, weights), *(f'{k}={v}' for k, v in told.items())])}>"


def _parse(tag: str, content: str) -> Tag:
    name, *arguments = content.split(":")
    try:
        numbers, named = words.split(arguments)
        if not name.strip() or len(numbers) > 2 or "mask" in named:
            raise ConfigError("", _FORM)
        if numbers and "@" in numbers[-1]:
            if named.keys() & {"curve", "unet"}:
                raise ConfigError("It gives the UNet two weights.", _FORM)
            named["curve"] = numbers.pop()
            numbers += ["1"]
        text = words.number(named.pop("te", numbers[0] if numbers else "1"))
        unet = words.number(named.pop("unet", numbers[1] if len(numbers) > 1 else str(text)))
        change, parts = words.read(named)
    except ConfigError as error:
        raise AdapterError(
            f"The prompt's {tag} is not understood. {error.message}".strip(), error.hint or _FORM
        ) from None
    return Tag(name.strip(), unet, None if text == unet else text, change, parts)
