"""The judge's training: every icon of every set and many drawings of the character, on all backgrounds.

One (subject, set) pair in twenty is never shown, so that the accuracy on those says how well the
judge knows a subject in a style in which it has not seen it. Pictures are blurred and made noisy at
times, as generated ones are.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.quality.judge import Judge, Jury

from . import character, icons, scenes
from .clock import Clock
from .icons import SETS, Textures
from .models import Scale

CHARACTER_DRAWINGS = 192
"""Drawings of the character in colour, and as many in ink."""
INK_STYLE = "fluent-emoji-high-contrast"
HIDDEN_FRACTION = 0.05
PEAK_RATE = 3e-3
UNKNOWN = -100
"""The style label of pictures whose style is not asked for."""


@dataclass(frozen=True, kw_only=True)
class _Gallery:
    """All textures [K,4,S,S] with the labels of each."""

    pixels: torch.Tensor
    subjects: torch.Tensor
    styles: torch.Tensor
    names: tuple[str, ...]
    seen: np.ndarray
    hidden: np.ndarray


def train(
    textures: Textures, scale: Scale, *, device: str, seconds: float, seed: int
) -> tuple[Jury, dict[str, float]]:
    """A jury that has learned for so many seconds, and its accuracy on real pictures."""
    torch.manual_seed(seed)
    gallery = _gallery(textures, scale, device, seed)
    judge = Judge(scale.judge_channels, len(gallery.names), len(SETS)).to(device)
    judge = judge.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=PEAK_RATE, weight_decay=0.02)
    rng = np.random.default_rng(seed)
    clock = Clock("judge", seconds)
    steps = 0
    while clock.progress < 1:
        optimizer.param_groups[0]["lr"] = PEAK_RATE * min(1, (steps + 1) / 200, 1.001 - clock.progress)
        rows = _draw_rows(gallery, rng, scale.judge_batch)
        pixels = _worn(_pictures(gallery, textures, rows, scale, rng), rng)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            subject, style = judge(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(subject.float(), gallery.subjects[rows], label_smoothing=0.1)
        loss = loss + F.cross_entropy(style.float(), gallery.styles[rows], ignore_index=UNKNOWN)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
        if clock.due():
            clock.say(f"step {steps} loss {loss.item():.3f}")
    jury = Jury(judge=judge.eval(), subjects=gallery.names, styles=SETS)
    report = _report(jury, gallery, textures, scale)
    clock.say(f"{steps} steps, {report}")
    return jury, report


def _gallery(textures: Textures, scale: Scale, device: str, seed: int) -> _Gallery:
    rng = Random(seed)
    drawn, styles = [], []
    for i in range(CHARACTER_DRAWINGS if scale.picture > 64 else 4):
        pose = character.pose(character.POSES[i % len(character.POSES)], rng)
        for paint, style in ((character.COLOUR, UNKNOWN), (character.INK, SETS.index(INK_STYLE))):
            picture = icons.draw(character.svg(pose, paint), textures.pixels.shape[-1])
            drawn.append(icons.premultiplied(picture))
            styles.append(style)
    names = (*textures.names, character.NAME)
    number = {name: i for i, name in enumerate(names)}
    subjects = [number[s] for s in textures.subjects] + [number[character.NAME]] * len(drawn)
    styles = [SETS.index(s) for s in textures.sets] + styles
    order = np.random.default_rng(seed).permutation(len(textures.subjects))
    hidden = order[: int(len(order) * HIDDEN_FRACTION)]
    seen = np.setdiff1d(np.arange(len(subjects)), hidden)
    pixels = np.concatenate([textures.pixels, np.stack(drawn)])
    return _Gallery(
        pixels=torch.from_numpy(pixels).to(device),
        subjects=torch.tensor(subjects, device=device),
        styles=torch.tensor(styles, device=device),
        names=names,
        seen=seen,
        hidden=hidden,
    )


def _draw_rows(gallery: _Gallery, rng: np.random.Generator, count: int) -> np.ndarray:
    """Row numbers to learn from next: one in thirty is the character."""
    known = int(gallery.seen.max()) + 1
    first = known - int((gallery.subjects == gallery.subjects[-1]).sum())
    rows = rng.choice(gallery.seen[gallery.seen < first], count)
    character_rows = rng.random(count) < 1 / 30
    return np.where(character_rows, rng.integers(first, known, count), rows)


def _pictures(
    gallery: _Gallery, textures: Textures, rows: np.ndarray, scale: Scale, rng: np.random.Generator
) -> torch.Tensor:
    """One icon a picture, anywhere, small or large; black drawings never on a dark background."""
    n = len(rows)
    side = rng.uniform(0.42, 0.95, n)
    centre = 0.5 + rng.uniform(-1, 1, (n, 2)) * (1 - side[:, None]) / 2
    places = np.tile(np.array([0.5, 0.5, 1.0], dtype=np.float32), (n, 2, 1))
    places[:, 0] = np.concatenate([centre, side[:, None]], 1)
    colours = np.array(list(scenes.captions.COLOURS.values())) / 255
    dark = (gallery.styles[rows].cpu().numpy() == SETS.index(INK_STYLE))[:, None]
    backgrounds = colours[rng.integers(0, len(colours), n)] + rng.uniform(-0.05, 0.05, (n, 3))
    backgrounds = np.where(rng.random((n, 1)) < 0.3, 1.0, backgrounds)
    too_dark = dark & (backgrounds.mean(1, keepdims=True) < 0.4)
    backgrounds = np.where(too_dark, 1.0, backgrounds).clip(0, 1).astype(np.float32)
    made = scenes.Scenes(
        rows=np.stack([rows, np.full(n, scenes.EMPTY)], 1),
        places=places,
        backgrounds=backgrounds,
        tints=np.full((n, 3), -1, dtype=np.float32),
        captions=(),
    )
    return scenes.compose(gallery.pixels, made, size=scale.picture)


def _worn(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The batch as a generator might draw it: at times blurred, noisy, paler or shifted in colour."""
    size = pixels.shape[-1]
    n = len(pixels)

    def some(fraction: float) -> torch.Tensor:
        return torch.rand(n, 1, 1, 1, device=pixels.device) < fraction

    smaller = F.interpolate(pixels, size=int(size * rng.uniform(0.35, 0.8)), mode="area")
    blurred = F.interpolate(smaller, size=size, mode="bilinear")
    pixels = torch.where(some(0.3), blurred, pixels)
    pixels = torch.where(some(0.3), pixels + 0.08 * torch.randn_like(pixels), pixels)
    shift = 0.1 * torch.randn(n, 3, 1, 1, device=pixels.device)
    return torch.where(some(0.3), pixels * 0.92 + shift, pixels).clamp(-1, 1)


@torch.no_grad()
def _report(jury: Jury, gallery: _Gallery, textures: Textures, scale: Scale) -> dict[str, float]:
    """Accuracy on fresh unworn pictures: of seen icons, of hidden ones, and of the character."""
    rng = np.random.default_rng(7)
    first = len(textures.subjects)
    groups = {
        "seen": rng.choice(gallery.seen[gallery.seen < first], 2 * scale.judge_batch),
        "hidden": gallery.hidden if len(gallery.hidden) else gallery.seen[:1],
        "character": np.arange(first, len(gallery.subjects)),
    }
    out: dict[str, float] = {}
    for name, rows in groups.items():
        subject, style = jury.judge(_pictures(gallery, textures, rows, scale, rng))
        true, kind = gallery.subjects[rows], gallery.styles[rows]
        top = subject.topk(min(5, subject.shape[1]), dim=1).indices == true[:, None]
        known = kind != UNKNOWN
        out[f"{name}_subject_top1"] = top[:, 0].float().mean().item()
        out[f"{name}_subject_top5"] = top.any(1).float().mean().item()
        out[f"{name}_style_top1"] = (style.argmax(1) == kind)[known].float().mean().item()
    return {key: round(value, 4) for key, value in out.items()}
