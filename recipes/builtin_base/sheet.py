"""Sheets: many pictures on one page, with a few words under each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw


def save(path: Path, pixels: torch.Tensor, words: Sequence[str], *, columns: int = 10) -> None:
    """A page of pictures [N,3,H,H] in [-1,1], the words of each under it, written to `path`."""
    pictures = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    side = pictures.shape[1]
    page = Image.new("RGB", (columns * (side + 4), -(-len(pictures) // columns) * (side + 28)), "white")
    pen = ImageDraw.Draw(page)
    for i, picture in enumerate(pictures):
        x, y = i % columns * (side + 4), i // columns * (side + 28)
        page.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))
        for line, start in enumerate((0, 21)):
            pen.text((x + 2, y + side + 1 + 12 * line), words[i][start : start + 21], fill="black")
    page.save(path)
