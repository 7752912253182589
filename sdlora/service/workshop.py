"""What the worker does with adapter files: makes one of several, smaller ones and whole models, and measures.

A kind of request is a function of its message and of `at(done, total)`, which tells how far it is and raises
Cancelled once the person has thought better of it. No file is there then.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor

from sdlora.contracts import Family
from sdlora.errors import AdapterError, SdloraError
from sdlora.files import replacing, write_atomic
from sdlora.generation.request import entry_tag
from sdlora.loading import load_family
from sdlora.network import measure, picture, rounding
from sdlora.network.bake import bake
from sdlora.network.change import Change
from sdlora.network.codec import AdapterFile
from sdlora.network.loose import plain
from sdlora.network.merge import Written, merge
from sdlora.network.profile import profile
from sdlora.network.resize import extract, resize
from sdlora.network.stack import Entry
from sdlora.service.process import Done, Message

At = Callable[[int, int], None]
ENOUGH = 0.95  # part of a layer's energy


def work(message: Message, at: At) -> Done:
    """The message's request is done. Raises SdloraError in words when it cannot be."""
    at(0, 1)
    return KINDS[message["kind"]](message, at)


def _merge(message: Message, at: At) -> Done:
    base = message["base"]
    return _written(
        merge(
            _entries(message),
            output=Path(message["output"]),
            method=message["method"],
            rank=message["rank"],
            density=message["density"],
            format=message["format"],
            family=_family(base, message) if base else None,
            on_layer=at,
        )
    )


def _resize(message: Message, at: At) -> Done:
    return _written(
        resize(
            Path(message["file"]),
            output=Path(message["output"]),
            rank=message["rank"],
            energy=message["energy"],
            format=message["format"],
            on_layer=at,
        )
    )


def _extract(message: Message, at: At) -> Done:
    tuned, base = _family(message["tuned"], message), _family(message["base"], message)
    output, rank = Path(message["output"]), message["rank"]
    return _written(extract(tuned, base, output=output, rank=rank, format=message["format"], on_layer=at))


def _bake(message: Message, at: At) -> Done:
    family, output = _family(message["base"], message), Path(message["output"])
    at(0, 1)  # the last moment to cancel
    entries = _entries(message)
    bake(family, entries, output=output)
    return Done([output], {"rounding": list(rounding.told(family, entries))})


def _compare(message: Message, at: At) -> Done:
    """How each pair of the stack gets along, and the weights at which nothing burns."""
    entries = [_steady(entry) for entry in _entries(message)]
    family = _fitting(entries, message)
    pairs = list(itertools.combinations(range(len(entries)), 2))
    found: list[dict[str, object]] = []
    files: list[Path] = []
    for number, (i, j) in enumerate(pairs):
        at(number, len(pairs))
        one, two = entries[i], entries[j]
        # numbered, because files of other folders may have the same names
        name = f"{i + 1} {one.file.stem} and {j + 1} {two.file.stem}"
        found.append(
            {"first": i, "second": j, "pictures": name, **asdict(measure.conflict(one, two, family=family))}
        )
        phi = _mean(list(measure.similarities(one.file, two.file, family=family).values()))
        if phi is not None:
            files += _pictured(phi, name, folder=Path(message["pictures"]))
    balanced = measure.balanced(entries, family=family)
    scale = next((b.weight / e.weight for b, e in zip(balanced, entries, strict=True) if e.weight), 1.0)
    told = {
        "names": [entry.file.stem for entry in entries],
        "pairs": found,
        "balanced": [(entry.weight, entry.text_weight) for entry in balanced],
        "scale": scale,
        "base": family.source.stem if family else "",
    }
    return Done(files, told)


def _measure(message: Message, at: At) -> Done:
    """Where an adapter acts, and how many directions it needs."""
    file, folder = Path(message["file"]), Path(message["pictures"])
    found = profile(file, family=_fitting([Entry(file)], message), on_layer=at)
    names = [f"{file.stem} by block", f"{file.stem} by direction"]
    files = [
        _saved(picture.bars(found.norms, title="How much it changes each block"), names[0], folder=folder),
        _table(list(found.norms.items()), names[0], header=["block", "norm"], folder=folder),
    ]
    if mean := found.mean:
        image = picture.curve(mean, title="Strength of its directions, mean of all layers")
        rows = list(enumerate(mean, start=1))
        files += [
            _saved(image, names[1], folder=folder),
            _table(rows, names[1], header=["direction", "strength"], folder=folder),
        ]
    told = {"directions": len(mean), "energy": ENOUGH, "held": found.held}
    return Done(files, told | {"needed": found.needed(ENOUGH) if mean else None})


KINDS: Mapping[str, Callable[[Message, At], Done]] = MappingProxyType(
    {
        "merge": _merge,
        "resize": _resize,
        "extract": _extract,
        "bake": _bake,
        "compare": _compare,
        "measure": _measure,
    }
)


def _entries(message: Message) -> list[Entry]:
    return [entry_tag(told, name="file").entry(Path(told["file"])) for told in message["stack"]]


def _steady(entry: Entry) -> Entry:
    """The entry as it is where it counts fully: a measure knows no steps and places."""
    return replace(entry, change=Change(blocks=entry.change.blocks))


def _family(model: str, message: Message) -> Family:
    # on the processor and in full precision: this is arithmetic on weights
    roots = [Path(folder) for folder in message["models"]]
    return load_family(model, device="cpu", dtype=torch.float32, roots=roots)


def _fitting(entries: Sequence[Entry], message: Message) -> Family | None:
    """The first of the message's bases that the entries fit, None where LoRA needs none."""
    files = [AdapterFile.open(entry.file) for entry in entries]
    if all(plain(file) for file in files):
        return None
    reason = AdapterError(
        "Adapters of other kinds than LoRA are measured on their base, and there is none of their family.",
        "Put one into models/Stable-diffusion.",
    )
    for base in message["bases"]:
        try:
            family = _family(base, message)
            for file in files:
                file.resolve(family)
            return family
        except SdloraError as error:
            reason = AdapterError(error.message, error.hint)
    raise reason


def _written(written: Written) -> Done:
    return Done([written.path], {"ranks": written.ranks, "kept": written.kept})


def _mean(matrices: Sequence[Tensor]) -> Tensor | None:
    """The mean of the part that all of them have."""
    if not matrices:
        return None
    rows, columns = (min(matrix.shape[side] for matrix in matrices) for side in (0, 1))
    return torch.stack([matrix[:rows, :columns] for matrix in matrices]).mean(dim=0)


def _pictured(phi: Tensor, name: str, *, folder: Path) -> list[Path]:
    """A heatmap and its numbers."""
    cell = max(4, min(24, 320 // max(phi.shape)))
    image = picture.heatmap(phi, title=name, cell=cell)
    rows = [[i, *row] for i, row in enumerate(phi.tolist(), start=1)]
    header = ["i / j", *map(str, range(1, phi.shape[1] + 1))]
    return [_saved(image, name, folder=folder), _table(rows, name, header=header, folder=folder)]


def _saved(image: Image.Image, name: str, *, folder: Path) -> Path:
    path = folder / f"{name}.png"
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
    return path


def _table(rows: Sequence[Sequence[object]], name: str, *, header: Sequence[str], folder: Path) -> Path:
    path = folder / f"{name}.csv"
    write_atomic(path, picture.table(rows, header=header))
    return path
