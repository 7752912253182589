"""An image as the pixels of its bucket: scaled until it covers it, the surplus cut off evenly.

Shapes: H W pixels of the bucket, h w latents.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sdlora.data.buckets import Bucket
from sdlora.data.decode import decode, in_srgb, read
from sdlora.data.items import Item
from sdlora.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a bucket lies in an image.

    `box` (left, top, right, bottom) is in pixels of the image; `top_left` is in pixels after scaling.
    """

    box: tuple[float, float, float, float]
    top_left: tuple[int, int]


def place(width: int, height: int, bucket: Bucket) -> Placement:
    """The largest box of the bucket's shape in the middle of an image."""
    scale = max(bucket.width / width, bucket.height / height)
    box_width, box_height = bucket.width / scale, bucket.height / scale
    left, top = (width - box_width) / 2, (height - box_height) / 2
    right, bottom = min(left + box_width, width), min(top + box_height, height)
    return Placement(
        box=(max(left, 0.0), max(top, 0.0), right, bottom), top_left=(round(top * scale), round(left * scale))
    )


def load(item: Item, bucket: Bucket, *, flip: bool = False) -> Tensor:
    """Pixels [3,H,W] in [-1,1] of an image, mirrored with `flip`.

    Raises DatasetError when the file is not the one that was scanned.
    """
    image = _unchanged(item.path, item.sha256)
    box = place(image.width, image.height, bucket).box
    small = in_srgb(image.resize(bucket, Image.Resampling.LANCZOS, box=box))
    pixels = _tensor(small, 3) / 127.5 - 1
    return pixels.flip(-1) if flip else pixels


def load_mask(item: Item, bucket: Bucket, *, factor: int, flip: bool = False) -> Tensor:
    """Loss weights [1,h,w] in [0,1] of an image's mask, 1 without one; h is H / factor."""
    size = (bucket.width // factor, bucket.height // factor)
    if item.mask is None:
        return torch.ones(1, size[1], size[0])
    mask = _unchanged(item.mask, item.mask_sha256).convert("L")
    box = place(mask.width, mask.height, bucket).box
    weights = _tensor(mask.resize(size, Image.Resampling.BOX, box=box), 1) / 255
    return weights.flip(-1) if flip else weights


def _unchanged(path: Path, sha256: str) -> Image.Image:
    """The picture in a file, if its bytes are still those of the scan: nothing stale reaches a cache."""
    data = read(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetError(f"{path.name} was changed after the folder was read.", "Start again.")
    return decode(data, path.name)[0]


def _tensor(image: Image.Image, channels: int) -> Tensor:
    """Pixels of 8 bits as floats [channels,H,W] in [0,255]."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, channels).permute(2, 0, 1).float()
