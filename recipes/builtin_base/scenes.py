"""Scenes: which icons stand where on what background, and the pixels and captions they make.

N scenes, K textures, S texture side, H picture side, two slots a scene (the second may be empty).
The one decision: scenes are arrays, so hundreds of thousands are composed on the accelerator in
seconds; only the captions are made in Python.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F

from . import captions
from .icons import Textures

EMPTY = -1
"""Texture number of a slot in which nothing stands."""


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """`rows` [N,2] texture numbers or EMPTY; `places` [N,2,3] centre x, y and side, fractions of the
    picture; `backgrounds` [N,3] and `tints` [N,3] in [0,1], a negative tint meaning none."""

    rows: np.ndarray
    places: np.ndarray
    backgrounds: np.ndarray
    tints: np.ndarray
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


def sample(
    textures: Textures, rows: np.ndarray, *, seed: int, pairs: float = 0.18, captioned: bool = True
) -> Scenes:
    """One scene for each row, a fraction `pairs` of them with a second icon of the same set."""
    rng = np.random.default_rng(seed)
    words = Random(seed)
    n = len(rows)
    slots = np.full((n, 2), EMPTY, dtype=np.int64)
    slots[:, 0] = rows
    paired = rng.random(n) < pairs
    slots[paired, 1] = _partners(textures, rows, rng)[paired]
    names = list(captions.COLOURS)
    colours = np.where(rng.random(n) < 0.35, 0, rng.integers(0, len(names), n))
    tinted = ~paired & (rng.random(n) < 0.06)
    tint_names = [words.choice(captions.TINTS) if t else None for t in tinted]
    colours[tinted & (colours > 0)] = 0
    return Scenes(
        rows=slots,
        places=_places(paired, rng),
        backgrounds=_jittered(np.array([captions.COLOURS[names[c]] for c in colours]), rng, colours > 0),
        tints=np.array([_tint(t) for t in tint_names], dtype=np.float32).reshape(n, 3),
        captions=tuple(
            _caption(textures, slots[i], names[colours[i]], tint_names[i], words)
            for i in range(n if captioned else 0)
        ),
    )


def compose(textures: torch.Tensor, scenes: Scenes, *, size: int, chunk: int = 512) -> torch.Tensor:
    """The scenes' pixels [N,3,H,H] in [-1,1], from textures [K,4,S,S] uint8, on their device."""
    parts = [
        _compose(textures, scenes, slice(start, start + chunk), size)
        for start in range(0, len(scenes), chunk)
    ]
    return torch.cat(parts)


def _compose(textures: torch.Tensor, scenes: Scenes, part: slice, size: int) -> torch.Tensor:
    device = textures.device
    rows = torch.from_numpy(scenes.rows[part]).to(device)
    places = torch.from_numpy(scenes.places[part]).to(device, torch.float32)
    tints = torch.from_numpy(scenes.tints[part]).to(device)
    canvas = torch.from_numpy(scenes.backgrounds[part]).to(device, torch.float32)[:, :, None, None]
    canvas = canvas.expand(-1, -1, 2 * size, 2 * size)
    for slot in range(2):
        drawn = _place(textures, rows[:, slot], places[:, slot], 2 * size)
        drawn = _tinted(drawn, tints)
        canvas = drawn[:, :3] + (1 - drawn[:, 3:]) * canvas
    return F.avg_pool2d(canvas, 2).mul_(2).sub_(1)


def _place(textures: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    icons = textures[rows.clamp(min=0)].float().div_(255) * (rows >= 0)[:, None, None, None]
    x, y, side = places.unbind(1)
    zero = torch.zeros_like(side)
    affine = torch.stack([1 / side, zero, (1 - 2 * x) / side, zero, 1 / side, (1 - 2 * y) / side], 1).view(
        -1, 2, 3
    )
    grid = F.affine_grid(affine, [len(icons), 4, size, size], align_corners=False)
    return F.grid_sample(icons, grid, align_corners=False)


def _tinted(icons: torch.Tensor, tints: torch.Tensor) -> torch.Tensor:
    """Icons whose tint is not negative, repainted in it: dark stays dark, light stays light."""
    alpha = icons[:, 3:].clamp(min=1e-4)
    weights = icons.new_tensor([0.3, 0.59, 0.11]).view(1, 3, 1, 1)
    light = ((icons[:, :3] * weights).sum(1, keepdim=True) / alpha).clamp(0, 1)
    tint = tints[:, :, None, None]
    painted = torch.where(light < 0.5, 2 * light * tint, 1 - 2 * (1 - light) * (1 - tint))
    painted = torch.cat([painted * icons[:, 3:], icons[:, 3:]], 1)
    return torch.where((tints[:, 0] >= 0).view(-1, 1, 1, 1), painted, icons)


def _partners(textures: Textures, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sets = np.array(textures.sets)[rows]
    partners = np.empty_like(rows)
    for name in np.unique(sets):
        here = sets == name
        partners[here] = rng.choice(textures.rows(name), here.sum())
    return partners


def _places(paired: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n = len(paired)
    calm = rng.random(n) < 0.4
    side = np.where(calm, 0.86, rng.uniform(0.6, 0.95, n))
    room = np.where(calm, 0.02, (1 - side) / 2)
    centre = 0.5 + rng.uniform(-1, 1, (n, 2)) * room[:, None]
    places = np.zeros((n, 2, 3))
    places[:, 0] = np.concatenate([centre, side[:, None]], 1)
    small = rng.uniform(0.43, 0.49, (n, 2))
    for slot, x in enumerate((0.26, 0.74)):
        move = rng.uniform(-1, 1, (n, 2)) * (0.015, 0.06)
        pair = np.stack([x + move[:, 0], 0.5 + move[:, 1], small[:, slot]], 1)
        places[paired, slot] = pair[paired]
        if slot:
            places[~paired, slot] = (0.5, 0.5, 1.0)
    return places.astype(np.float32)


def _jittered(colours: np.ndarray, rng: np.random.Generator, where: np.ndarray) -> np.ndarray:
    """The colours in [0,1], moved a little where asked, so that a name is a small region."""
    moved = colours + rng.uniform(-7, 7, colours.shape) * where[:, None]
    return (moved.clip(0, 255) / 255).astype(np.float32)


def _tint(name: str | None) -> tuple[float, float, float]:
    red, green, blue = captions.COLOURS[name] if name else (-255, -255, -255)
    return red / 255, green / 255, blue / 255


def _caption(textures: Textures, rows: np.ndarray, background: str, tint: str | None, words: Random) -> str:
    named = [captions.phrase(textures.subjects[row], words) for row in rows if row != EMPTY]
    if tint:
        plain = captions.SYNONYMS.get(textures.subjects[rows[0]], ())
        name = words.choice((textures.subjects[rows[0]].replace("-", " "), *plain))
        named = [captions.with_article(f"{tint} {name}")]
    style = captions.STYLES.get(textures.sets[rows[0]]) if words.random() > 0.2 else None
    silent = 0.6 if background == "white" else 0.12
    return captions.caption(
        " and ".join(named), style, None if words.random() < silent else background, words
    )
