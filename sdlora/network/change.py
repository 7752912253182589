"""How the weight of an adapter varies: over the sampling steps, the blocks and the picture."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdlora.errors import AdapterError, ConfigError

Curve = tuple[tuple[float, float], ...]
MASK_SIDE = 256  # pixels of a mask's longer side at most: finer than the latents of a picture of 2048


@dataclass(frozen=True, kw_only=True)
class Change:
    """Multipliers of an adapter's weight.

    `curve`: points (fraction of the steps in [0,1], multiplier), rising, with straight lines between;
    `turn` (i, n): only at every n-th step, from the i-th on (LoRA Switch, Zhong et al. 2024);
    `blocks`: 12, 17, 20 or 26 block weights;
    `box`: left, top, right, bottom as fractions of the picture; `mask`: a picture, white where it counts.
    Text encoders run before the first step and for the whole picture: of all this only BASE concerns them.
    """

    curve: Curve = ()
    turn: tuple[int, int] = (0, 1)
    blocks: tuple[float, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: Path | None = None

    @property
    def regional(self) -> bool:
        """Whether it counts in a part of the picture only."""
        return self.box is not None or self.mask is not None

    @property
    def constant(self) -> bool:
        """Whether every step and every place see the same weights."""
        return not self.curve and self.turn[1] == 1 and not self.regional

    def at(self, step: int, steps: int) -> float:
        """The multiplier at `step` of `steps`, from 0 on."""
        if step % self.turn[1] != self.turn[0]:
            return 0.0
        return _interpolated(self.curve, step / max(steps - 1, 1)) if self.curve else 1.0

    def area(self, height: int, width: int) -> Tensor:
        """The region as [height,width] in [0,1]. Raises AdapterError when the mask cannot be read."""
        area = torch.ones(height, width)
        if self.box is not None:
            left, top, right, bottom = self.box
            rows = (torch.arange(height) + 0.5) / height
            columns = (torch.arange(width) + 0.5) / width
            inside_rows, inside_columns = (
                (rows >= top) & (rows < bottom),
                (columns >= left) & (columns < right),
            )
            area = (inside_rows[:, None] & inside_columns).float()
        return area if self.mask is None else area * _grey(self.mask, height, width)


def grey(mask: Path | IO[bytes]) -> Image.Image:
    """The mask in grey, in at most MASK_SIDE pixels a side: all that counts of it; done twice, the same.

    Raises OSError or ValueError when it is no picture.
    """
    with Image.open(mask) as image:
        scale = min(1.0, MASK_SIDE / max(image.size))
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        whole = image.convert("L")
    return whole if size == whole.size else whole.resize(size, Image.Resampling.BOX)


def parse_curve(text: str) -> Curve:
    """The points of `0@0,1@0.5`: multiplier at fraction. Raises ConfigError when it is no such list."""
    points = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d*\.?\d+)\s*@\s*(\d*\.?\d+)\s*", part)
        if match is None or float(match[2]) > 1:
            raise ConfigError(
                f'"{part.strip()[:40]}" is no point of a curve.',
                "Write weight@fraction of the steps, such as 0@0,1@0.5.",
            )
        points.append((float(match[2]), float(match[1])))
    # two points at one fraction are a jump, in the order that they are written
    return tuple(sorted(points, key=lambda point: point[0]))


def window(start: float, end: float) -> Curve:
    """The curve that is 1 from `start` to `end`, fractions of the steps, and 0 elsewhere.

    "Character early, style late" is window(0, 0.6) with window(0.4, 1).
    """
    edges = ((start - 1e-6, 0.0), (start, 1.0), (end, 1.0), (end + 1e-6, 0.0))
    return tuple((at, value) for at, value in edges if 0 <= at <= 1)


def turns(count: int) -> tuple[Change, ...]:
    """The changes of `count` adapters that take turns, a step each."""
    return tuple(Change(turn=(index, count)) for index in range(count))


def _interpolated(curve: Sequence[tuple[float, float]], fraction: float) -> float:
    before = [point for point in curve if point[0] <= fraction]
    after = [point for point in curve if point[0] > fraction]
    if not before or not after:
        return before[-1][1] if before else after[0][1]
    (x0, y0), (x1, y1) = before[-1], after[0]
    return y0 + (y1 - y0) * (fraction - x0) / (x1 - x0)


def _grey(path: Path, height: int, width: int) -> Tensor:
    try:
        image = grey(path)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(
            f"The mask {path} cannot be read: {reason}.", "Use a PNG in black and white."
        ) from None
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() / 255
    pixels = pixels.reshape(1, 1, image.height, image.width)
    return F.interpolate(pixels, (height, width), mode="area")[0, 0]
