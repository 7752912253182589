"""Adapters of a base kept in memory, those used least recently leaving first."""

from collections import OrderedDict
from pathlib import Path

import torch

from sdlora.contracts import Family
from sdlora.errors import AdapterError
from sdlora.network.codec import AdapterFile, Resolved


class AdapterCache:
    """Files resolved for one base, up to `limit` bytes on `device`; a changed file is read anew.

    On the base's own device a switch copies nothing; in main memory the device stays free.
    """

    def __init__(self, family: Family, *, limit: int = 2 << 30, device: torch.device | str = "cpu") -> None:
        self.limit = limit
        self._device = device
        self._family = family
        self._held: OrderedDict[tuple[Path, int, int], tuple[Resolved, int]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(size for _, size in self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def resolve(self, path: Path) -> Resolved:
        """The adapters of the file; equal objects until it changes. Raises AdapterError as `resolve` does."""
        try:
            stamp = path.stat()
        except OSError as error:
            raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from None
        key = (path.resolve(), stamp.st_size, stamp.st_mtime_ns)
        if key not in self._held:
            resolved = AdapterFile.open(path).resolve(self._family)
            for adapter in resolved.adapters.values():
                adapter.to(self._device)
            self._held[key] = resolved, _bytes(resolved)
        self._held.move_to_end(key)
        while self.bytes > self.limit and len(self._held) > 1:
            self._held.popitem(last=False)
        return self._held[key][0]


def _bytes(resolved: Resolved) -> int:
    return sum(p.numel() * p.element_size() for a in resolved.adapters.values() for p in a.parameters())
