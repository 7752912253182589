"""What a person can choose for a stack: arrangements of several adapters, blocks by name, masks."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import IO

from PIL import Image

from sdlora.errors import AdapterError, ConfigError
from sdlora.files import safe_name, write_atomic
from sdlora.generation.words import with_parts
from sdlora.network.blocks import LISTS, PARTS
from sdlora.network.change import MASK_SIDE, Change, grey, turns, window
from sdlora.network.stack import Entry

ARRANGEMENTS: Mapping[str, str] = MappingProxyType(
    {
        "plain": "All of each, everywhere",
        "sides": "Side by side, each in its part of the picture",
        "phases": "The first in the early steps, the others in the late ones",
        "turns": "In turns, a step each",
        "parts": "Content of the first, style of the others",
    }
)
"""Name -> what it does with a stack of several adapters."""

CONTENT = {"style": 0.0, "detail": 0.0}
STYLE = {"composition": 0.0, "content": 0.0}
_EARLY, _LATE = (0.0, 0.6), (0.4, 1.0)  # they overlap: both are needed where shapes get their surface


def arranged(entries: Sequence[Entry], name: str) -> tuple[Entry, ...]:
    """The entries with their weights as they were, varying as the arrangement says, and in no other way.

    Raises AdapterError for "parts" when a file cannot be read, ConfigError when its family has none.
    """
    count = len(entries)
    if name == "sides":
        sides = [Change(box=(i / count, 0.0, (i + 1) / count, 1.0)) for i in range(count)]
    elif name == "phases":
        sides = [Change(curve=window(*(_LATE if i else _EARLY))) for i in range(count)]
    elif name == "turns":
        sides = list(turns(count))
    elif name == "parts":
        chosen = [tuple((STYLE if i else CONTENT).items()) for i in range(count)]
        sides = [with_parts(Change(), part, e.file) for part, e in zip(chosen, entries, strict=True)]
    else:
        sides = [Change()] * count
    return tuple(replace(entry, change=change) for entry, change in zip(entries, sides, strict=True))


def blocks(family_name: str) -> dict[str, object]:
    """The lists of block weights that the family takes and its named parts, as JSON; {} when it has none."""
    parts = PARTS.get(family_name)
    if parts is None:
        return {}
    lengths = (12, 20) if family_name == "sdxl" else (17, 26)
    return {
        "lists": [list(LISTS[length]) for length in lengths],
        "parts": {name: list(found) for name, found in parts.items()},
    }


class Masks:
    """Pictures that say where an adapter counts, kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, upload: Path) -> Path:
        """A grey copy of the picture lies in the folder. Raises AdapterError when it is no picture."""
        return self._keep(upload.name, upload)

    def keep(self, name: str, content: bytes) -> Path:
        """The mask that a picture carried under `name` lies in the folder; the same one only once.

        Raises AdapterError when it is no picture, or larger than what we write.
        """
        if len(content) > MASK_SIDE**2 * 2:
            raise AdapterError(f"{name} is larger than a mask can be.")
        return self._keep(name, io.BytesIO(content))

    def _keep(self, name: str, picture: Path | IO[bytes]) -> Path:
        held = io.BytesIO()
        try:
            grey(picture).save(held, format="PNG")
        except (OSError, ValueError, Image.DecompressionBombError):
            raise AdapterError(f"{name} is no picture.", "Use a PNG, white where it counts.") from None
        digest = hashlib.sha256(held.getvalue()).hexdigest()[:8]
        stem = safe_name(Path(name).stem.removesuffix(f"-{digest}"))[:40]
        path = self.folder / f"{stem}-{digest}.png"
        write_atomic(path, held.getvalue())
        return path

    def check(self, entries: Sequence[Entry]) -> None:
        """Raises ConfigError when a mask is none of these."""
        for mask in (entry.change.mask for entry in entries if entry.change.mask):
            if mask.resolve().parent != self.folder.resolve() or not mask.is_file():
                raise ConfigError(f"The mask {mask.name} is not here any more.", "Choose it again.")
