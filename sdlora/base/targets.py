"""Which layers adapters usually sit on, as patterns of module paths in UNets and CLIP text encoders.

"attention+mlp" is what sd-scripts trains by default, "all+conv" what it trains with `conv_dim`, and the
input, output and embedding layers besides.
"""

from collections.abc import Mapping
from types import MappingProxyType

_ATTENTION = (r".*\.attn[12]\.to_(q|k|v|out\.0)", r".*\.self_attn\.(q|k|v|out)_proj")
_MLP = (r".*\.ff\.net\.(0\.proj|2)", r".*attentions\.\d+\.proj_(in|out)", r".*\.mlp\.fc[12]")
_LINEAR = (r".*\.time_emb_proj", r"(time|add)_embedding\.linear_[12]")
_CONV = (
    r".*resnets\.\d+\.conv(1|2|_shortcut)",
    r".*(downsamplers|upsamplers)\.0\.conv",
    r"conv_(in|out)",
)

PRESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": _ATTENTION,
        "attention+mlp": (*_ATTENTION, *_MLP),
        "all-linear": (*_ATTENTION, *_MLP, *_LINEAR),
        "all+conv": (*_ATTENTION, *_MLP, *_LINEAR, *_CONV),
    }
)
"""Preset -> regular expressions that a module's whole path must match."""
