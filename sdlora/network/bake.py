"""A stack of adapters baked into a model of its own, for tools that know no adapters."""

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from sdlora.contracts import Family
from sdlora.errors import AdapterError
from sdlora.files import storage_error
from sdlora.network.container import Container
from sdlora.network.stack import Applied, Entry, stacked

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")


def bake(family: Family, entries: Sequence[Entry], *, output: Path) -> tuple[Applied, ...]:
    """`output` is a model folder like the family's own whose weights carry the stack; read back and compared.

    Exact for every kind up to the rounding of the family's number format. Raises AdapterError when the
    family was not loaded from a folder or `output` exists, StorageError when it cannot be written.
    """
    if not family.source.is_dir():
        raise AdapterError(
            f"{family.source} is no model folder.", "Only models in diffusers' layout are baked."
        )
    if output.exists():
        raise AdapterError(f"{output} exists already.", "Choose another name.")
    partial = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with stacked(family, entries) as reports:
            ignored = shutil.ignore_patterns("*.bin", "*.ckpt", "*.msgpack")
            shutil.copytree(family.source, partial, ignore=ignored)
            for component, root in family.components.items():
                _write(partial / component, root)
        partial.rename(output)
    except OSError as error:
        raise storage_error(output, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return reports


def _write(folder: Path, root: nn.Module) -> None:
    """The weights in `folder` are those of `root`, under the names and in the formats they had."""
    paths = [folder / name for name in _WEIGHTS if (folder / name).exists()]
    if len(paths) != 1:
        raise AdapterError(f"{folder} has not one file of weights.", "Models in several parts are not baked.")
    held = Container.open(paths[0])
    now = {_plain(name): tensor for name, tensor in root.state_dict().items()}
    old = held.read(held.entries)
    new = {
        name: now[_plain(name)].detach().cpu().to(tensor.dtype) if _plain(name) in now else tensor
        for name, tensor in old.items()
    }
    held.rewrite(new)
    written = Container.open(paths[0])
    again = written.read(written.entries)
    if not all(torch.equal(again[name], tensor) for name, tensor in new.items()):
        raise AdapterError(f"{paths[0]} reads back differently.", "Check the disk.")


def _plain(name: str) -> str:
    # transformers 5 dropped this level; files of models have it or not
    return name.removeprefix("text_model.")
