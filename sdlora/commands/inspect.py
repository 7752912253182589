"""Tell what an adapter file holds: family, kind, rank, modules, trigger words, and what cannot be read."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.commands import entries
from sdlora.commands.written import draw
from sdlora.files import write_atomic
from sdlora.home import Home

if TYPE_CHECKING:
    from sdlora.network.info import AdapterInfo

SHOWN_KEYS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a .safetensors file, or a name in models/Lora")
    parser.add_argument("--metadata", action="store_true", help="print what the file says of itself, too")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="write norms by block and the singular values of every layer, as PNG and CSV",
    )
    parser.add_argument("--base", help="for pictures of kinds other than LoRA: the model they were made for")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from sdlora.network.info import inspect

    file = entries.find(arguments.file, Home.default().adapter_folders)
    info = inspect(file)
    print(
        json.dumps(dataclasses.asdict(info), default=str, ensure_ascii=False)
        if arguments.json
        else told(info)
    )
    if arguments.metadata and not arguments.json:
        print("\n".join(f"  {key}: {value}" for key, value in sorted(info.metadata.items())))
    if arguments.pictures:
        _draw(file, arguments.pictures, base=arguments.base)
    return 0


def told(info: "AdapterInfo") -> str:
    """The facts as lines of text."""
    lines = [
        f"{info.title}  ({info.path.name}, {info.bytes / 1e6:.1f} MB, {info.hash})",
        f"base       {info.family_title} ({info.evidence})",
        f"kind       {', '.join(info.kinds) or ('embedding' if info.words else 'none that sdlora knows')}",
        f"rank       {_span(info.ranks)}   alpha {_span(info.alphas)}",
        "modules    " + (", ".join(f"{count} {name}" for name, count in info.modules.items()) or "none"),
        f"trigger    {', '.join(info.triggers) or 'none named'}",
    ]
    if info.words:
        lines.append(f"words      {', '.join(info.words)} (textual inversion: write them in the prompt)")
    if info.weight is not None:
        lines.append(f"weight     {info.weight:g} is recommended")
    if info.unread:
        more = f" and {len(info.unread) - SHOWN_KEYS} more" if len(info.unread) > SHOWN_KEYS else ""
        lines.append(f"not read   {len(info.unread)} keys: {', '.join(info.unread[:SHOWN_KEYS])}{more}")
    if info.problem:
        lines.append(f"problem    {info.problem}")
    return "\n".join(lines)


def _draw(file: Path, folder: Path, *, base: str | None) -> None:
    """Where the adapter acts, and how many directions each of its layers needs, as pictures and tables."""
    from sdlora.network import picture
    from sdlora.network.profile import profile

    found = profile(file, family=entries.load(base, Home.default()) if base else None)
    draw(folder / "norms.png", picture.bars(found.norms, title="Norm of the change by block"))
    write_atomic(folder / "norms.csv", picture.table(list(found.norms.items()), header=["block", "norm"]))
    if not found.spectra:
        note = "No spectra: changes of normalisations and biases are one direction each."
        print(note, file=sys.stderr)
        return
    draw(folder / "spectra.png", picture.curve(found.mean, title="Singular values, mean of all layers"))
    rows = [[f"{layer.component}.{layer.path}", *s.tolist()] for layer, s in found.spectra.items()]
    header = ["layer", *map(str, range(1, len(found.mean) + 1))]
    write_atomic(folder / "spectra.csv", picture.table(rows, header=header))


def _span(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return "-"
    low, high = pair
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
