"""Measurements as pictures and as tables: norms by block, spectra, heatmaps of similarity."""

import csv
import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

_INK, _PAPER, _BAR = (40, 40, 40), (255, 255, 255), (70, 110, 180)
# Dark blue, green, yellow: told apart in grey and by every eye.
_HEAT = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def bars(values: Mapping[str, float], *, title: str) -> Image.Image:
    """One labelled bar a value, the longest across the picture."""
    width, row, left = 640, 18, 90
    image = Image.new("RGB", (width, 30 + row * max(len(values), 1)), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((8, 8), title, fill=_INK)
    largest = max((abs(value) for value in values.values()), default=0.0) or 1.0
    for number, (label, value) in enumerate(values.items()):
        top = 28 + number * row
        draw.text((8, top), label[:12], fill=_INK)
        draw.rectangle(
            (left, top + 2, left + abs(value) / largest * (width - left - 90), top + 12), fill=_BAR
        )
        draw.text((width - 80, top), f"{value:.4g}", fill=_INK)
    return image


def curve(values: Sequence[float], *, title: str) -> Image.Image:
    """Values from left to right, such as a spectrum, from zero to the largest."""
    width, height = 640, 320
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((8, 8), title, fill=_INK)
    largest = max(values, default=0.0) or 1.0
    draw.text((8, 28), f"{largest:.4g}", fill=_INK)
    step = (width - 40) / max(len(values) - 1, 1)
    points = [(20 + n * step, 50 + (height - 70) * (1 - value / largest)) for n, value in enumerate(values)]
    if len(points) > 1:
        draw.line(points, fill=_BAR, width=2)
    draw.line((20, height - 20, width - 20, height - 20), fill=_INK)
    return image


def heatmap(matrix: Tensor, *, title: str, cell: int = 8) -> Image.Image:
    """A matrix of values in [0,1], one square a value, row 1 at the top."""
    rows, columns = matrix.shape
    image = Image.new("RGB", (max(16 + columns * cell, 260), 32 + rows * cell), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((8, 8), title, fill=_INK)
    for i, line in enumerate(matrix.tolist()):
        for j, value in enumerate(line):
            left, top = 8 + j * cell, 28 + i * cell
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=_colour(value))
    return image


def table(rows: Sequence[Sequence[object]], *, header: Sequence[str]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _colour(value: float) -> tuple[int, int, int]:
    place = min(max(value, 0.0), 1.0) * (len(_HEAT) - 1)
    low = min(int(place), len(_HEAT) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - low)) for a, b in zip(_HEAT[low], _HEAT[low + 1], strict=True)
    )
    return red, green, blue
