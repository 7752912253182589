"""Tensors on disk that many runs share: entries of named tensors in safetensors files.

A shard's name is the digest of its bytes. So it is complete or not there, two runs that write at once
cannot harm each other, and damage shows when a shard is read. A file's time is that of its last use; and a
run holds its shards open, to read on from one that another run deletes (Windows deletes none that is open).
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdlora.files import write_atomic


class Shards:
    """The entries of all shards in `folder`; an entry is a few named tensors under a key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors: dict[str, dict[str, Path]] = {}  # key -> name of a tensor -> its shard
        self._held: dict[Path, Any] = {}  # Any: safetensors' open file, whose type is private
        for path in sorted(folder.glob("*.safetensors")):
            self._index(path)

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def write(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The entries are on the disk, in one shard. Raises StorageError."""
        if not entries:
            return
        flat = {f"{key}/{name}": t.contiguous() for key, part in entries.items() for name, t in part.items()}
        data = save(flat)
        path = self.folder / f"{_digest(data)}.safetensors"
        if not _is_whole(path):  # another run may have written the same, and hold it open
            write_atomic(path, data)
        self._index(path)
        self.hold(entries)

    def hold(self, keys: Iterable[str]) -> None:
        """The entries of `keys` that are there count as used now, and can be read from now on."""
        for path in self._shards_of(keys):
            with contextlib.suppress(OSError):  # a cache that may only be read is of use too
                os.utime(path)
            try:
                if path not in self._held:
                    self._held[path] = safe_open(path, framework="pt")
            except (OSError, SafetensorError):
                self._drop(path)

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of an entry that is held. Raises KeyError without one."""
        return {
            name: self._held[path].get_tensor(f"{key}/{name}") for name, path in self._tensors[key].items()
        }

    def forget_damaged(self, keys: Iterable[str]) -> None:
        """Of the shards that hold `keys`, those whose bytes are not what was written are deleted."""
        for path in self._shards_of(keys):
            if not _is_whole(path):
                self._drop(path)

    def _shards_of(self, keys: Iterable[str]) -> list[Path]:
        return sorted({path for key in keys for path in self._tensors.get(key, {}).values()})

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as shard:
                names = list(shard.keys())
        except (OSError, SafetensorError):
            self._drop(path)
            return
        for full in names:
            key, _, name = full.partition("/")
            self._tensors.setdefault(key, {})[name] = path

    def _drop(self, path: Path) -> None:
        self._held.pop(path, None)
        path.unlink(missing_ok=True)
        gone = [key for key, parts in self._tensors.items() if path in parts.values()]
        for key in gone:
            del self._tensors[key]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _is_whole(path: Path) -> bool:
    try:
        return _digest(path.read_bytes()) == path.stem
    except OSError:  # another run has found it damaged and removed it
        return False
