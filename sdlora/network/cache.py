"""Adapters of a base kept in memory, those used least recently leaving first."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdlora.contracts import Family, Layer
from sdlora.errors import AdapterError
from sdlora.network.bundle import Row, bundled
from sdlora.network.codec import AdapterFile, Resolved

CACHE_BYTES = 2_000_000_000  # unless a person says otherwise


@dataclass(frozen=True)
class Kept(Resolved):
    """A file's adapters in memory; `rows` are those of plain LoRA, which lie in bundles."""

    rows: Mapping[Layer, Row]


class AdapterCache:
    """Files resolved for one base, up to `limit` bytes of main memory; a changed file is read anew.

    For a base on CUDA the memory is pinned: a switch is one fast copy, and the device stays free.
    """

    def __init__(self, family: Family, *, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self._family = family
        self._held: OrderedDict[tuple[Path, int, int], tuple[Kept, int]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(size for _, size in self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def resolve(self, path: Path) -> Kept:
        """The adapters of the file; equal objects until it changes. Raises AdapterError as `resolve` does."""
        try:
            stamp = path.stat()
        except OSError as error:
            raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from None
        key = (path.resolve(), stamp.st_size, stamp.st_mtime_ns)
        if key not in self._held:
            resolved = AdapterFile.open(path).resolve(self._family)
            rows = bundled(resolved.adapters, self._placed)
            kept = Kept(**vars(resolved), rows=rows)
            self._held[key] = kept, _bytes(kept)
        self._held.move_to_end(key)
        self.keep_to(self.limit)
        return self._held[key][0]

    def keep_to(self, limit: int) -> None:
        """At most `limit` bytes are held from now on; the file used last stays whatever its size."""
        self.limit = limit
        while self.bytes > self.limit and len(self._held) > 1:
            self._held.popitem(last=False)

    def _placed(self, tensor: Tensor) -> Tensor:
        if self._family.device.type == "cuda":
            try:
                return tensor.pin_memory()
            except RuntimeError:  # some systems allow little of it; the copy is slower then
                pass
        return tensor


def _bytes(resolved: Resolved) -> int:
    return sum(p.numel() * p.element_size() for a in resolved.adapters.values() for p in a.parameters())
