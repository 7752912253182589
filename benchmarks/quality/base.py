"""How good the base is: subject, style and background of its pictures, as the judge sees them.

The 200 prompts are fixed in `prompts.json`; what the judge makes of real pictures of the same
subjects and of their reconstructions by the autoencoder is in `reference.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from recipes.builtin_base.captions import COLOURS, STYLES, with_article

from .judge import Jury
from .painter import Painter

SHOWN = (
    "a glossy icon of a cat on a sky blue background", "a flat icon of a rocket on a blue background",
    "a soft icon of a pizza", "a retro icon of a robot on a green background", "a castle",
    "a glossy icon of an apple on a yellow background", "a flat icon of a guitar", "a bicycle",
    "a soft icon of an octopus on a teal background", "a red car on a white background",
    "a cat and a rocket", "an owl and a crown on a purple background", "a tree and a house",
    "a dog and a soccer ball on a green background", "a purple cat", "a blue mushroom",
    "a smiling face with sunglasses", "a butterfly on a pink background", "a sailboat on a blue background",
    "a cup of coffee on a brown background", "a unicorn", "a dragon on a red background",
    "a camera on a grey background", "a sunflower on a cream background", "a teddy bear", "a lion",
    "a hamburger on an orange background", "an umbrella", "a snail on a green background", "a key",
)  # fmt: skip
"""Prompts of the sheet that people look at."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and what its picture should show."""

    subject: str
    set: str
    background: str

    @property
    def prompt(self) -> str:
        """The words, as a person would type them."""
        name = with_article(self.subject.replace("-", " "))
        return f"a {STYLES[self.set]} icon of {name} on {with_article(self.background)} background"


def measure(
    painter: Painter, jury: Jury, requests: Sequence[Request], **how: float
) -> tuple[dict, torch.Tensor]:
    """The judge's numbers for one picture of each request, and the pictures."""
    pixels = painter.paint([r.prompt for r in requests], **how)
    return {**verdict(jury, pixels, requests), **how}, pixels


def verdict(jury: Jury, pixels: torch.Tensor, requests: Sequence[Request]) -> dict[str, float]:
    """Fractions of the pictures whose subject, style and background are what was asked for."""
    ranks = jury.ranks(pixels, [r.subject for r in requests])
    styles = jury.styles_of(pixels)
    grounds = [background_of(picture) for picture in pixels]
    n = len(requests)
    return {
        "subject_top1": round((ranks < 1).float().mean().item(), 4),
        "subject_top5": round((ranks < 5).float().mean().item(), 4),
        "style_top1": round(sum(s == r.set for s, r in zip(styles, requests, strict=True)) / n, 4),
        "background": round(sum(g == r.background for g, r in zip(grounds, requests, strict=True)) / n, 4),
    }


def background_of(picture: torch.Tensor) -> str:
    """The colour name nearest to the median of the outermost two pixels of [3,H,H] in [-1,1]."""
    rim = torch.cat([picture[:, :2].flatten(1), picture[:, -2:].flatten(1), picture[:, :, :2].flatten(1),
                     picture[:, :, -2:].flatten(1)], 1)  # fmt: skip
    colour = (rim.median(1).values + 1) * 127.5
    return min(COLOURS, key=lambda name: (torch.tensor(COLOURS[name]) - colour).square().sum().item())
