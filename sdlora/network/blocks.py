"""Blocks of a UNet as people weight them: lists of 12, 17, 20 or 26 numbers, and named parts.

The lists are those of "LoRA block weight" tools: BASE is the text encoders, IN, MID and OUT count the blocks
of the original code. Blocks that a list does not name keep the weight 1.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sdlora.contracts import Layer
from sdlora.errors import ConfigError
from sdlora.network.names import name_of, to_sgm

_IN = [f"IN{n:02}" for n in range(12)]
_OUT = [f"OUT{n:02}" for n in range(12)]
LISTS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        12: ("BASE", *(_IN[n] for n in (4, 5, 7, 8)), "MID", *_OUT[:6]),  # SDXL, blocks with attention
        17: ("BASE", *(_IN[n] for n in (1, 2, 4, 5, 7, 8)), "MID", *_OUT[3:]),  # SD 1.x and 2.x, likewise
        20: ("BASE", *_IN[:9], "MID", *_OUT[:9]),  # SDXL, all
        26: ("BASE", *_IN, "MID", *_OUT),  # SD 1.x and 2.x, all
    }
)
_SD = {
    "composition": ("IN07", "IN08", "MID", "OUT03"),
    "content": ("OUT04", "OUT05"),
    "style": ("OUT06", "OUT07", "OUT08"),
    "detail": ("IN01", "IN02", "IN04", "IN05", "OUT09", "OUT10", "OUT11"),
}
# B-LoRA (Frenkel et al. 2024): in SDXL the first up-block with attention holds content, the second style.
PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "sdxl": {
            "composition": ("IN07", "IN08", "MID"),
            "content": ("OUT00",),
            "style": ("OUT01",),
            "detail": ("IN04", "IN05", "OUT02", "OUT03", "OUT04", "OUT05"),
        },
        "sd1": _SD,
        "sd2": _SD,
    }
)
"""Family -> part that a person can name -> blocks. Rules of thumb, the SDXL ones from B-LoRA."""


def block_of(layer: Layer) -> str:
    """BASE, IN00 to IN11, MID, OUT00 to OUT11, or "" for what lies in no block."""
    if layer.component != "unet":
        return "BASE"
    name = to_sgm(name_of(layer).name)
    if match := re.match(r"(input|output)_blocks_(\d{1,3})_", name + "_"):
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02}"
    return "MID" if name.startswith("middle_block") else ""


def factor(weights: Sequence[float], layer: Layer) -> float:
    """What a list of 12, 17, 20 or 26 weights (or none) says of a layer."""
    if not weights:
        return 1.0
    return dict(zip(LISTS[len(weights)], weights, strict=True)).get(block_of(layer), 1.0)


def parse(text: str) -> tuple[float, ...]:
    """The numbers of a list such as `1,0,0,...`. Raises ConfigError unless there are 12, 17, 20 or 26."""
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f'"{text[:80]}" is no list of numbers.', "Separate block weights by commas."
        ) from None
    if len(weights) not in LISTS:
        raise ConfigError(
            f"{len(weights)} block weights were given.",
            "Give 12 or 20 for SDXL, 17 or 26 for SD 1.x and 2.x.",
        )
    return weights


def by_parts(family_name: str, parts: Mapping[str, float]) -> tuple[float, ...]:
    """The block weights that named parts (composition, content, style, detail) ask for; others stay 1.

    Raises ConfigError for a part or a family that is not known.
    """
    known = PARTS.get(family_name)
    if known is None or not parts.keys() <= known.keys():
        wrong = ", ".join(sorted(parts.keys() - (known or {}).keys()))
        raise ConfigError(
            f'"{wrong or family_name}" has no blocks of its own.',
            f"Known parts: {', '.join(PARTS['sdxl'])}; known families: {', '.join(PARTS)}.",
        )
    weights = {block: value for part, value in parts.items() for block in known[part]}
    names = LISTS[12 if family_name == "sdxl" else 17]
    return tuple(weights.get(name, 1.0) for name in names)
