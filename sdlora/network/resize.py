"""An adapter with less rank, and an adapter out of two models: the closest in both cases."""

from pathlib import Path

from torch import nn

from sdlora.adapters.lora import Lora
from sdlora.contracts import Family, Layer
from sdlora.errors import AdapterError
from sdlora.network.attach import module_of
from sdlora.network.codec import Format, save
from sdlora.network.loose import loras, shape_of
from sdlora.network.merge import OnLayer, Written, check_range, source
from sdlora.network.spectrum import of_lora, of_matrix, rank_for
from sdlora.network.targets import layers
from sdlora.runtime import one_thread


def resize(
    path: Path,
    *,
    output: Path,
    rank: int = 0,
    energy: float = 1.0,
    ratio: float = 0.0,
    dtype: str = "fp16",
    format: Format = "kohya",
    on_layer: OnLayer = lambda done, layers: None,
) -> Written:
    """`output` holds the adapter of `path` with fewer ranks, chosen layer by layer.

    A layer keeps at most `rank` (0: no limit), enough for the part `energy` of its squared norm, and only
    singular values above the largest / `ratio` (0: no limit). Raises AdapterError for anything but LoRA.
    """
    check_range("rank", rank, low=0)
    check_range("energy", energy, low=0, high=1)
    check_range("ratio", ratio, low=0)
    file = source(path, output)
    small: dict[Layer, Lora] = {}
    kept = total = 0.0
    held = loras(file, otherwise=f"Try: sdlora merge {path.stem} --method svd --rank 16 --base MODEL")
    with one_thread():
        for number, (layer, lora) in enumerate(held.items()):
            on_layer(number, len(held))
            spectrum = of_lora(lora)
            chosen = min(rank_for(spectrum.s, energy=energy, ratio=ratio), rank or lora.rank)
            small[layer] = spectrum.lora(chosen, shape_of(lora))
            kept, total = kept + spectrum.kept(chosen), total + spectrum.energy
    texts = {key: text for key, text in file.metadata.items() if key not in _OF_THE_FACTORS}
    save(output, small, family_name=file.detected.family, metadata=texts, dtype=dtype, format=format)
    return _written(output, small, kept, total)


def extract(
    tuned: Family,
    base: Family,
    *,
    output: Path,
    rank: int = 32,
    dtype: str = "fp16",
    format: Format = "kohya",
    on_layer: OnLayer = lambda done, layers: None,
) -> Written:
    """`output` is the LoRA of `rank` that makes `base` closest to `tuned`.

    Layers that do not differ are left out. `kept` counts linear layers and convolutions; biases and
    normalisations have no place in LoRA. Raises AdapterError when the models differ in layers or not at all.
    """
    if tuned.name != base.name:
        raise AdapterError(
            f"{tuned.title} and {base.title} are no model and its base.", "Choose two of one family."
        )
    check_range("rank", rank, low=1)
    made: dict[Layer, Lora] = {}
    kept = total = 0.0
    found = list(layers(base, (nn.Linear, nn.Conv2d)))
    for number, (layer, module) in enumerate(found):
        on_layer(number, len(found))
        old = module.get_parameter("weight").detach()
        new = module_of(tuned, layer).get_parameter("weight").detach()
        if new.shape != old.shape:
            raise AdapterError(f"{layer.path} has another size in the two models.", "Choose the true base.")
        difference = (new.to(old.device).float() - old.float()).flatten(1)
        if not bool(difference.any()):
            continue
        spectrum = of_matrix(difference, rank)
        made[layer] = spectrum.lora(rank, old.shape)
        kept, total = kept + spectrum.kept(rank), total + spectrum.energy
    if not made:
        raise AdapterError("The two models do not differ.", "Choose a fine-tuned model and its base.")
    save(output, made, family_name=base.name, dtype=dtype, format=format)
    return _written(output, made, kept, total)


# What `save` writes anew; the old values would be wrong.
_OF_THE_FACTORS = (
    *("ss_network_dim", "ss_network_alpha", "ss_network_module", "sshs_model_hash", "sshs_legacy_hash"),
    "lora_adapter_metadata",
)


def _written(path: Path, made: dict[Layer, Lora], kept: float, total: float) -> Written:
    ranks = [lora.rank for lora in made.values()]
    return Written(path, len(made), (min(ranks), max(ranks)), kept / total if total else 1.0)
