"""The safetensors container: read without trusting a byte of it, written the same way every time.

Layout: 8 bytes little-endian header length, a JSON header (tensor name -> dtype, shape, offsets; texts under
`__metadata__`), the payload. Our own reader, because a downloaded file is checked before anything is
allocated; our own writer, because equal contents must give equal bytes.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from sdlora.errors import AdapterError

LARGEST_HEADER = 32 << 20  # bytes; the largest seen, with thumbnails inside, are a few MiB
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its number format, shape and place (bytes from the start of the file)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Container:
    """What the header of a file says, checked against its size. `payload` is where the tensors begin."""

    path: Path
    payload: int
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, path: Path) -> "Container":
        """The checked header of `path`; no tensor is read.

        Raises AdapterError, in one sentence, for anything but a sound safetensors file.
        """
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                head = file.read(8)
                length = _header_length(path, head, size)
                text = file.read(length)
        except OSError as error:
            reason = f"{path} cannot be read: {error.strerror or error}."
            raise AdapterError(reason, "Name a .safetensors file.") from None
        header = _parsed(path, text)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise _damaged(path, "its metadata is not a table of texts")
        entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items()}
        _check_payload(path, entries.values(), 8 + length, size)
        return cls(path, 8 + length, metadata, entries)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors on the CPU; 8-bit floats become fp16, which holds all their values."""
        try:
            with self.path.open("rb") as file:
                return {name: _tensor(file, self.entries[name]) for name in names}
        except (OSError, ValueError) as error:
            raise AdapterError(f"{self.path} changed while it was read: {error}.", "Try again.") from None

    def copy(self, path: Path, metadata: Mapping[str, str]) -> None:
        """`path` holds the same tensors, byte for byte, with these texts."""
        lines = {
            name: {
                "dtype": _NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [entry.start - self.payload, entry.end - self.payload],
            }
            for name, entry in self.entries.items()
        }
        with self.path.open("rb") as source, path.open("wb") as file:
            file.write(_header(lines, metadata))
            source.seek(self.payload)
            shutil.copyfileobj(source, file, 1 << 20)

    def changed(self, path: Path, change: Callable[[str, Tensor], Tensor]) -> None:
        """`path` holds every tensor as `change` makes it of its name and value, one at a time in memory.

        Shapes, number formats, order and texts stay.
        """
        with self.path.open("rb") as source, path.open("wb") as file:
            file.write(source.read(self.payload))
            for name, entry in sorted(self.entries.items(), key=lambda pair: (pair[1].start, pair[1].end)):
                tensor = change(name, _tensor(source, entry))
                assert tensor.shape == entry.shape
                file.write(_bytes(tensor.to(entry.dtype)))

    def payload_hash(self) -> str:
        """Hex SHA-256 of the payload: what `sshs_model_hash` means, whatever the metadata."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            file.seek(self.payload)
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """`path` holds the tensors and texts; equal arguments give equal bytes.

    Adds the hashes `sshs_model_hash` and `sshs_legacy_hash`.
    """
    shapes, names, blocks = _laid_out(tensors)
    digest, beginning = hashlib.sha256(), bytearray()
    for name in names:
        digest.update(blocks[name])
        beginning += blocks[name][: 0x110000 - len(beginning)]
    hashes = {
        "sshs_model_hash": digest.hexdigest(),
        "sshs_legacy_hash": _legacy_hash(shapes, metadata, beginning),
    }
    with path.open("wb") as file:
        file.write(_header(shapes, {**metadata, **hashes}))
        file.writelines(blocks[name] for name in names)


def _laid_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, object], list[str], dict[str, bytes]]:
    """The header's lines, the order of the tensors, and their bytes."""
    shapes: dict[str, object] = {}
    blocks: dict[str, bytes] = {}
    names = sorted(tensors)
    position = 0
    for name in names:
        blocks[name] = _bytes(tensors[name])
        shapes[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [position, position + len(blocks[name])],
        }
        position += len(blocks[name])
    return shapes, names, blocks


