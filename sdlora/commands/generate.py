"""Draw pictures with any number of adapters.

  sdlora generate "a cat on a red background" --adapter ink:0.8 --adapter mira:1:0.5 --output cat.png

An adapter is a file or a name in models/Lora, then its weight, then its weight in the text encoder;
`<lora:ink:0.8>` in the prompt means the same. With --count, pictures are numbered: cat-1.png, cat-2.png.

What varies follows the weights; the prompt takes the same words (masks apart): <lora:ink:0.8:start=0.2>

  --adapter ink:0@0,1@0.5            weight@fraction of the steps: from 0 to 1 in the first half
  --adapter ink:0.8:start=0.2:end=0.8    on from a fifth of the steps to four fifths
  --adapter ink:turn=1/2 --adapter mira:turn=2/2    they take turns, a step each
  --adapter ink:box=0,0,0.5,1        left,top,right,bottom: in the left half of the picture
  --adapter ink:mask=where.png       where the mask is white
  --adapter ink:style=1:content=0    weights of named blocks: composition, content, style, detail
  --adapter ink:lbw=1,0,...          or of all: 12 or 20 for SDXL, 17 or 26 for SD 1.x and 2.x
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.commands import entries
from sdlora.commands.progress import Teller
from sdlora.commands.written import require_place
from sdlora.errors import ConfigError
from sdlora.home import Home

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdlora.generation.request import GenerateRequest
    from sdlora.network.codec import Resolved
    from sdlora.network.stack import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw")
    adapter_help = "an adapter; may be given several times"
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT[:TEXT_WEIGHT]][:WORD=VALUE]...",
        help=adapter_help,
    )
    parser.add_argument("--output", type=Path, default=Path("picture.png"), help="the PNG file that is made")
    parser.add_argument("--size", metavar="WIDTHxHEIGHT", help="in pixels; the base's own when not given")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--json", action="store_true", help="one JSON line a picture")
    _add_request(parser)


def run(arguments: argparse.Namespace) -> int:
    from sdlora.generation import png, sampler
    from sdlora.loading import load_family
    from sdlora.network.stack import Patch
    from sdlora.residence import settle_in
    from sdlora.runtime import Runtime, lease, memory_told

    home = Home.default()
    request = _request(arguments, home)
    for index in range(request.count):
        require_place(_numbered(arguments.output, index, request.count), ".png")
    machine = Runtime.choose(arguments.device, arguments.precision)
    teller = Teller(silent=arguments.json)
    with lease(machine.device, "`sdlora generate`"), memory_told("Choose a smaller size or fewer pictures."):
        family = load_family(
            request.base,
            device=machine.device,
            dtype=machine.dtype,
            prediction=request.prediction,
            zero_terminal=request.zero_terminal,
            roots=home.model_folders,
            on_bytes=teller.download,
            waiting=True,
        )
        settle_in(family, machine.free_bytes())
        patch = Patch(family)
        for entry in request.stack:
            for line in _applied(entry, patch.cache.resolve(entry.file)):
                teller.say(line)

        def on_step(step: int, steps: int, preview: "Image") -> None:
            teller.move(f"step {step} of {steps}", last=step == steps)

        for index, picture in enumerate(sampler.finished(family, request, on_step=on_step, patch=patch)):
            path = _numbered(arguments.output, index, request.count)
            own = png.picture_request(request, index)
            png.save_png(path, picture, own, model_hash=family.hash)
            teller.clear()
            print(json.dumps({"file": str(path), "seed": own.seed}) if arguments.json else path)
    return 0


def _applied(entry: "Entry", resolved: "Resolved") -> Iterator[str]:
    """What an adapter changes, teaches, and holds without use, and what is wrong with its values."""
    from sdlora.network.info import inspect

    name = entry.file.name
    layers = Counter(layer.component for layer in resolved.adapters)
    words = [f'the word "{word}"' for word in resolved.embeddings]
    changes = ", ".join([*(f"{count} layers of {part}" for part, count in layers.items()), *words])
    yield f"{name}: {changes}"
    if problem := inspect(entry.file).problem:
        yield f"{name}: {problem}"
    if left := resolved.unmatched:
        count = len(left) + len(resolved.matched)
        yield f"{name}: {len(left)} of its {count} keys name nothing in the base, such as {left[0][:100]}"


def _add_request(parser: argparse.ArgumentParser) -> None:
    """The flags of a request, from its option tree; `prompt` and the adapters have words of their own."""
    from sdlora.generation.request import GenerateRequest
    from sdlora.options import allowed, walk

    for leaf in walk(GenerateRequest):
        if leaf.path != "prompt":
            flag = f"--{leaf.path.replace('_', '-')}"
            text = f"{leaf.meta.help} ({allowed(leaf)}; {leaf.default!r})".replace("%", "%%")
            parser.add_argument(
                flag, dest=f"request.{leaf.path}", metavar=leaf.type.__name__.upper(), help=text
            )


def _request(arguments: argparse.Namespace, home: Home) -> "GenerateRequest":
    from sdlora.generation.request import GenerateRequest

    given = {name.removeprefix("request."): value for name, value in vars(arguments).items() if "." in name}
    values: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if arguments.size:
        values["width"], values["height"] = _size(arguments.size)
    folders = home.adapter_folders
    stack = tuple(entries.parse(text, folders=folders) for text in arguments.adapter)
    return GenerateRequest.of({**values, "prompt": arguments.prompt}, stack).with_prompt_adapters(folders)


def _size(text: str) -> tuple[str, str]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise ConfigError(f'--size "{text}" is no size.', "Write it as 512x768.")
    return width, height


def _numbered(path: Path, index: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{index + 1}{path.suffix}")
