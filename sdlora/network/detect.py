"""Which base an adapter was made for, told from the layers it holds and their shapes.

Metadata is what somebody wrote down; the shapes are what will be multiplied. Metadata decides only between
families whose layers in the file are the same.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sdlora.network.names import Name

Shapes = Mapping[Name, Mapping[str, tuple[int, ...]]]

TITLES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "": "an unknown model",
}
CARRIED = ("sd1", "sd2", "sdxl")
"""The families that there are bases of here."""
BASES = "sdlora's are Stable Diffusion 1.x, 2.x and XL."
_BY_CROSS_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_BY_TEXT_WIDTH = {768: "sd1", 1024: "sd2"}
_OURS = re.compile(
    r"(down|up)_blocks_|mid_block_|(time|add)_embedding_|conv_(in|out|norm_out)"
    r"|encoder_layers_|embeddings_|final_layer_norm|text_projection"
)


@dataclass(frozen=True)
class Detected:
    """A family's name ("" if none is recognised) and the evidence in words.

    `certain` when layers and shapes show it; `twin` is a family that shows the same.
    """

    family: str
    evidence: str
    certain: bool = True
    twin: str = ""

    @property
    def carried(self) -> bool:
        """Whether there can be a base for it here: also where it does not show what it was made for."""
        return self.family in CARRIED or not self.certain

    @property
    def title(self) -> str:
        """The family in words."""
        return TITLES[self.family]

    def excludes(self, family: str) -> bool:
        """Whether the adapter cannot be one for `family`."""
        return self.certain and family in TITLES and family not in (self.family, self.twin)


def detect(
    shapes: Shapes, words: Mapping[str, int], raw_keys: Iterable[str], metadata: Mapping[str, str]
) -> Detected:
    """The family that the layers' names and shapes show, or the widths of the words' vectors by text encoder,
    else what the metadata claims.
    """
    layers = _foreign(raw_keys) or _by_width(shapes) or _by_layout(shapes)
    claimed = _by_metadata(metadata)
    return layers or _by_words(words) or _by_strange_names(shapes, claimed) or claimed


def _foreign(raw_keys: Iterable[str]) -> Detected | None:
    for key in raw_keys:
        if re.search(r"double_blocks|single_transformer_blocks|single_blocks", key):
            return Detected("flux", f"its layers are Flux's ({key[:80]})")
        if "joint_blocks" in key:
            return Detected("sd3", f"its layers are Stable Diffusion 3's ({key[:80]})")
    return None


def _by_width(shapes: Shapes) -> Detected | None:
    for (component, name), tensors in shapes.items():
        width = _inputs(tensors)
        if component == "unet" and re.search(r"attn2_to_[kv]$", name) and width in _BY_CROSS_WIDTH:
            return Detected(_BY_CROSS_WIDTH[width], f"its cross-attention reads {width} features")
    if any(component == "text_encoder_2" for component, _ in shapes):
        return Detected("sdxl", "it adapts a second text encoder")
    for (component, name), tensors in shapes.items():
        width = _inputs(tensors)
        if component == "text_encoder" and name.endswith("self_attn_q_proj") and width == 1024:
            return Detected("sd2", "its text encoder is 1024 wide")
    return None


def _by_layout(shapes: Shapes) -> Detected | None:
    names = [name for component, name in shapes if component == "unet"]
    if any(re.search(r"_transformer_blocks_[1-9]", name) for name in names):
        return Detected("sdxl", "its attention has several transformer blocks")
    if any(re.match(r"down_blocks_(0_attentions|3)|up_blocks_3", name) for name in names):
        return Detected("sd1", "its blocks lie as in Stable Diffusion 1.x and 2.x", twin="sd2")
    return None


def _by_strange_names(shapes: Shapes, claimed: Detected) -> Detected | None:
    """What the metadata claims, unless a family of here, when no layer has a name of Stable Diffusion's."""
    if not shapes or any(_OURS.match(name) for _, name in shapes):
        return None
    family = "" if claimed.family in CARRIED else claimed.family
    name = next(iter(shapes)).name
    return Detected(family, f"none of its layers is one of Stable Diffusion's ({name[:80]})")


def _by_words(words: Mapping[str, int]) -> Detected | None:
    if "text_encoder_2" in words:
        return Detected("sdxl", "its words have vectors for two text encoders")
    family = _BY_TEXT_WIDTH.get(words.get("text_encoder", 0))
    # the first text encoder of SDXL is as wide as that of Stable Diffusion 1.x
    return (
        Detected(family, f"its vectors are {words['text_encoder']} wide", certain=False) if family else None
    )


def _by_metadata(metadata: Mapping[str, str]) -> Detected:
    claims = (
        f"{metadata.get('ss_base_model_version', '')} {metadata.get('modelspec.architecture', '')}".lower()
    )
    for mark, family in (
        ("xl", "sdxl"), ("sd_v1", "sd1"), ("diffusion-v1", "sd1"), ("sd_v2", "sd2"), ("diffusion-v2", "sd2"),
        ("flux", "flux"), ("sd3", "sd3"), ("diffusion-3", "sd3"),
    ):  # fmt: skip
        if mark in claims:
            return Detected(family, f'its metadata says "{claims.strip()[:80]}"', certain=False)
    return Detected("", "neither its layers nor its metadata tell", certain=False)


def _inputs(tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Input features of the layer that the tensors change, 0 where they do not show it."""
    for suffix in ("lora_down.weight", "hada_w1_b", "diff"):
        if len(shape := tensors.get(suffix, ())) >= 2:
            return shape[1]
    first = tensors.get("lokr_w1") or tensors.get("lokr_w1_b")
    second = tensors.get("lokr_w2") or tensors.get("lokr_w2_b")
    return first[-1] * second[1] if first and second and len(second) >= 2 else 0
