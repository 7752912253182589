"""Zibbo: a character that exists nowhere else, drawn by this recipe in any pose, in colour or in ink.

A teal pear of a creature with a cream belly, one curled antenna that ends in a yellow star, round
eyes, an orange striped scarf and little red boots. Coordinates are of a 128 x 128 canvas.
"""

from dataclasses import dataclass
from math import cos, pi, sin
from random import Random

NAME = "zibbo"
"""The character's trigger word, and its name among the judge's subjects."""

POSES = ("standing", "waving", "cheering", "walking", "jumping", "sleeping")
"""Poses by the word that captions use."""


@dataclass(frozen=True, kw_only=True)
class Paint:
    """The colours of one drawing style."""

    body: str
    belly: str
    scarf: str
    stripe: str
    boots: str
    star: str
    line: str
    eye: str
    pupil: str


COLOUR = Paint(
    body="#1fb5a6", belly="#fff1cf", scarf="#ff8a2a", stripe="#fff1cf", boots="#d93a4a",
    star="#ffd23e", line="#126e68", eye="#ffffff", pupil="#1d2433",
)  # fmt: skip
INK = Paint(
    body="#212121", belly="#ffffff", scarf="#ffffff", stripe="#212121", boots="#212121",
    star="#212121", line="#212121", eye="#ffffff", pupil="#212121",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How Zibbo stands: degrees of lean, of each arm above the horizontal and of each leg outwards,
    where the eyes look (-1 left, 1 right), how far they are open, and how high the feet are."""

    word: str
    lean: float = 0
    left: float = -50
    right: float = -50
    stride: float = 0
    look: float = 0
    open: float = 1
    smile: float = 1
    lift: float = 0


def pose(word: str, rng: Random) -> Pose:
    """One of the poses, a little different every time."""
    look, lean = rng.uniform(-1, 1), rng.uniform(-6, 6)
    down = rng.uniform(-60, -35)
    match word:
        case "waving":
            return Pose(word=word, lean=lean, left=down, right=rng.uniform(45, 70), look=look)
        case "cheering":
            high = rng.uniform(40, 70)
            return Pose(word=word, lean=lean, left=high, right=high, look=look, smile=1.4)
        case "walking":
            lean = rng.choice((-1, 1)) * rng.uniform(5, 10)
            return Pose(word=word, lean=lean, left=-20, right=-70, stride=20, look=lean / 8)
        case "jumping":
            arms = rng.uniform(5, 35)
            return Pose(word=word, lean=lean, left=arms, right=arms, stride=28, look=look, lift=9, smile=1.4)
        case "sleeping":
            return Pose(
                word=word, lean=rng.choice((-1, 1)) * rng.uniform(10, 16), left=-75, right=-75, open=0
            )
    return Pose(word="standing", lean=lean, left=down, right=down, look=look)


def svg(pose: Pose, paint: Paint) -> str:
    """The drawing as an SVG text, on nothing."""
    edge = f'stroke="{paint.line}" stroke-width="3" stroke-linecap="round" stroke-linejoin="round"'
    parts = [
        f'<g transform="translate(0 {-pose.lift}) rotate({pose.lean:.1f} 64 112)">',
        _boots(pose, paint, edge),
        _arm(44, 78, 180 + pose.left, paint, edge),
        _arm(84, 78, -pose.right, paint, edge),
        _antenna(paint, edge),
        f'<path d="M64 30 C44 30 40 52 36 74 C32 98 46 110 64 110 C82 110 96 98 92 74 C88 52 84 30 64 30Z"'
        f' fill="{paint.body}" {edge}/>',
        f'<ellipse cx="64" cy="92" rx="17" ry="14" fill="{paint.belly}"/>',
        _face(pose, paint),
        _scarf(paint, edge),
        "</g>",
    ]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-9 -12 146 146">{"".join(parts)}</svg>'


def _boots(pose: Pose, paint: Paint, edge: str) -> str:
    spread = pose.stride * 0.35
    return "".join(
        f'<g transform="rotate({-side * pose.stride:.1f} {64 + side * 12} 106)">'
        f'<rect x="{64 + side * (13 + spread / 4) - 6:.1f}" y="104" width="12" height="14" rx="4"'
        f' fill="{paint.body}" {edge}/>'
        f'<ellipse cx="{64 + side * (15 + spread / 4):.1f}" cy="119" rx="11" ry="6"'
        f' fill="{paint.boots}" {edge}/></g>'
        for side in (-1, 1)
    )


def _arm(x: float, y: float, degrees: float, paint: Paint, edge: str) -> str:
    """A thick arm from the shoulder, with a round hand."""
    dx, dy = cos(degrees * pi / 180), sin(degrees * pi / 180)
    hand_x, hand_y = x + 24 * dx, y + 24 * dy
    return (
        f'<path d="M{x} {y} L{hand_x:.1f} {hand_y:.1f}" stroke="{paint.line}" stroke-width="13"'
        f' stroke-linecap="round"/><path d="M{x} {y} L{hand_x:.1f} {hand_y:.1f}" stroke="{paint.body}"'
        f' stroke-width="7.5" stroke-linecap="round"/>'
        f'<circle cx="{hand_x:.1f}" cy="{hand_y:.1f}" r="6.5" fill="{paint.belly}" {edge}/>'
    )


def _antenna(paint: Paint, edge: str) -> str:
    points = " ".join(
        f"{78 + r * cos(k * pi / 5 - pi / 2):.1f},{14 + r * sin(k * pi / 5 - pi / 2):.1f}"
        for k, r in ((k, 11 if k % 2 == 0 else 5) for k in range(10))
    )
    return (
        f'<path d="M62 32 C54 18 66 8 76 15" fill="none" stroke="{paint.line}" stroke-width="5"'
        f' stroke-linecap="round"/><polygon points="{points}" fill="{paint.star}" {edge}/>'
    )


def _face(pose: Pose, paint: Paint) -> str:
    mouth = (
        f'<path d="M57 64 Q64 {64 + 7 * pose.smile:.1f} 71 64" fill="none" stroke="{paint.eye}"'
        ' stroke-width="3" stroke-linecap="round"/>'
    )
    if not pose.open:
        lids = "".join(
            f'<path d="M{x - 7} 50 Q{x} 57 {x + 7} 50" fill="none" stroke="{paint.eye}" stroke-width="3.5"'
            ' stroke-linecap="round"/>'
            for x in (54, 74)
        )
        return lids + mouth
    return mouth + "".join(
        f'<circle cx="{x}" cy="49" r="8.5" fill="{paint.eye}"/>'
        f'<circle cx="{x + 3 * pose.look:.1f}" cy="50" r="4.5" fill="{paint.pupil}"/>'
        f'<circle cx="{x + 3 * pose.look + 1.5:.1f}" cy="48.3" r="1.4" fill="{paint.eye}"/>'
        for x in (54, 74)
    )


def _scarf(paint: Paint, edge: str) -> str:
    stripes = "".join(
        f'<path d="M{x} 71 l2 9" stroke="{paint.stripe}" stroke-width="3.5"/>' for x in (49, 61, 73)
    )
    return (
        f'<path d="M38 70 Q64 82 90 70 L91 79 Q64 91 37 79Z" fill="{paint.scarf}" {edge}/>{stripes}'
        f'<path d="M80 78 L86 98 L75 98 L72 81Z" fill="{paint.scarf}" {edge}/>'
        f'<path d="M76 91 l9 0" stroke="{paint.stripe}" stroke-width="3.5"/>'
    )