def _header(shapes: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items())), **shapes}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the payload begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _legacy_hash(shapes: Mapping[str, object], metadata: Mapping[str, str], payload: bytearray) -> str:
    # The field's first adapter hash: 64 KiB from 1 MiB on, of the file with its ss_ texts only.
    head = _header(shapes, {key: text for key, text in metadata.items() if key.startswith("ss_")})
    first, last = 0x100000 - len(head), 0x110000 - len(head)
    part = head[0x100000:0x110000] + payload[max(first, 0) : max(last, 0)]
    return hashlib.sha256(part).hexdigest()[:8]


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _tensor(file: BinaryIO, entry: Entry) -> Tensor:
    file.seek(entry.start)
    content = bytearray(file.read(entry.end - entry.start))
    empty = torch.empty(0, dtype=entry.dtype)
    tensor = (torch.frombuffer(content, dtype=entry.dtype) if content else empty).reshape(entry.shape)
    return tensor.half() if tensor.element_size() == 1 and tensor.is_floating_point() else tensor


def _header_length(path: Path, head: bytes, size: int) -> int:
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        raise _no_header(path, head)
    if length > LARGEST_HEADER:
        raise _damaged(path, f"its header claims {length} bytes; at most {LARGEST_HEADER} are read")
    return length


def _no_header(path: Path, head: bytes) -> AdapterError:
    # Only where the first bytes are no possible length do they tell what else the file is.
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return AdapterError(
            f"{path} is a pickle (.ckpt, .pt), which could run a program; it is not opened.",
            "Ask its author for a .safetensors file.",
        )
    if head.lstrip()[:1] == b"<":
        return AdapterError(
            f"{path} is a web page, no adapter.", "Download it again; the site may want you to log in."
        )
    if not head:
        return _damaged(path, "it is empty", "Fetch it again.")
    if len(head) == 8 and head.isascii() and head.decode("ascii").isprintable():
        return AdapterError(f"{path} is a text or another file, no .safetensors.", "Name an adapter's file.")
    hint = "The download may have been cut short; fetch it again."
    return _damaged(path, "it is shorter than its header says", hint)


def _parsed(path: Path, text: bytes) -> dict[str, object]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise _damaged(path, "its header is nested without end") from None
    except ValueError as error:
        reason = str(error) if isinstance(error, _Twice) else "its header is no JSON"
        raise _damaged(path, reason) from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no table")
    return header


class _Twice(ValueError):
    pass


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _Twice(f'its header names "{double[:100]}" twice')
    return table


def _entry(path: Path, name: str, value: object, payload: int) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end]}:
            pass
        case _:
            raise _damaged(path, f'"{name[:100]}" has no dtype, shape and offsets')
    if dtype not in _DTYPES:
        raise AdapterError(f'{path}: "{name[:100]}" has the number format {dtype[:20]}, which is not known.')
    if len(shape) > 8 or not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise _damaged(path, f'"{name[:100]}" has an impossible shape or place')
    if end - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise _damaged(path, f'"{name[:100]}" has another size than its shape says')
    return Entry(_DTYPES[dtype], tuple(shape), payload + start, payload + end)


def _check_payload(path: Path, entries: Iterable[Entry], payload: int, size: int) -> None:
    position = payload
    for entry in sorted(entries, key=lambda e: (e.start, e.end)):
        if entry.start != position:
            raise _damaged(path, "its tensors overlap or leave gaps")
        position = entry.end
    if position > size:
        raise _damaged(
            path,
            f"it has {size} of {position} bytes",
            "The download may have been cut short; fetch it again.",
        )
    if position < size:
        raise _damaged(path, f"{size - position} bytes follow its last tensor")


def _damaged(path: Path, reason: str, hint: str = "Fetch it again from where it came.") -> AdapterError:
    return AdapterError(f"{path} is no sound safetensors file: {reason}.", hint)
