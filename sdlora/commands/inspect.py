"""Tell what an adapter file holds: family, kind, rank, modules, trigger words, and what cannot be read."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from sdlora.commands import entries
from sdlora.home import Home

if TYPE_CHECKING:
    from sdlora.network.info import AdapterInfo

SHOWN_KEYS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a .safetensors file, or a name in models/Lora")
    parser.add_argument("--metadata", action="store_true", help="print what the file says of itself, too")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from sdlora.network.info import inspect

    info = inspect(entries.find(arguments.file, Home.default().adapter_folders))
    print(
        json.dumps(dataclasses.asdict(info), default=str, ensure_ascii=False)
        if arguments.json
        else told(info)
    )
    if arguments.metadata and not arguments.json:
        print("\n".join(f"  {key}: {value}" for key, value in sorted(info.metadata.items())))
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


def _span(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return "-"
    low, high = pair
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
