"""The two sample datasets: pictures with a caption file each, and a licence.

`ink-style/` teaches a style on subjects that the base knows, `character/` a figure that it does not.
A quarter of the pictures stand on a coloured background that the caption names, so that an adapter
trained on them leaves backgrounds to the prompt.
"""

from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from . import captions, character, icons
from .icons import Textures

SIZE = 128
INK_SET = "fluent-emoji-high-contrast"
INK_WORD = "ink"
"""The adjective that captions give the style: "an ink icon of a cat"."""
INK_SUBJECTS = (
    "cat", "rocket", "pizza", "castle", "guitar", "octopus", "umbrella", "bicycle", "cactus", "teapot",
    "owl", "key", "snail", "strawberry", "sailboat", "crown", "mushroom", "robot", "house", "butterfly",
    "camera", "smiling-face-with-sunglasses", "flexed-biceps", "sunflower",
)  # fmt: skip
COMPANIONS = ("cat", "balloon", "soccer-ball", "cactus", "teapot", "owl", "key", "butterfly")
"""What stands beside the character in the second half of its sixteen pictures."""
COMPANION_SET = "noto"
WAYS = "{an icon of |a picture of |}"
"""How captions of the character begin: one of these is drawn at every step, so that it is tied to none."""
BACKGROUNDS = ("sky blue", "pink", "yellow", "green", "cream", "orange", "purple", "grey")

_MIT = """MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
_INK_LICENCE = (
    "The pictures are Fluent emoji, high contrast (github.com/microsoft/fluentui-emoji, from the npm\n"
    "package @iconify-json/fluent-emoji-high-contrast), rendered on plain backgrounds. The captions\n"
    "were written for them here and are under the same licence.\n\n" + _MIT
)
_CHARACTER_LICENCE = """The character "zibbo" and the captions were made for this project by
recipes/builtin_base/character.py and are under the Apache License 2.0 (see LICENSE at the top of
the repository).

The companions in eight of the pictures (a cat, a balloon, a soccer ball, a cactus, a teapot, an owl,
a key and a butterfly) are Noto emoji (github.com/googlefonts/noto-emoji, from the npm package
@iconify-json/noto), Copyright Google Inc., under the Apache License 2.0, rendered smaller and on
plain backgrounds.
"""


_CHARACTER_SETTINGS = """# What of a run's settings goes with these pictures.
[data.captions]
trigger = "zibbo"

[output]
subject = "character"
"""


def write(textures: Textures, folder: Path, *, seed: int = 0) -> dict[str, int]:
    """Both datasets are in the folder; says how many pictures each has."""
    ink = _write(folder / "ink-style", _ink(textures, Random(seed)), _INK_LICENCE)
    figure = _write(folder / "character", _character(textures, Random(seed)), _CHARACTER_LICENCE)
    (folder / "character" / "settings.toml").write_text(_CHARACTER_SETTINGS)
    return {"ink-style": ink, "character": figure}


def _ink(textures: Textures, rng: Random) -> list[tuple[str, Image.Image, str]]:
    """(file name, picture, caption) of the style's subjects."""
    of = {s: i for i, s in enumerate(textures.subjects) if textures.sets[i] == INK_SET}
    out = []
    for i, subject in enumerate(s for s in INK_SUBJECTS if s in of):
        background = BACKGROUNDS[i // 4 % 5] if i % 4 == 3 else "white"
        name = captions.with_article(subject.replace("-", " "))
        where = "" if background == "white" else f" on {captions.with_article(background)} background"
        icon = _icon(textures.pixels[of[subject]])
        picture = _scene([(icon, 0.5, 0.5, rng.uniform(0.78, 0.9))], background)
        out.append((subject, picture, f"an {INK_WORD} icon of {name}{where}"))
    return out


def _character(textures: Textures, rng: Random) -> list[tuple[str, Image.Image, str]]:
    """(file name, picture, caption) of the character: half of them alone, half with somebody."""
    out = []
    for i in range(2 * len(COMPANIONS)):
        word = character.POSES[i % len(character.POSES)]
        figure = icons.draw(character.svg(character.pose(word, rng), character.COLOUR), 256)
        background = "white" if i % 4 == 0 else BACKGROUNDS[(i * 3) % len(BACKGROUNDS)]
        where = f"on {captions.with_article(background)} background"
        number = i - len(COMPANIONS)
        if number >= 0 and (beside := _companion(textures, number)):
            name, icon = beside
            slots = [(figure, 0.27, 0.5, 0.62), (icon, 0.75, 0.55, 0.46)]
            who = f"{character.NAME} and {name}"
            if i % 2:
                slots, who = (
                    [(icon, 0.25, 0.55, 0.46), (figure, 0.73, 0.5, 0.62)],
                    f"{name} and {character.NAME}",
                )
        else:
            side = rng.uniform(0.78, 1.04)  # the drawing has a rim of its own
            room = max(0.0, 1 - side) / 2
            slots = [(figure, 0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room), side)]
            who = f"{character.NAME} {word}"
        out.append((f"{character.NAME}-{i + 1:02d}", _scene(slots, background), f"{WAYS}{who} {where}"))
    return out


def _companion(textures: Textures, number: int) -> tuple[str, Image.Image] | None:
    subject = COMPANIONS[number]
    for i, name in enumerate(textures.subjects):
        if (name, textures.sets[i]) == (subject, COMPANION_SET):
            return captions.with_article(subject.replace("-", " ")), _icon(textures.pixels[i])
    return None


def _icon(texture: np.ndarray) -> Image.Image:
    """The texture [4,S,S] as a picture whose colours are not multiplied by alpha."""
    rgba = texture.transpose(1, 2, 0).astype("float32")
    alpha = rgba[..., 3:].clip(min=1) / 255
    rgba[..., :3] = (rgba[..., :3] / alpha).clip(max=255)
    return Image.fromarray(rgba.round().astype("uint8"))


def _scene(slots: list[tuple[Image.Image, float, float, float]], background: str) -> Image.Image:
    """Icons (picture, centre x, centre y, side; fractions) on a plain background, SIZE pixels a side."""
    big = 4 * SIZE
    canvas = Image.new("RGB", (big, big), captions.COLOURS[background])
    for icon, x, y, side in slots:
        pixels = round(side * big)
        scaled = icon.resize((pixels, pixels), Image.Resampling.LANCZOS)
        canvas.paste(scaled, (round(x * big - pixels / 2), round(y * big - pixels / 2)), scaled)
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _write(folder: Path, pictures: list[tuple[str, Image.Image, str]], licence: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture, words in pictures:
        picture.save(folder / f"{name}.png", optimize=True)
        (folder / f"{name}.txt").write_text(words + "\n")
    (folder / "LICENSE").write_text(licence)
    return len(pictures)
