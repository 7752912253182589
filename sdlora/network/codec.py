"""Adapter files: any writer's in, kohya's or PEFT's out.

`AdapterFile.open` checks a file and groups its keys by layer without reading a tensor; `resolve` makes the
adapters of a base. `save` writes, reads back and compares.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS
from sdlora.contracts import Adapter, Family, Layer
from sdlora.errors import AdapterError, StorageError
from sdlora.families import FAMILIES
from sdlora.files import replacing
from sdlora.network import container, keys
from sdlora.network.compound import Compound, together
from sdlora.network.container import Container
from sdlora.network.detect import BASES, Detected, detect
from sdlora.network.embeddings import Embedding, fits
from sdlora.network.metadata import PEFT_KEY, peft, peft_config, peft_told, standard
from sdlora.network.names import Name, index, name_of
from sdlora.runtime import one_thread

Format = Literal["kohya", "peft"]
_SINGLE = {"alpha", "on_input", "cayley_terms"}
_COUNTS = {"bias_indices", "bias_size"}  # whole numbers
_BESIDE = ("bias", "sparse")  # kinds that are found beside others
_ONE = torch.tensor(1.0)
_Stored = Mapping[Layer, Mapping[str, Tensor]]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Group:
    """The tensors of one layer in a file: suffix -> key. `path` is the layer as the file spells it."""

    keys: Mapping[str, str]
    path: str


@dataclass(frozen=True)
class Resolved:
    """What a file changes in a base: adapters by layer, words; keys that were used and that were not."""

    adapters: Mapping[Layer, Adapter]
    embeddings: Mapping[str, Embedding]
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]


@dataclass(frozen=True)
class AdapterFile:
    """A checked adapter file.

    `embeddings` are its textual inversions: word -> text encoder -> key; `foreign` keys of no known form.
    """

    container: Container
    groups: Mapping[Name, Group]
    embeddings: Mapping[str, Mapping[str, str]]
    foreign: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "AdapterFile":
        """The file's header, checked and understood. Raises AdapterError for a file that is unsound."""
        held = Container.open(path)
        groups: dict[Name, dict[str, str]] = {}
        paths: dict[Name, str] = {}
        embeddings: dict[str, dict[str, str]] = {}
        foreign = []
        for key in held.entries:
            if (inversion := keys.embedding(key, path.stem)) is not None:
                word, part = inversion
                _once(path, embeddings.setdefault(word, {}), part, key)
            elif (parsed := keys.parse(key)) is not None:
                _once(path, groups.setdefault(parsed.layer, {}), parsed.suffix, key)
                paths[parsed.layer] = parsed.path
            else:
                foreign.append(key)
        found = {name: Group(names, paths[name]) for name, names in groups.items()}
        return cls(held, found, embeddings, tuple(foreign))

    @property
    def path(self) -> Path:
        """The file."""
        return self.container.path

    @property
    def metadata(self) -> Mapping[str, str]:
        """The texts of its header."""
        return self.container.metadata

    @cached_property
    def detected(self) -> Detected:
        """The family that it was made for."""
        entries = self.container.entries
        shapes = {
            name: {suffix: entries[key].shape for suffix, key in group.keys.items()}
            for name, group in self.groups.items()
        }
        named = (pair for names in self.embeddings.values() for pair in names.items())
        words = {part: entries[key].shape[-1] for part, key in named if entries[key].shape}
        return detect(shapes, words, entries, self.metadata)

    def kinds_of(self, name: Name) -> tuple[type[Adapter], ...]:
        """The kinds that together read all tensors of a layer, () where there are none."""
        suffixes = frozenset(self.groups[name].keys)
        beside = tuple(
            kind for kind in map(KINDS.get, _BESIDE) if kind.recognises(suffixes & set(kind.suffixes))
        )
        rest = suffixes.difference(*(kind.suffixes for kind in beside))
        for _, kind in KINDS.items():
            if kind.recognises(suffixes):
                return (kind,)
            if beside and kind.recognises(rest):
                return (kind, *beside)
        return ()

    def tensors(self, name: Name) -> dict[str, Tensor]:
        """Suffix -> tensor of one layer, with the alpha that PEFT's configuration gives it."""
        group = self.groups[name]
        held = self.container.read(group.keys.values())
        tensors = {suffix: held[key] for suffix, key in group.keys.items()}
        for suffix in tensors.keys() & _SINGLE:
            if tensors[suffix].numel() != 1:
                raise AdapterError(f"{self.path}: {suffix} of {group.path[:200]} is no single number.")
            tensors[suffix] = tensors[suffix].float().reshape(())
        if any(tensors[s].is_floating_point() == (s in _COUNTS) for s in tensors):
            raise AdapterError(
                f"{self.path}: tensors of {group.path[:200]} are whole numbers where weights belong."
            )
        if "lora_magnitude_vector" in group.keys.get("dora_scale", ""):
            tensors["dora_scale"] = tensors["dora_scale"].flatten()  # of the outputs, also as [1,O,1,1]
        if {"lokr_w1", "lokr_w2"} <= tensors.keys() and not bool(tensors.get("alpha", _ONE).isfinite()):
            del tensors["alpha"]  # it plays no part; LyCORIS' 100,000 for whole matrices is too much for fp16
        config = peft_config(self.metadata, name.component) or self._folder_config
        told = peft_told(config, group.path, {suffix: tensor.shape for suffix, tensor in tensors.items()})
        return {suffix: torch.tensor(value) for suffix, value in told.items()} | tensors

    def adapter(self, name: Name, layer: nn.Module) -> Adapter:
        """The adapter of one layer.

        Raises AdapterError when no kind reads it, it does not fit, or it holds values that are not finite.
        """
        group = self.groups[name]
        kinds = self.kinds_of(name)
        if not kinds:
            raise AdapterError(
                f"{self.path}: {group.path} has the tensors {', '.join(sorted(group.keys))}, "
                "which belong to no known kind of adapter."
            )
        try:
            tensors = self.tensors(name)
            adapter = together(kinds, tensors, layer)
        except (RuntimeError, IndexError, ValueError):
            # torch's own complaints about shapes that no check of the kind foresaw
            raise AdapterError(
                f"{self.path}: the tensors of {group.path[:200]} do not fit together."
            ) from None
        except AdapterError as error:
            own = f"Choose the {self.detected.title} that it was made for; the built-in base is another."
            hint = error.hint or own
            raise AdapterError(f"{self.path}: {group.path} does not fit: {error.message}", hint) from None
        if not all(map(finite, tensors.values())):
            raise AdapterError(
                f"{self.path}: {group.path} holds values that are not finite, which spoil every picture.",
                "Its training went wrong, or the file was damaged: take an earlier one, or fetch it again.",
            )
        return adapter

    def resolve(self, family: Family) -> Resolved:
        """The adapters of the family's layers.

        Raises AdapterError when nothing matches, a shape does not fit, or the file is for another family.
        """
        if self.detected.excludes(family.name):
            raise self._foreign_to(family)
        layers = index(family)
        adapters: dict[Layer, Adapter] = {}
        matched: list[str] = []
        unmatched = list(self.foreign)
        for name, group in self.groups.items():
            if name in layers and self.kinds_of(name):
                layer = layers[name]
                module = family.components[layer.component].get_submodule(layer.path)
                adapters[layer] = self.adapter(name, module)
                matched.extend(group.keys.values())
            else:
                unmatched.extend(group.keys.values())
        words = {word: held for word in self.embeddings if fits(held := self._embedding(word), family)}
        for word, names in self.embeddings.items():
            (matched if word in words else unmatched).extend(names.values())
        if not adapters and not words:
            raise self._foreign_to(family)
        return Resolved(adapters, words, tuple(matched), tuple(unmatched))

    def _embedding(self, word: str) -> Embedding:
        names = self.embeddings[word]
        held = self.container.read(names.values())
        return {part: held[key] if held[key].ndim != 1 else held[key][None] for part, key in names.items()}

    @cached_property
    def _folder_config(self) -> dict[str, Any]:  # Any: parsed JSON
        # PEFT's own folders keep the configuration beside the tensors.
        try:
            config = json.loads((self.path.parent / "adapter_config.json").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}

    def _foreign_to(self, family: Family) -> AdapterError:
        if self.detected.excludes(family.name):
            return AdapterError(
                f"{self.path} was made for {self.detected.title} ({self.detected.evidence}); "
                f"the base is {family.title}.",
                f"Choose a base of {self.detected.title}, or another adapter."
                if self.detected.carried
                else f"No base here carries it: {BASES}",
            )
        first = next(iter(self.container.entries), "it is empty")
        if not self.embeddings and not any(map(self.kinds_of, self.groups)):
            return AdapterError(
                f"{self.path} holds no kind of adapter that is known ({first[:100]}).",
                "docs/file-formats.md lists what is read.",
            )
        return AdapterError(
            f"{self.path} changes nothing in {family.title}: none of its {len(self.container.entries)} "
            f"tensors names one of its layers ({first[:100]}).",
            "Choose the base that it was made for.",
        )


