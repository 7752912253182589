"""What an adapter file is, told without a base: for lists, cards and `sdlora inspect`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdlora.network import sidecar
from sdlora.network.codec import AdapterFile, finite
from sdlora.network.detect import BASES
from sdlora.network.metadata import tag_frequency
from sdlora.network.names import Name

_RANK = ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
_FACTORS = ("lora_", "hada_", "lokr_")  # one that is zero makes the whole product zero
_ADDED = ("diff", "diff_b", "w_norm", "b_norm", "weight", "bias_values", "oft_blocks", "oft_R.weight")


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """Facts of an adapter file.

    `ranks` and `alphas` are (lowest, highest) or None; `modules` counts layers by component; `words` are
    those of its textual inversions; `unread` are keys that no kind knows; `weight` is what its author
    recommends; `hash` the 12 hex digits that A1111 writes into pictures; `problem` says why the file cannot
    do anything, "" where it can.
    """

    path: Path
    title: str
    family: str
    family_title: str
    evidence: str
    kinds: tuple[str, ...]
    ranks: tuple[float, float] | None
    alphas: tuple[float, float] | None
    modules: Mapping[str, int]
    words: tuple[str, ...]
    unread: tuple[str, ...]
    triggers: tuple[str, ...]
    weight: float | None
    hash: str
    bytes: int
    metadata: Mapping[str, str]
    problem: str


def inspect(path: Path) -> AdapterInfo:
    """What `path` is. Raises AdapterError when it is no sound safetensors file."""
    file = AdapterFile.open(path)
    card = sidecar.read(path)
    kinds = {name: file.kinds_of(name) for name in file.groups}
    known = [name for name, found in kinds.items() if found]
    tensors = {name: file.tensors(name) for name in known}
    unknown = [key for name, found in kinds.items() if not found for key in file.groups[name].keys.values()]
    return AdapterInfo(
        path=path,
        title=file.metadata.get("modelspec.title") or file.metadata.get("ss_output_name") or path.stem,
        family=file.detected.family,
        family_title=file.detected.title,
        evidence=file.detected.evidence,
        kinds=tuple(sorted({kind.kind for found in kinds.values() for kind in found})),
        ranks=_spread(
            [float(t[s].shape[0]) for t in tensors.values() for s in _RANK if s in t and t[s].ndim]
        ),
        alphas=_spread(
            # of rotations it is a bound
            [t["alpha"].item() for t in tensors.values() if "alpha" in t and "oft_blocks" not in t]
        ),
        modules=_counted(known),
        words=tuple(file.embeddings),
        unread=(*file.foreign, *unknown),
        triggers=triggers(file),
        weight=_number(card.get("preferred weight")),
        hash=short_hash(file),
        bytes=path.stat().st_size,
        metadata=file.metadata,
        problem=_problem(tensors, file),
    )


def short_hash(file: AdapterFile) -> str:
    """The 12 hex digits that A1111 calls the file by: of its payload, as its header says if it does."""
    told = file.metadata.get("sshs_model_hash", "")
    return (told if len(told) == 64 else file.container.payload_hash())[:12]


def triggers(file: AdapterFile) -> tuple[str, ...]:
    """Words that call the adapter up: as the side-car or the file says, else what most of its captions share.

    A tag that stood once, or in under a quarter as many captions as the commonest, is no such word: where
    captions are sentences, each of them is a tag.
    """
    card = sidecar.read(file.path)
    for told in (card.get("activation text"), file.metadata.get("modelspec.trigger_phrase")):
        if isinstance(told, str) and told.strip():
            return tuple(word.strip() for word in told.split(",") if word.strip())
    counts = {tag: count for tag, count in tag_frequency(file.metadata).items() if tag}
    enough = max(2, max(counts.values(), default=0) / 4)
    return tuple(tag for tag, count in counts.items() if count >= enough)[:8]


def _problem(tensors: Mapping[Name, Mapping[str, Tensor]], file: AdapterFile) -> str:
    if not file.detected.carried:
        return f"No base here carries it: {BASES}"
    if not tensors and file.embeddings:
        return ""
    if not tensors:
        return "It holds no layer of a known kind."
    broken = [name for name, held in tensors.items() if not all(map(finite, held.values()))]
    if broken:
        return f"{len(broken)} of its {len(tensors)} layers hold values that are not finite."
    if all(_is_dead(held) for held in tensors.values()):
        return "It changes nothing: all its deltas are zero."
    return ""


def _is_dead(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a layer's tensors change nothing, whatever its weight; False where only the weight tells."""
    added = [tensor for suffix, tensor in tensors.items() if suffix in _ADDED]
    if any(bool(tensor.any()) for tensor in added):
        return False
    if factors := [tensor for suffix, tensor in tensors.items() if suffix.startswith(_FACTORS)]:
        factors += [tensors["alpha"]] if "alpha" in tensors else []
        return "dora_scale" not in tensors and not all(bool(factor.any()) for factor in factors)
    return bool(added) and "rescale" not in tensors


def _counted(names: list[Name]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name.component] = counts.get(name.component, 0) + 1
    return counts


def _spread(values: list[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value else None
