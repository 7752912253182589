"""The page docs/file-formats.md: what is read, and how exactly, measured on a tiny base.

python -m tests.network.formats     writes it
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from sdlora.adapters import KINDS, SPECS
from sdlora.contracts import Adapter, Layer
from sdlora.errors import AdapterError
from sdlora.layers import bias_of
from sdlora.network import keys
from sdlora.network.codec import AdapterFile
from sdlora.network.container import write
from sdlora.network.names import to_sgm
from tests.adapters import lycoris_modules as lycoris
from tests.adapters.test_kinds import LAYERS
from tests.network import oracle

PAGE = Path(__file__).resolve().parents[2] / "docs" / "file-formats.md"
EXACT = 1e-5

KIND_ROWS: Mapping[str, tuple[str, dict[str, object], str]] = {
    "LoRA, LoCon": ("lora", {}, "`up @ down * alpha / r`"),
    "LoCon with a Tucker core": ("lora", {"tucker": True}, "`up, mid, down` contracted `* alpha / r`"),
    "DoRA": ("dora", {}, "`m * (W + D) / norm(W + D) - W`; m by output, or by input as in older files"),
    "LoHa": ("loha", {}, "`(w1_a @ w1_b) * (w2_a @ w2_b) * alpha / r`, Tucker too"),
    "LoKr": ("lokr", {}, "`kron(w1, w2) * alpha / r`, both factored or whole, Tucker too"),
    "GLoRA": ("glora", {}, "`(W @ a1 @ a2 + b1 @ b2) * alpha / r`, both numberings"),
    "(IA)3": ("ia3", {}, "`W * w`, by output or input"),
    "OFT": ("oft", {}, "`R.T @ W - W`, R by Cayley's transform, bounded by `alpha * O`; `rescale` too"),
    "BOFT": ("oft", {"butterfly": True, "block": 4}, "butterfly stages of such rotations"),
    "full": ("full", {}, "`diff`, and `diff_b` for the bias"),
    "norm": ("norm", {"targets": "norm"}, "`w_norm` and `b_norm` of normalisation layers"),
    "bias (BitFit)": ("bias", {"targets": "to_out"}, "`diff_b` alone or beside any other kind"),
}
READ_ONLY: Mapping[str, tuple[str, str]] = {
    "PEFT's (IA)3": (
        "`ia3_l`, which is 1 + w and rescales the bias of outputs too",
        "PEFT's merged weights and biases",
    ),
    "PEFT's OFT": (
        "`oft_R`, rotations of what a layer reads, by Cayley's transform or its series, shared or not",
        "PEFT's merged weights",
    ),
    "LyCORIS' first OFT": ("`oft_diag`, the rotation itself", "its formula"),
    "what LyCORIS' extraction leaves over": (
        "`bias_indices`, `bias_values`, `bias_size` beside LoRA: single values of the weight's change",
        "the matrix that they were taken from",
    ),
    "textual inversion, in an adapter or alone": (
        "`bundle_emb.WORD.` and `emb_params`, `clip_l`, `clip_g` or `string_to_param.*`; without "
        "`bundle_emb` the file's name is the word",
        "the tokens that its vectors were copied from",
    ),
}
AT_ODDS: tuple[tuple[str, str, str], ...] = (
    ("loha, lokr", "`alpha / r`; its merge takes that twice", "`alpha / r`"),
    ("glora with rs_lora", "`alpha / sqrt(r)`, and saves alpha", "`alpha / r`, as by LyCORIS itself"),
    (
        "lokr of whole matrices with rs_lora",
        "`sqrt(r)`, and saves no r",
        "1, as by LyCORIS itself",
    ),
    ("dylora", "the first b blocks times `alpha / b`, b at random", "`up @ down * alpha / r` of all blocks"),
    ("bypass_mode with dora_wd", "without the magnitudes, and saves them", "with them, as by its merge"),
    (
        "bypass_mode of ia3, diag-oft, boft",
        "the bias turned or rescaled too",
        "the weight alone, as by its merge",
    ),
)
FORMS: Mapping[str, Callable[[Layer, str], str]] = {
    "kohya": lambda layer, s: keys.kohya(layer, s, prefix=_prefix(layer), sgm=False),
    "kohya, sgm blocks": lambda layer, s: keys.kohya(layer, s, prefix=_prefix(layer), sgm=True),
    "LyCORIS prefix": lambda layer, s: f"lycoris_{layer.path.replace('.', '_')}.{s}",
    "diffusers, dotted": lambda layer, s: f"{layer.component}.{layer.path}.{s}",
    "ComfyUI": lambda layer, s: f"diffusion_model.{_dotted_sgm(layer.path)}.{s}",
    "PEFT": lambda layer, s: f"base_model.model.{layer.path}.{_PEFT.get(s, s)}",
}
_PEFT = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector",
}
SPELLINGS = (
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha",
    "lycoris_mid_block_attentions_0_proj_in.lokr_w1",
    "oft_unet_mid_block_attentions_0_proj_in.oft_blocks",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
    "unet.mid_block.attentions.0.proj_in.lora.down.weight",
    "unet.mid_block.attentions.0.proj_in.lora_A.weight",
    "unet.mid_block.attentions.0.proj_in.lora_magnitude_vector",
    "base_model.model.mid_block.attentions.0.proj_in.lora_B.default.weight",
    "diffusion_model.middle_block.1.proj_in.lora_A.weight",
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "lora_te2_text_projection.lora_down.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
    "text_encoder_2.encoder.layers.0.self_attn.to_q_lora.down.weight",
    "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc2.lora_B.weight",
)


def document() -> str:
    """The whole page."""
    family = oracle.tiny_sdxl()
    lines = [
        _HEAD,
        f"| kind | delta of a weight W | {' | '.join(FORMS)} |",
        "| --- | --- |" + " --- |" * len(FORMS),
    ]
    for title, (kind, options, formula) in KIND_ROWS.items():
        adapters = made(family, kind, options)
        cells = [verdict(family, adapters, form) for form in FORMS.values()]
        lines.append(f"| {title} | {formula} | {' | '.join(cells)} |")
    lines += [_LYCORIS, "| algorithm | options | deltas |", "| --- | --- | --- |"]
    for algorithm, (_, options) in lycoris.WRITTEN.items():
        named = ", ".join(option for option in options if option) or "-"
        lines.append(f"| {algorithm} | {named} | {agreement(algorithm)} |")
    lines += [_AT_ODDS, "| where | it trains | its file is read |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in AT_ODDS]
    lines += [_KEYS, "| key | layer | tensor |", "| --- | --- | --- |"]
    for spelling in SPELLINGS:
        key = keys.parse(spelling)
        assert key is not None
        lines.append(f"| `{spelling}` | `{key.layer.component}` `{key.layer.name}` | `{key.suffix}` |")
    lines += [_READ_ONLY, "| form | tensors | compared with |", "| --- | --- | --- |"]
    lines += [f"| {form} | {tensors} | {oracle} |" for form, (tensors, oracle) in READ_ONLY.items()]
    return "\n".join(lines) + "\n" + _TAIL


def made(family: oracle.Bare, kind: str, options: dict[str, object]) -> dict[Layer, Adapter]:
    """An adapter that changes something on every layer of the mid block that the kind can change."""
    spec, adapters = SPECS.get(kind)(**options), {}
    draw = torch.Generator().manual_seed(0)
    for path, module in family.components["unet"].named_modules():
        wanted = path.startswith("mid_block") and isinstance(module, KINDS.get(kind).layer_types)
        if wanted and (kind != "bias" or getattr(module, "bias", None) is not None):
            adapter = KINDS.get(kind).create(module, spec, torch.Generator().manual_seed(1))
            with torch.no_grad():
                for parameter in adapter.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
            adapters[Layer("unet", path)] = adapter
    return adapters


def agreement(algorithm: str) -> str:
    """ "exact" when what is read of LyCORIS' files is what it trained, on every layer with every option."""
    kind, options = lycoris.WRITTEN[algorithm]
    worst = max(
        lycoris.distance(lycoris.made(kind, layer, option), layer, torch.ones(shape))
        for layer, shape in LAYERS.values()
        for option in options.values()
        if lycoris.fits(algorithm, layer)
    )
    return _told(worst)


