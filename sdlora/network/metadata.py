"""Texts in an adapter file's header: sd-scripts' `ss_*`, Stability's `modelspec.*`, PEFT's configuration.

The names are conventions of the field; all values are texts.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdlora.contracts import Adapter, Layer
from sdlora.errors import AdapterError

_BASES = {
    "sd1": ("sd_v1", "stable-diffusion-v1/lora"),
    "sd2": ("sd_v2", "stable-diffusion-v2-512/lora"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
}
PEFT_KEY = "lora_adapter_metadata"


def standard(adapters: Mapping[Layer, Adapter], family_name: str, name: str) -> dict[str, str]:
    """The texts that every reader expects, as far as the adapters themselves tell them."""
    ranks, alphas = _spread(adapters, "lora_down.weight"), _spread(adapters, "alpha")
    plain = all(adapter.kind == "lora" for adapter in adapters.values())
    texts = {
        "ss_output_name": name,
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": _one(ranks),
        "ss_network_alpha": _one(alphas),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
    }
    if family_name in _BASES:
        version, architecture = _BASES[family_name]
        texts |= {
            "ss_base_model_version": version,
            "ss_v2": str(family_name == "sd2"),
            "modelspec.architecture": architecture,
        }
    return texts


def peft(adapters: Mapping[Layer, Adapter]) -> str:
    """PEFT's configuration of the adapters as diffusers stores it; ranks and alphas of every layer."""
    table: dict[str, object] = {}
    for component in dict.fromkeys(layer.component for layer in adapters):
        mine = {layer: a.tensors() for layer, a in adapters.items() if layer.component == component}
        ranks = {layer.path: int(t["lora_down.weight"].shape[0]) for layer, t in mine.items()}
        alphas = {layer.path: float(t["alpha"]) for layer, t in mine.items()}
        rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
        config = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
            "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
            "target_modules": sorted(ranks),
            "use_dora": any("dora_scale" in tensors for tensors in mine.values()),
        }
        table |= {f"{component}.{key}": value for key, value in config.items()}
    return json.dumps(table, sort_keys=True)


def peft_told(
    config: Mapping[str, Any],  # Any: parsed JSON
    path: str,
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, float]:
    """What PEFT's configuration (of one component) says of a layer beside its tensors (suffix -> shape).

    The alpha of LoRA, LoHa and LoKr, the side of (IA)3, the terms of OFT's series. Raises AdapterError for
    forms that are not read.
    """
    told: dict[str, float] = {}
    for suffix, key in _RANKED.items():
        if rank := next(iter(shapes.get(suffix, ())), 0):
            alpha = _alpha(config, path, rank, key=key)
            told |= {} if alpha is None else {"alpha": alpha}
            break
    whole = {"lokr_w1", "lokr_w2"} <= shapes.keys() and "alpha" not in shapes
    if whole and "alpha" in config and config["alpha"] != config.get("r"):
        raise AdapterError("PEFT's LoKr of whole matrices is only read where its alpha is its rank.")
    if "ia3_l" in shapes and isinstance(inner := config.get("feedforward_modules"), list):
        told["on_input"] = float(any(isinstance(name, str) and _suffix_of(path, name) for name in inner))
    if "oft_R.weight" in shapes:
        if config.get("coft"):
            raise AdapterError("PEFT's constrained OFT (coft) is not read.")
        if config.get("use_cayley_neumann") is False:
            told["cayley_terms"] = 0.0
        elif isinstance(terms := config.get("num_cayley_neumann_terms"), int):
            told["cayley_terms"] = float(terms)
    return told


# the tensor that has the rank first, and PEFT's name of its alpha
_RANKED = {
    "lora_down.weight": "lora_alpha",
    "hada_w1_b": "alpha",
    "lokr_w2_b": "alpha",
    "lokr_w1_b": "alpha",
}


def _alpha(
    config: Mapping[str, Any],  # Any: parsed JSON
    path: str,
    rank: int,
    *,
    key: str,
) -> float | None:
    alpha = config.get(key)
    patterns = config.get("alpha_pattern")
    if isinstance(patterns, dict):
        for pattern in patterns:
            if re.search(r"[*+?()\[\]{}|$]", pattern):
                raise AdapterError(
                    f"PEFT's alpha_pattern {pattern[:80]} is an expression, and only names are read."
                )
        alpha = next((a for pattern, a in patterns.items() if _suffix_of(path, pattern)), alpha)
    if not isinstance(alpha, (int, float)):
        return None
    return alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def peft_config(metadata: Mapping[str, str], component: str) -> dict[str, Any]:  # Any: parsed JSON
    """One component's part of PEFT's configuration in a header, {} where there is none."""
    try:
        table = json.loads(metadata.get(PEFT_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(table, dict):
        return {}
    return {
        key.removeprefix(f"{component}."): v for key, v in table.items() if key.startswith(f"{component}.")
    }


def tag_frequency(metadata: Mapping[str, str]) -> dict[str, int]:
    """How often each tag stood in the training captions, most frequent first; {} where it is not told."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return {}
    counts: dict[str, int] = {}
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def _suffix_of(path: str, pattern: str) -> bool:
    # PEFT takes patterns for regular expressions at the end of a path. Those of files are names, which are
    # compared as such: an expression from a stranger's file could run for ever.
    name = pattern.removeprefix("^").replace("\\.", ".")
    return path == name or path.endswith(f".{name}")


def _spread(adapters: Mapping[Layer, Adapter], suffix: str) -> list[float]:
    found = (adapter.tensors().get(suffix) for adapter in adapters.values())
    return [float(t) if t.ndim == 0 else float(t.shape[0]) for t in found if t is not None]


def _one(values: list[float]) -> str:
    if not values:
        return "None"
    return f"{values[0]:g}" if len(set(values)) == 1 else "Dynamic"
