"""Tell how two adapters get along before you stack them.

  sdlora compare style.safetensors:0.8 character.safetensors --pictures similarity/

`cosine` says whether their changes pull the same way; `energy` is 1 where they do not meet, towards 2 where
they do the same twice (a burnt picture) and towards 0 where they cancel; `overlap` is what their leading
directions share. The pictures show the subspace similarity of LoRA (Hu et al. 2021), sec. 7.2, by layer.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.commands import entries
from sdlora.commands.written import draw
from sdlora.files import write_atomic
from sdlora.home import Home

if TYPE_CHECKING:
    from torch import Tensor

    from sdlora.contracts import Layer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, metavar="FILE[:WEIGHT[:TEXT_WEIGHT]]", help=f"the {name} adapter")
    parser.add_argument("--base", help="needed for kinds other than LoRA: the model they were made for")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write a heatmap and a CSV a layer")


def run(arguments: argparse.Namespace) -> int:
    from sdlora.network.measure import balanced, conflict, similarities

    home = Home.default()
    folders = home.adapter_folders
    pair = [entries.parse(text, folders=folders) for text in (arguments.first, arguments.second)]
    family = entries.load(arguments.base, home) if arguments.base else None
    found = conflict(*pair, family=family)
    print(f"cosine {found.cosine:+.3f}  energy {found.energy:.3f}  overlap {found.overlap:.3f}")
    for block, cosine in found.blocks.items():
        print(f"  {block:<6}{cosine:+.3f}")
    weights = "  ".join(f"{entry.file.stem}:{entry.weight:.2f}" for entry in balanced(pair, family=family))
    print(f"no stronger together than the stronger one alone: {weights}")
    if arguments.pictures:
        _draw(arguments.pictures, similarities(pair[0].file, pair[1].file, family=family))
        print(arguments.pictures)
    return 0


def _draw(folder: Path, found: "Mapping[Layer, Tensor]") -> None:
    from sdlora.network.picture import heatmap, table

    for layer, phi in found.items():
        name = f"{layer.component}.{layer.path}"
        draw(folder / f"{name}.png", heatmap(phi, title=name))
        header = ["i / j", *range(1, phi.shape[1] + 1)]
        rows = [[i, *row] for i, row in enumerate(phi.tolist(), start=1)]
        write_atomic(folder / f"{name}.csv", table(rows, header=[str(word) for word in header]))
