"""Adapters that build on others: a character on the style of its studio, a pose on the character.

A file names its parent by the parent's hash in its metadata (`sdlora.parent`); choosing it applies the whole
chain, and going to a sibling changes only what differs.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from sdlora.errors import AdapterError
from sdlora.files import replacing
from sdlora.network.codec import AdapterFile
from sdlora.network.info import short_hash
from sdlora.network.stack import Entry

KEY = "sdlora.parent"


def lineage(path: Path, tree: Mapping[Path, Path | None]) -> tuple[Path, ...]:
    """The chain from the root to `path`. Raises AdapterError when it has no end."""
    chain: list[Path] = []
    at: Path | None = path
    while at is not None:
        if at in chain:
            raise AdapterError(f"{path} is its own ancestor.", "Give it another parent.")
        chain.append(at)
        at = tree.get(at)
    return tuple(reversed(chain))


def with_ancestors(entries: Iterable[Entry], folders: Iterable[Path]) -> tuple[Entry, ...]:
    """The entries, each after those that it builds on, which take part at their full weight.

    What is among the entries already stays as it is there. Parents are looked for beside a file, in the
    folders and below. Raises AdapterError when one is missing or a file is its own ancestor.
    """
    entries, folders = tuple(entries), tuple(folders)
    named = {entry.file.resolve() for entry in entries}
    found: list[Entry] = []
    for entry in entries:
        tree: dict[Path, Path | None] = {}
        at: Path | None = entry.file
        while at is not None and at not in tree:
            parent = tree[at] = _parent(at, folders)
            at = parent
        for path in lineage(entry.file, tree)[:-1]:
            if path.resolve() not in named:
                named.add(path.resolve())
                found.append(Entry(path))
        found.append(entry)
    return tuple(found)


def _parent(path: Path, folders: Iterable[Path]) -> Path | None:
    """The file that `path` builds on, None for a root."""
    told = AdapterFile.open(path).metadata.get(KEY, "")
    if not told:
        return None
    beside = sorted(path.parent.glob("*.safetensors"))
    for candidate in (
        *beside,
        *(file for folder in folders for file in sorted(folder.rglob("*.safetensors"))),
    ):
        with suppress(AdapterError):  # what else lies there need not be sound
            if short_hash(AdapterFile.open(candidate)) == told:
                return candidate
    raise AdapterError(f"{path} builds on the adapter {told}, which is not here.", "Add it beside the file.")


def set_parent(path: Path, parent: Path | None) -> None:
    """The file names `parent` (None: nothing) as what it builds on; its tensors and hash stay the same.

    Raises AdapterError when it would become its own ancestor.
    """
    if parent is not None and parent.resolve() == path.resolve():
        raise AdapterError(f"{path} is its own ancestor.", "Give it another parent.")
    held = AdapterFile.open(path).container
    texts = {key: text for key, text in held.metadata.items() if key != KEY}
    if parent is not None:
        texts[KEY] = short_hash(AdapterFile.open(parent))
    with replacing(path) as temporary:
        held.copy(temporary, texts)
