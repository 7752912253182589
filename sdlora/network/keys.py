"""Keys of tensors in adapter files: what each writer calls the tensors of a layer.

Read are kohya's (`lora_unet_..._to_q.lora_down.weight`), LyCORIS', PEFT's (`unet....to_q.lora_A.weight`, with
`base_model.model.` and adapter names too), both of diffusers' older forms and ComfyUI's. A key becomes the
canonical name of its layer and the tensor's name in kohya's words. Written are kohya's and PEFT's.
"""

import re
from functools import cache
from typing import NamedTuple

from sdlora.adapters import KINDS
from sdlora.contracts import Layer
from sdlora.network.names import Name, canonical, to_sgm


class Key(NamedTuple):
    """The tensor `suffix` ("lora_down.weight", "alpha", ...) of the layer `layer`.

    `path` is the layer as the file spells it, after its prefix.
    """

    layer: Name
    suffix: str
    path: str


def parse(key: str) -> Key | None:
    """What the key names, or None where its form is not known."""
    key = re.sub(r"\.(lora_[AB])\.(?!weight$)\w+\.weight$", r".\1.weight", key)
    key = re.sub(r"\.lora_magnitude_vector(\.\w+)*$", ".dora_scale", key)
    key = re.sub(r"\.(ia3_l|oft_R)\.(?!weight$)\w+(\.weight)?$", r".\1\2", key)
    for ending, suffix in _endings():
        if key.endswith(ending):
            component, path = _split(key[: -len(ending)])
            return Key(canonical(component, path), suffix, path)
    return None


def embedding(key: str, file_name: str) -> tuple[str, str] | None:
    """Word and text encoder of the textual inversion that the key holds, None where it holds none.

    Bundled ones (`bundle_emb.WORD.clip_l`) bring their word; a file of its own is named by it.
    """
    match = _EMBEDDING.fullmatch(key)
    if match is None:
        return None
    return match["word"] or file_name, "text_encoder_2" if match["part"] == "clip_g" else "text_encoder"


def kohya(layer: Layer, suffix: str, *, prefix: str, sgm: bool) -> str:
    """kohya's key of a tensor; `sgm` writes the original code's block names, as SDXL files have."""
    flat = layer.path.replace(".", "_")
    if layer.component == "unet":
        return f"{prefix}_{to_sgm(flat) if sgm else flat}.{suffix}"
    return f"{prefix.removesuffix('_text_model')}_{_with_text_model(flat, '_')}.{suffix}"


def peft(layer: Layer, suffix: str) -> str:
    """PEFT's key of a tensor, as diffusers writes it."""
    if layer.component == "unet":
        return f"unet.{layer.path}.{_PEFT[suffix]}"
    # transformers, which reads this part there, finds a magnitude under its whole name alone
    ending = ".weight" if suffix == "dora_scale" else ""
    return f"{layer.component}.{_with_text_model(layer.path, '.')}.{_PEFT[suffix]}{ending}"


SGM_FAMILIES = ("sdxl",)
"""Families whose kohya files name the UNet's blocks as the original code does."""


def _with_text_model(path: str, separator: str) -> str:
    # transformers 5 dropped this level from CLIPTextModel; every reader of files expects it.
    outside = path.startswith("text_model") or path == "text_projection"
    return path if outside else f"text_model{separator}{path}"


_PEFT = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector",
}
PEFT_SUFFIXES = tuple(_PEFT)
_SPELLINGS = {
    ".lora_A.weight": "lora_down.weight",
    ".lora.down.weight": "lora_down.weight",
    ".lora_linear_layer.down.weight": "lora_down.weight",
    "_lora.down.weight": "lora_down.weight",
    ".lora_B.weight": "lora_up.weight",
    ".lora.up.weight": "lora_up.weight",
    ".lora_linear_layer.up.weight": "lora_up.weight",
    "_lora.up.weight": "lora_up.weight",
    "_lora.alpha": "alpha",
    ".lora.alpha": "alpha",
    ".lora_linear_layer.alpha": "alpha",
}
_PREFIXES = (
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("oft_unet_", "unet"),
    ("lycoris_unet_", "unet"),
    ("unet.", "unet"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
)


_EMBEDDING = re.compile(
    r"(?:bundle_emb\.(?P<word>[^.]{1,100})\.)?(?P<part>emb_params|clip_l|clip_g|string_to_param\.[^.]{1,100})"
)


@cache
def _endings() -> tuple[tuple[str, str], ...]:
    own = {f".{suffix}": suffix for _, kind in KINDS.items() for suffix in kind.suffixes}
    return tuple(sorted((own | _SPELLINGS).items(), key=lambda pair: -len(pair[0])))


def _split(stem: str) -> tuple[str, str]:
    stem = stem.removeprefix("base_model.model.").removeprefix("lycoris_")
    for prefix, component in _PREFIXES:
        if stem.startswith(prefix):
            return component, stem.removeprefix(prefix)
    text = re.match(r"(text_model[._])?(encoder[._]layers|embeddings|final_layer_norm)", stem)
    return ("text_encoder" if text else "unet"), stem