def save(
    path: Path,
    adapters: Mapping[Layer, Adapter],
    *,
    family_name: str,
    metadata: Mapping[str, str] | None = None,
    dtype: str = "fp16",
    format: Format = "kohya",
) -> AdapterFile:
    """`path` holds the adapters, whole, read back and found equal; equal arguments give equal bytes.

    `metadata` is added to what the adapters tell themselves, and wins. `dtype` is fp16, bf16 or fp32; alpha
    stays fp32. Raises AdapterError for values that `dtype` cannot hold, StorageError when writing fails.
    """
    if not adapters:
        raise AdapterError(f"{path} would hold no layer.", "Name target layers.")
    texts = standard(adapters, family_name, path.stem) | dict(metadata or {})
    with one_thread(), replacing(path) as temporary:
        stored = {layer: _stored(adapter, DTYPES[dtype], layer) for layer, adapter in adapters.items()}
        if format == "peft":
            stored = {layer: _flat_magnitude(tensors, layer) for layer, tensors in stored.items()}
            tensors = _peft_tensors(stored)
            texts[PEFT_KEY] = peft(adapters)
        else:
            tensors = _kohya_tensors(stored, family_name)
        container.write(temporary, tensors, texts)
        _verify(temporary, stored, {name_of(layer): _kinds(adapter) for layer, adapter in adapters.items()})
    return AdapterFile.open(path)


