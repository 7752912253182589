"""How an adapter's weight varies, in words: those of a prompt, of the command line and of a request's JSON.

curve=0@0,1@0.5    multiplier@fraction of the steps, straight lines between
start=0.2          off before this fraction of the steps
end=0.8            off after it
turn=1/2           the first of two adapters that take turns, a step each
lbw=1,0,...        12 or 20 (SDXL), 17 or 26 (SD 1.x, 2.x) block weights
style=0            named blocks instead: composition, content, style, detail
box=0,0,0.5,1      left, top, right, bottom of where it counts, fractions of the picture
mask=FILE          a picture, white where it counts; never in a prompt
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path

from sdlora.errors import ConfigError
from sdlora.network import blocks
from sdlora.network.change import Change, Curve, parse_curve, window
from sdlora.network.codec import AdapterFile

Parts = tuple[tuple[str, float], ...]
"""Named blocks and their weights; which blocks they are, the adapter's family decides."""

PARTS = tuple(blocks.PARTS["sdxl"])
LARGEST = 100.0  # far beyond what pictures bear, and far below what number formats do not hold
WORDS = ("curve", "start", "end", "turn", "lbw", "box", "mask", *PARTS)


def split(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The plain arguments, and the `word=value` ones. Raises ConfigError for a word that comes twice."""
    plain, named = list[str](), dict[str, str]()
    for argument in arguments:
        word, equals, value = argument.partition("=")
        if not equals:
            plain.append(argument)
        elif word.strip() in named:
            raise ConfigError(f'"{word.strip()}=" is there twice.')
        else:
            named[word.strip()] = value.strip()
    return plain, named


def read(words: Mapping[str, str]) -> tuple[Change, Parts]:
    """The change that the words mean, and the named blocks. Raises ConfigError that names what is wrong."""
    for word in words:
        if word not in WORDS:
            near = get_close_matches(word, WORDS, n=1)
            hint = f'Did you mean "{near[0]}="?' if near else f"Known: {', '.join(WORDS)}."
            raise ConfigError(f'"{word[:40]}=" is no word for how a weight varies.', hint)
    parts = tuple((word, number(text)) for word, text in words.items() if word in PARTS)
    if parts and "lbw" in words:
        raise ConfigError(f'"lbw=" and "{parts[0][0]}=" both weight the blocks.', "Choose one of them.")
    change = Change(
        curve=_curve(words),
        turn=_turn(words["turn"]) if "turn" in words else (0, 1),
        blocks=_blocks(words["lbw"]) if "lbw" in words else (),
        box=_box(words["box"]) if "box" in words else None,
        mask=Path(words["mask"]) if "mask" in words else None,
    )
    return change, parts


def write(change: Change) -> dict[str, str]:
    """The words from which `read` makes an equal change; none for a change that is none."""
    told = _curve_words(change.curve)
    if change.turn != (0, 1):
        told["turn"] = f"{change.turn[0] + 1}/{change.turn[1]}"
    if change.blocks:
        told["lbw"] = ",".join(map(figure, change.blocks))
    if change.box is not None:
        told["box"] = ",".join(map(figure, change.box))
    if change.mask is not None:
        told["mask"] = str(change.mask)
    return told


def with_parts(change: Change, parts: Parts, file: Path) -> Change:
    """The same with the named blocks of the family that the adapter `file` is for.

    Raises AdapterError when the file cannot be read, ConfigError when its family has no such blocks.
    """
    if not parts:
        return change
    family = AdapterFile.open(file).detected.family
    return replace(change, blocks=blocks.by_parts(family, dict(parts)))


def number(text: str) -> float:
    """The number from -LARGEST to LARGEST that `text` is. Raises ConfigError when it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ConfigError(f'"{text[:40]}" is no number.', "Write one such as 0.8.")
    if abs(value) > LARGEST:
        raise ConfigError(f'"{text[:40]}" is no weight.', f"Weights go from {-LARGEST:g} to {LARGEST:g}.")
    return value


def figure(value: float) -> str:
    """The number in its shortest exact form without an exponent: 0.8, 1, -0.25."""
    return f"{Decimal(repr(float(value))).normalize():f}"


def curve(text: str) -> Curve:
    """The points of `0@0,1@0.5`, finite ones. Raises ConfigError when it is no such list."""
    points = parse_curve(text)
    for _, value in points:
        number(str(value))
    return points


def _curve(words: Mapping[str, str]) -> Curve:
    if not words.keys() & {"start", "end"}:
        return curve(words["curve"]) if "curve" in words else ()
    if "curve" in words:
        raise ConfigError('"curve=" and "start=" or "end=" both say when it counts.', "Choose one of them.")
    start, end = number(words.get("start", "0")), number(words.get("end", "1"))
    if not 0 <= start <= end <= 1:
        raise ConfigError(
            f"start={figure(start)} and end={figure(end)} are no part of the steps.",
            "Both are fractions from 0 to 1, and the end comes later.",
        )
    return window(start, end)


def _curve_words(points: Curve) -> dict[str, str]:
    on = [at for at, value in points if value == 1]
    if on and window(on[0], on[-1]) == points:
        ends = {"start": on[0], "end": on[-1]}
        told = {word: figure(at) for word, at in ends.items() if at != {"start": 0, "end": 1}[word]}
        return told or {"start": "0"}
    return {"curve": ",".join(f"{figure(value)}@{figure(at)}" for at, value in points)} if points else {}


def _turn(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,3})/([0-9]{1,3})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f'"{text[:40]}" is no turn.', "Write 1/2 and 2/2 for two that take turns.")
    return int(match[1]) - 1, int(match[2])


def _blocks(text: str) -> tuple[float, ...]:
    weights = blocks.parse(text)
    for weight in weights:
        number(str(weight))
    return weights


def _box(text: str) -> tuple[float, float, float, float]:
    sides = [number(part) for part in text.split(",")]
    if len(sides) != 4 or not (0 <= sides[0] < sides[2] <= 1 and 0 <= sides[1] < sides[3] <= 1):
        raise ConfigError(
            f'"{text[:40]}" is no box.',
            "Write left,top,right,bottom from 0 to 1: 0,0,0.5,1 is the left half.",
        )
    return sides[0], sides[1], sides[2], sides[3]
