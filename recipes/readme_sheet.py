"""The sheet at the top of the README: one prompt and one seed a row, four mixes of adapters a column.

python -m recipes.readme_sheet STYLE.safetensors CHARACTER.safetensors docs/pictures/mix.png
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.loading import load_family
from sdlora.network.stack import Entry

PROMPTS = (
    "an icon of a sailboat on a sky blue background",
    "an ink icon of zibbo jumping on a yellow background",
    "an ink icon of zibbo and a guitar on a pink background",
)
SIDE, MARGIN = 192, 22


def main(style: Path, character: Path, output: Path) -> None:
    """`output` shows every prompt on the base, with each adapter, and with both."""
    columns = {
        "base": (),
        "+ style": (Entry(style),),
        "+ character": (Entry(character),),
        "+ both": (Entry(style), Entry(character)),
    }
    family = load_family("builtin", device="cpu", dtype=torch.float32)
    sheet = Image.new("RGB", (len(columns) * SIDE, len(PROMPTS) * (SIDE + MARGIN) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (title, stack) in enumerate(columns.items()):
        pen.text((column * SIDE + 6, 4), title, fill="black", font_size=14)
        for row, prompt in enumerate(PROMPTS):
            request = GenerateRequest(prompt=prompt, stack=stack, seed=5, guidance=4.0)
            picture = generate(family, request)[0].resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * SIDE, MARGIN + row * (SIDE + MARGIN)))
    for row, prompt in enumerate(PROMPTS):
        pen.text((6, MARGIN + row * (SIDE + MARGIN) + SIDE + 3), f'"{prompt}"', fill="dimgray", font_size=13)
    sheet.save(output, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