def verdict(family: oracle.Bare, adapters: Mapping[Layer, Adapter], form: Callable[[Layer, str], str]) -> str:
    """ "exact" when every layer's deltas come back within 1e-5, else the distance or "refused"."""
    tensors = {form(layer, s): t for layer, a in adapters.items() for s, t in a.tensors().items()}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x.safetensors", tensors, {})
        try:
            resolved = AdapterFile.open(Path(folder) / "x.safetensors").resolve(family)
        except AdapterError:
            return "refused"
    if resolved.adapters.keys() != adapters.keys():
        return "refused"
    worst = max(
        _distance(adapter, resolved.adapters[layer], family.components["unet"].get_submodule(layer.path))
        for layer, adapter in adapters.items()
    )
    return _told(worst)


def _told(distance: float) -> str:
    return "exact" if distance < EXACT else f"{distance:.0e}"


def _distance(first: Adapter, second: Adapter, module: nn.Module) -> float:
    weight = module.get_parameter("weight")
    pairs = [
        (first.delta(weight), second.delta(weight)),
        (first.bias_delta(bias_of(module)), second.bias_delta(bias_of(module))),
    ]
    return max(
        float((a - b).detach().norm() / a.detach().norm().clamp(min=1e-30))
        for a, b in pairs
        if a is not None and b is not None
    )


