"""How well adapters take: a style, a character and both at once, trained by `sdlora train`.

The adapters are put on the base by `sdlora.network.stack`, as `sdlora generate` does it; the pictures
are painted by the benchmark's own loop and judged. N prompts, pictures [N,3,H,H] in [-1,1].
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch

from recipes.builtin_base.captions import with_article
from recipes.builtin_base.character import NAME, POSES
from recipes.builtin_base.datasets import BACKGROUNDS, INK_SET, INK_SUBJECTS, INK_WORD
from sdlora.contracts import Family
from sdlora.events import RunEnded, RunStarted
from sdlora.network.stack import Entry, stacked
from sdlora.training.run import Run

from . import base
from .judge import Jury
from .painter import Painter

ROOT = Path(__file__).parents[2]
DATASETS = ROOT / "datasets"
COMPANIONS = ("rocket", "pizza", "crown", "tree", "house", "dog", "strawberry", "umbrella", "robot", "guitar")
RECIPES = {
    "ink-style": "--preset quick",
    "character": f"--preset quick --output.subject character --data.captions.trigger {NAME}",
}
"""What `sdlora train` is told of each sample dataset, the same as in the README's first example."""
GUIDANCE = 4.0
SEED = 1000
"""Of the first picture of an adapter."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The family that carries adapters, the painter that paints with the family's own networks, and
    the judge."""

    family: Family
    painter: Painter
    jury: Jury

    @classmethod
    def of(cls, family: Family, painter: Painter, jury: Jury) -> "Bench":
        """The painter's networks are the family's, so that what is patched is what paints."""
        unet, text = family.components["unet"], family.components["text_encoder"]
        return cls(family=family, painter=replace(painter, unet=unet, text=text), jury=jury)

    def paint(self, prompts: Sequence[str], *adapters: Path) -> torch.Tensor:
        """One picture of each prompt with these adapters at weight 1."""
        with stacked(self.family, [Entry(file) for file in adapters]):
            return self.painter.paint(prompts, guidance=GUIDANCE, seed=SEED)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An adapter's file, what `sdlora train` was told, and how long it took: see `seconds`, and in all."""

    file: Path
    words: str
    seconds: float
    seconds_in_all: float

    @property
    def report(self) -> dict[str, float | str]:
        """What a report says of it."""
        return {"words": self.words, "seconds": self.seconds, "seconds_in_all": self.seconds_in_all}


def train(name: str, folder: Path, *words: str) -> Trained:
    """`folder/NAME.safetensors` is an adapter of the dataset; `words` are added to its recipe's."""
    file, path = folder / f"{name}.safetensors", folder / "runs" / f"{name}-{time.time_ns()}"
    places = ("--output", str(file), "--run", str(path), "--preview.every", "-1")
    words = (*RECIPES[name].split(), *words)
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "sdlora", "train", str(DATASETS / name), *places, *words],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return Trained(
        file=file,
        words=" ".join(words),
        seconds=seconds(Run.open(path)),
        seconds_in_all=round(time.monotonic() - started, 1),
    )


def seconds(run: Run) -> float:
    """From the loaded base to the written adapter, encoding and checkpoints included."""
    events = run.events()[0]
    began, ended = (next(e for e in events if isinstance(e, kind)) for kind in (RunStarted, RunEnded))
    return round(ended.time - began.time, 1)


def style_subjects(jury: Jury, count: int) -> list[str]:
    """Subjects that the style's dataset does not show."""
    others = [s for s in jury.subjects if s not in (*INK_SUBJECTS, NAME)]
    return Random(1).sample(others, min(count, len(others)))


def style(jury: Jury, paint, subjects: Sequence[str]) -> tuple[dict[str, float], torch.Tensor]:
    """Fractions of the subjects that are recognised and in the style; `paint` maps prompts to pictures."""
    pixels = paint([f"an {INK_WORD} icon of {with_article(s.replace('-', ' '))}" for s in subjects])
    styles, ranks = jury.styles_of(pixels), jury.ranks(pixels, list(subjects))
    return {
        "style_top1": round(styles.count(INK_SET) / len(styles), 4),
        "subject_top5": round((ranks < 5).float().mean().item(), 4),
    }, pixels


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """A prompt with the character: its pose, or who stands to the right of it, and the background."""

    pose: str | None
    companion: str | None
    background: str

    @property
    def prompt(self) -> str:
        """The words."""
        who = f"{NAME} {self.pose}" if self.pose else f"{NAME} and {with_article(str(self.companion))}"
        return f"an icon of {who} on {with_article(self.background)} background"


def meetings(count: int) -> list[Meeting]:
    """Prompts with the character, two out of three alone, the third with somebody."""
    rng = Random(2)
    out = []
    for i in range(count):
        alone = i % 3 < 2
        pose, other = (rng.choice(POSES), None) if alone else (None, rng.choice(COMPANIONS))
        out.append(Meeting(pose=pose, companion=other, background=rng.choice(BACKGROUNDS)))
    return out


def character(jury: Jury, pixels: torch.Tensor, asked: Sequence[Meeting]) -> dict[str, float]:
    """Fractions of the pictures with the character in them, with the companion if there is one, and
    with the right background."""
    found = [
        jury.subjects_of(picture[None])[0] == NAME if m.pose else NAME in jury.subjects_of(_halves(picture))
        for picture, m in zip(pixels, asked, strict=True)
    ]
    met = [
        int(jury.ranks(_halves(picture), [m.companion] * 2).min()) < 5
        for picture, m in zip(pixels, asked, strict=True)
        if m.companion in jury.subjects
    ]
    grounds = [base.background_of(p) == m.background for p, m in zip(pixels, asked, strict=True)]
    return {
        "character_top1": _fraction(found),
        "companion_top5": _fraction(met),
        "background": _fraction(grounds),
    }


def both(jury: Jury, pixels: torch.Tensor) -> dict[str, float]:
    """Fraction of the pictures that show the character in the style."""
    subjects, styles = jury.subjects_of(pixels), jury.styles_of(pixels)
    return {
        "character_top1": _fraction([s == NAME for s in subjects]),
        "style_top1": _fraction([s == INK_SET for s in styles]),
        "both": _fraction([s == NAME and t == INK_SET for s, t in zip(subjects, styles, strict=True)]),
    }


def _halves(picture: torch.Tensor) -> torch.Tensor:
    """[2,3,H,H]: the left and the right half of [3,H,H], each in the middle of its own background."""
    side = picture.shape[-1]
    rim = torch.cat([picture[:, :2].flatten(1), picture[:, -2:].flatten(1)], 1).median(1).values
    out = rim[None, :, None, None].repeat(2, 1, side, side)
    out[0, :, :, side // 4 : side // 4 + side // 2] = picture[:, :, : side // 2]
    out[1, :, :, side // 4 : side // 4 + side // 2] = picture[:, :, side // 2 :]
    return out


def _fraction(truths: Sequence[bool]) -> float:
    return round(sum(truths) / max(1, len(truths)), 4)
