"""A stack of adapters baked into a model of its own, for tools that know no adapters.

A folder becomes a folder, in one file or many a network; a single file in the original layout becomes such a
file. Names, number formats and all that adapters do not touch stay as they were.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sdlora.base.keymaps import Renamed
from sdlora.base.original import LAYOUTS
from sdlora.contracts import Family
from sdlora.errors import AdapterError, StorageError
from sdlora.files import replacing, storage_error
from sdlora.network.container import Container
from sdlora.network.stack import Applied, Entry, stacked

State = Mapping[str, Tensor]
Change = Callable[[str, Tensor], Tensor]
"""From a tensor's name and value in a file to its new value, of the same shape."""


def bake(family: Family, entries: Sequence[Entry], *, output: Path) -> tuple[Applied, ...]:
    """`output` is a model like the family's own whose weights carry the stack; read back and compared.

    Exact for every kind up to the rounding of the file's number formats. Raises AdapterError when `output`
    exists or an entry changes while sampling, StorageError when it cannot be written.
    """
    if output.exists():
        raise AdapterError(f"{output} exists already.", "Choose another name.")
    single = family.source.is_file()
    if single != (output.suffix == ".safetensors"):
        form = "a .safetensors file" if single else "a folder"
        raise AdapterError(f"{family.source} is {form}, so {output} would be none.", f"Name {form}.")
    with stacked(family, entries) as reports:
        states = {
            component: {_plain(name): tensor.detach().cpu() for name, tensor in root.state_dict().items()}
            for component, root in family.components.items()
        }
        if single:
            with replacing(output) as temporary:
                _write(family.source, temporary, _in_original(family, states))
        else:
            with _partial(output) as folder:
                _copy(family.source, folder, states)
    return reports


def _copy(source: Path, folder: Path, states: Mapping[str, State]) -> None:
    """`folder` is the model folder `source`, its networks' weights those of `states`."""

    def left_out(place: str, names: list[str]) -> set[str]:
        weights = (*_PICKLED, ".safetensors") if Path(place) in (source, *networks) else _PICKLED
        return {name for name in names if name.endswith(weights)}

    networks = {source / component: state for component, state in states.items()}
    shutil.copytree(source, folder, ignore=left_out)
    for network, state in networks.items():
        files = sorted(network.glob("*.safetensors"))
        if not files:
            raise AdapterError(f"{network} holds no .safetensors file.", "Convert the model first.")
        for file in files:
            _write(file, folder / network.name / file.name, _in_diffusers(state))


def _write(source: Path, path: Path, change: Change) -> None:
    """`path` holds the tensors of `source`, changed; read back and compared."""
    held = Container.open(source)
    held.changed(path, change)
    written = Container.open(path)
    for name, entry in held.entries.items():
        old, new = held.read([name])[name], written.read([name])[name]
        if not torch.equal(new, change(name, old).to(entry.dtype).to(old.dtype)):
            raise StorageError(f"{path} reads back differently at {name}.", "Check the disk.")


def _in_diffusers(state: State) -> Change:
    def change(name: str, old: Tensor) -> Tensor:
        new = state.get(_plain(name))
        return old if new is None else new.to(old.dtype)

    return change


def _in_original(family: Family, states: Mapping[str, State]) -> Change:
    parts = [(part, states[name]) for name, part in LAYOUTS[family.name].items() if name in states]

    def change(name: str, old: Tensor) -> Tensor:
        for part, state in parts:
            if name.startswith(part.prefix):
                return _back(part.rename, name.removeprefix(part.prefix), old, state)
        return old

    return change


def _back(rename: Callable[[str, Tensor], Renamed], name: str, old: Tensor, state: State) -> Tensor:
    """The original tensor whose parts have the values of `state`; `old` where that has none of them.

    The places of the values are renamed as the values were, which tells where each of them came from.
    """
    places = dict(rename(name, torch.arange(old.numel(), dtype=torch.int32).reshape(old.shape)))
    if not places or not all(_plain(part) in state for part in places):
        return old
    new = torch.empty_like(old).flatten()
    for part, place in places.items():
        new[place.flatten()] = state[_plain(part)].to(old.dtype).flatten()
    return new.reshape(old.shape)


@contextmanager
def _partial(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` when all went well."""
    folder = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield folder
        folder.rename(output)
    except OSError as error:
        raise storage_error(output, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_PICKLED = (".bin", ".ckpt", ".msgpack")


def _plain(name: str) -> str:
    # transformers 5 dropped this level; files of models have it or not
    return name.removeprefix("text_model.")