def _prefix(layer: Layer) -> str:
    return {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[layer.component]


def _dotted_sgm(path: str) -> str:
    # only the block's own name is dotted anew; what follows reads the same with dots or underscores
    return to_sgm(path.replace(".", "_"))


_READ_ONLY = """
PEFT's rank and alpha (of LoRA, LoHa and LoKr) come from the header's `lora_adapter_metadata` or an
`adapter_config.json` beside the file; its `rank_pattern` and `alpha_pattern` are compared as
names; expressions are refused.

## Read only
"""
_HEAD = """# File formats

Generated by `python -m tests.network.formats`; a test measures it anew and compares.

Every cell is measured: a file of that kind in that spelling is read on a small SDXL, and the change of every
layer compared with the one it was made from. *exact* is a relative distance below 1e-5; *refused* is one
sentence that names the key, never a partial load. The deltas themselves are compared with LyCORIS' and peft's
in `tests/adapters/test_oracles.py`, and with sd-scripts' own files in `tests/network/test_fixtures.py`.

## Kinds
"""
_LYCORIS = """
Tensors may be fp32, fp16, bf16 or either 8-bit float. Rank and alpha may differ from layer to layer; an alpha
that is missing is the rank. A linear layer's tensors fit a 1x1 convolution and the other way round.

## What LyCORIS writes

Modules of LyCORIS with random values, read as they save themselves; compared is the change with which their
own forward computes. `tests/network/test_lycoris.py` does so with whole networks and all number formats.
"""
_AT_ODDS = """
Where LyCORIS' forward, merge and files do not agree, by hand:
"""
_KEYS = """
## Keys

One file may mix all spellings. A few of them, and what they name:
"""
_TAIL = """
PEFT's configuration tells the side of (IA)3 where shapes do not, and the terms of OFT's series (5 where it is
silent). A word of a textual inversion stands in prompts as it is, whatever its case; its vectors go to all
text encoders of the base, or it is listed as unmatched. `tests/network/test_peft.py` and
`test_embeddings.py` hold this.

## What is approximate

- **Weights other than 1** of kinds that do not add (DoRA, OFT, BOFT): the weight goes straight from the base
  to the adapted layer. DoRA is so by definition; tools that turn OFT by part of its angle differ.
- **Merging other kinds than LoRA** into one file keeps the energy that `merge` states.
- **Text encoders** take no part in curves, turns and regions: they run before the first step.

## What is refused

Pickles, web pages and damaged files under a safetensors name; files for another base family, which is told
from layers and shapes; a tensor that is there twice; files none of whose keys names a layer of the base;
PEFT's constrained OFT (`coft`), and its LoKr of whole matrices whose alpha is not its rank; LyCORIS' T-LoRA,
whose file lacks the start that its change is counted from.
Keys of no known form are counted and listed, never passed over.

## What is written

kohya's keys with `.alpha` in fp32 (SDXL in sgm block names), or PEFT's with `lora_adapter_metadata`; `ss_*`,
`modelspec.*` (a small thumbnail too), `sshs_model_hash` and `sshs_legacy_hash` in the header.
Tensors and texts are sorted, so that equal adapters are equal files.
Every file is read back and compared before it takes its name. Beside a run's
adapter lie A1111's `NAME.json` and `NAME.preview.png`; those of others are never replaced.
"""

if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(document(), encoding="utf-8")
