"""What the frozen parts of a model make of images and captions, kept on disk.

A key names everything that the result depends on: bytes of the image, of its mask and of the weights, size,
crop and flip. So an entry is never stale; it is only no longer asked for, until `prune` makes room. Filling a
cache can be stopped at any time, `kill -9` included, and goes on where it was.

Images and captions are encoded one at a time: a result must not depend on what it is batched with, which on
CPU and GPU changes its last bits. Four at once would save nothing on a CPU, and a third on an H200.

Shapes: C latent channels, h w latents, L tokens, D width, P pooled width.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sdlora.contracts import Conditioning, Family, Tokens
from sdlora.data.ahead import ahead
from sdlora.data.buckets import Bucket
from sdlora.data.images import load, load_mask
from sdlora.data.items import Item
from sdlora.data.shards import Shards
from sdlora.errors import ModelError
from sdlora.residence import present, text_encoders

Progress = Callable[[int, int], None]  # (done, total); what it raises ends the work, the done part is kept
Entry = dict[str, Tensor]

VERSION = 1  # to be raised when images are decoded, scaled or cropped differently
LOADERS = min(8, os.cpu_count() or 1)  # threads: a GPU encodes faster than one decodes a photograph
SHARD_ENTRIES = 64
SHARD_SECONDS = 5.0  # about as much work is lost at most
RECENT = 3600.0  # seconds since its last use for which nothing is deleted
_LATENTS, _TEXTS = "latents", "texts"  # the folders of a cache


class View(NamedTuple):
    """An image as it is trained on."""

    item: Item
    bucket: Bucket
    flip: bool = False


class LatentCache:
    """Latents [C,h,w] (fp32) and masks [1,h,w] of views, for one VAE."""

    def __init__(self, folder: Path, family: Family) -> None:
        self.family = family
        self._shards = Shards(folder / _LATENTS / family.hash[:16])

    def key(self, view: View) -> str:
        """A digest of all that the latents of a view depend on."""
        item, bucket = view.item, view.bucket
        size = f"{bucket.width}x{bucket.height} centre"
        return _digest(VERSION, self.family.hash, item.sha256, item.mask_sha256, size, view.flip)

    def fill(self, views: Iterable[View], on_progress: Progress) -> None:
        """All views can be read. Raises DatasetError (an image changed), ModelError or StorageError."""
        wanted = {self.key(view): view for view in views}
        missing = {key: wanted[key] for key in _missing(self._shards, wanted)}
        with present(self.family, *(["vae"] if missing else [])):
            _store(self._shards, self._encode(missing), total=len(missing), on_progress=on_progress)
        self._shards.hold(wanted)

    def read(self, view: View) -> tuple[Tensor, Tensor | None]:
        """Latents and mask (None where the image has none) of a view that was filled."""
        entry = self._shards.read(self.key(view))
        return entry["latents"], entry.get("mask")

    def _encode(self, views: Mapping[str, View]) -> Iterator[tuple[str, Entry]]:
        loaded = ahead(self._load, views.values(), depth=2 * LOADERS, workers=LOADERS)
        for (key, view), (pixels, mask) in zip(views.items(), loaded, strict=True):
            try:
                with torch.no_grad():
                    latents = self.family.encode_images(pixels[None].to(self.family.device))[0].cpu()
            except ModelError as error:
                raise ModelError(f"Encoding {view.item.name}: {error.message}", error.hint) from error
            yield key, {"latents": latents} | ({} if mask is None else {"mask": mask})

    def _load(self, view: View) -> tuple[Tensor, Tensor | None]:
        pixels = load(view.item, view.bucket, flip=view.flip)
        if view.item.mask is None:
            return pixels, None
        return pixels, load_mask(view.item, view.bucket, factor=self.family.latent.factor, flip=view.flip)


class TextCache:
    """Token states [L,D] and pooled states [P] of captions, for one text encoder; all of one length."""

    def __init__(self, folder: Path, family: Family, *, clip_skip: int) -> None:
        self.family = family
        self.clip_skip = clip_skip
        self._shards = Shards(folder / _TEXTS / family.hash[:16])
        self._keys: dict[str, str] = {}

    def fill(self, captions: Iterable[str], on_progress: Progress) -> None:
        """All captions can be read, each as long as the longest. Raises StorageError."""
        texts = sorted(set(captions))
        ids = self.family.tokenize(texts).ids
        self._keys = {text: self._key(row) for text, row in zip(texts, ids, strict=True)}
        rows = dict(zip(self._keys.values(), ids, strict=True))
        missing = {key: rows[key] for key in _missing(self._shards, rows)}
        with present(self.family, *(text_encoders(self.family) if missing else ())):
            _store(self._shards, self._encode(missing), total=len(missing), on_progress=on_progress)
        self._shards.hold(rows)

    def read(self, caption: str) -> Conditioning:
        """The conditioning of a caption that was filled, without batch dimension."""
        entry = self._shards.read(self._keys[caption])
        return Conditioning(entry["states"], entry.get("pooled"))

    def _key(self, ids: Tensor) -> str:
        layer = f"layer {self.clip_skip} from the end"  # counted alike in all families
        return _digest(VERSION, self.family.hash, layer, self.family.dtype, ids.tolist())

    def _encode(self, rows: Mapping[str, Tensor]) -> Iterator[tuple[str, Entry]]:
        for key, ids in rows.items():
            tokens = Tokens(ids[None].to(self.family.device))
            with torch.no_grad():
                encoded = self.family.encode_text(tokens, clip_skip=self.clip_skip)
            entry = {"states": encoded.states[0].cpu()}
            yield key, entry if encoded.pooled is None else entry | {"pooled": encoded.pooled[0].cpu()}


def prune(folder: Path, *, limit: int) -> None:
    """The caches in `folder` take at most `limit` bytes: what was not used for longest is gone.

    What was used within the last hour stays, whatever it takes.
    """
    taken, recent = 0, time.time() - RECENT
    paths = (path for part in (_LATENTS, _TEXTS) for path in (folder / part).rglob("*.*"))
    for used, size, path in sorted(filter(None, map(_use, paths)), reverse=True):
        taken += size
        if taken > limit and used < recent:
            with contextlib.suppress(OSError):  # it is open on Windows, or another run was quicker
                path.unlink()


def _use(path: Path) -> tuple[float, int, Path] | None:
    """When a file was last used, and how many bytes it takes; None where there is none any more."""
    with contextlib.suppress(OSError):
        state = path.stat()
        return state.st_mtime, state.st_size, path
    return None


def _missing(shards: Shards, keys: Iterable[str]) -> list[str]:
    """The keys that are not there, or not whole."""
    wanted = list(keys)
    shards.hold(wanted)
    shards.forget_damaged(wanted)
    return [key for key in wanted if key not in shards]


def _store(
    shards: Shards, encoded: Iterable[tuple[str, Entry]], *, total: int, on_progress: Progress
) -> None:
    """All entries are on the disk; those that came before an error too."""
    waiting: dict[str, Entry] = {}
    written = time.monotonic()
    try:
        for done, (key, entry) in enumerate(encoded, start=1):
            waiting[key] = entry
            if len(waiting) >= SHARD_ENTRIES or time.monotonic() - written > SHARD_SECONDS:
                shards.write(waiting)
                waiting, written = {}, time.monotonic()
            on_progress(done, total)
    finally:
        shards.write(waiting)


def _digest(*parts: object) -> str:
    return hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=16).hexdigest()