def _once(path: Path, names: dict[str, str], name: str, key: str) -> None:
    if name in names:
        raise AdapterError(f"{path} holds {name} twice: as {names[name]} and {key}.")
    names[name] = key


def _kohya_tensors(stored: _Stored, family_name: str) -> dict[str, Tensor]:
    prefixes = FAMILIES.get(family_name).file_prefixes
    sgm = family_name in keys.SGM_FAMILIES
    return {
        keys.kohya(layer, suffix, prefix=prefixes[layer.component], sgm=sgm): tensor
        for layer, tensors in stored.items()
        for suffix, tensor in tensors.items()
    }


def _peft_tensors(stored: _Stored) -> dict[str, Tensor]:
    suffixes = {suffix for tensors in stored.values() for suffix in tensors}
    if unknown := suffixes - {*keys.PEFT_SUFFIXES, "alpha"}:
        raise AdapterError(
            f"PEFT's form has no place for {', '.join(sorted(unknown))}.", "Save it in kohya's form."
        )
    found = {}
    for layer, tensors in stored.items():
        wide = tensors["lora_down.weight"].ndim == 4
        for suffix, tensor in tensors.items():
            if suffix != "alpha":
                # PEFT keeps magnitudes as [O], of convolutions as [1,O,1,1]
                shaped = tensor.reshape(1, -1, 1, 1) if wide and suffix == "dora_scale" else tensor
                found[keys.peft(layer, suffix)] = shaped
    return found


def _flat_magnitude(tensors: dict[str, Tensor], layer: Layer) -> dict[str, Tensor]:
    magnitude = tensors.get("dora_scale")
    if magnitude is None:
        return tensors
    if magnitude.numel() != magnitude.shape[0]:
        raise AdapterError(
            f"PEFT's form has no place for the magnitudes of {layer.path}, which are those of inputs.",
            "Save it in kohya's form.",
        )
    return {**tensors, "dora_scale": magnitude.flatten()}


def _stored(adapter: Adapter, dtype: torch.dtype, layer: Layer) -> dict[str, Tensor]:
    tensors = {}
    for suffix, tensor in adapter.tensors().items():
        kept = tensor.dtype if suffix in _COUNTS else torch.float32
        tensors[suffix] = tensor.detach().cpu().to(kept if suffix in {*_SINGLE, *_COUNTS} else dtype)
        if not finite(tensors[suffix]):
            raise AdapterError(
                f"The adapter of {layer.component}.{layer.path} has values that are not finite or too large "
                f"for {dtype}.",
                "Train again with a lower learning rate, or save as fp32.",
            )
    return tensors


def finite(tensor: Tensor) -> bool:
    """Whether all values are finite: told from the smallest and the largest, which is quickest."""
    return not tensor.numel() or all(math.isfinite(end) for end in torch.aminmax(tensor))


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether both hold the same bits, which are quicker to compare than numbers of 16 bits."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[first.itemsize]
    return first.dtype == second.dtype and torch.equal(first.view(bits), second.view(bits))


def _kinds(adapter: Adapter) -> tuple[type[Adapter], ...]:
    return tuple(map(type, adapter.parts)) if isinstance(adapter, Compound) else (type(adapter),)


def _verify(path: Path, stored: _Stored, kinds: Mapping[Name, tuple[type[Adapter], ...]]) -> None:
    """Equal tensors that are read by the same kinds are equal deltas."""
    file = AdapterFile.open(path)
    expected = {name_of(layer): tensors for layer, tensors in stored.items()}
    if file.foreign or set(file.groups) != set(expected):
        raise StorageError(f"{path} does not hold the layers that were written.", "Check the disk.")
    for name, tensors in expected.items():
        found = file.tensors(name)
        same = found.keys() == tensors.keys() and all(_same(found[s], tensors[s]) for s in found)
        if not same or file.kinds_of(name) != kinds[name]:
            raise StorageError(f"{path} reads back differently at {name.name}.", "Check the disk.")
