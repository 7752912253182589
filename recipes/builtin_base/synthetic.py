"""Icons made up on the spot: the recipe's data where there is no network, as in the tests."""

import json
import lzma
from pathlib import Path

from .icons import SETS

_SHAPES = {
    "circle": '<circle cx="16" cy="16" r="12" {}/>',
    "square": '<rect x="5" y="5" width="22" height="22" {}/>',
    "triangle": '<polygon points="16,3 29,28 3,28" {}/>',
    "cross": '<path d="M12 3h8v9h9v8h-9v9h-8v-9H3v-8h9z" {}/>',
    "red-apple": '<ellipse cx="16" cy="18" rx="11" ry="10" {}/><path d="M16 8l4-6" stroke="#420"/>',
}
_COLOURS = ("#e33", "#3a3", "#36c", "#c3c", "#f92", "#222", "#088")


def write(work: Path) -> None:
    """`work/icons.json.xz` holds five shapes in as many styles as there are sets."""
    work.mkdir(parents=True, exist_ok=True)
    icons = {
        name: {
            subject: '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
            + shape.format(f'fill="{colour}" stroke="#111" stroke-width="{i % 3}"')
            + "</svg>"
            for subject, shape in _SHAPES.items()
        }
        for i, (name, colour) in enumerate(zip(SETS, _COLOURS, strict=True))
    }
    (work / "icons.json.xz").write_bytes(lzma.compress(json.dumps(icons).encode()))
