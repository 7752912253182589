"""Adapters that build on others: a character on the style of its studio, a pose on the character.

A file names its parent by the parent's hash in its metadata (`sdlora.parent`); choosing it applies the whole
chain, and going to a sibling changes only what differs.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from sdlora.errors import AdapterError
from sdlora.files import replacing
from sdlora.network.codec import AdapterFile
from sdlora.network.info import short_hash
from sdlora.network.stack import Entry

KEY = "sdlora.parent"


def parents(files: Iterable[Path]) -> dict[Path, Path | None]:
    """File -> its parent among `files`, None for a root.

    Raises AdapterError when a parent is missing or a file is its own ancestor.
    """
    opened = {path: AdapterFile.open(path) for path in files}
    by_hash = {short_hash(file): path for path, file in opened.items()}
    found: dict[Path, Path | None] = {}
    for path, file in opened.items():
        told = file.metadata.get(KEY, "")
        if told and told not in by_hash:
            raise AdapterError(
                f"{path} builds on the adapter {told}, which is not here.", "Add it beside the file."
            )
        found[path] = by_hash[told] if told else None
    for path in found:
        lineage(path, found)
    return found


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


def with_ancestors(entry: Entry, tree: Mapping[Path, Path | None]) -> tuple[Entry, ...]:
    """The entry after its ancestors, which take part at their full weight."""
    return (*(Entry(path) for path in lineage(entry.file, tree)[:-1]), entry)


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
