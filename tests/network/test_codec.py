"""Adapter files of every writer give the deltas that their tensors mean, on every layer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters import SPECS
from sdlora.adapters.lora import LoraSpec
from sdlora.contracts import Layer
from sdlora.errors import AdapterError, SdloraError
from sdlora.network.attach import create
from sdlora.network.codec import AdapterFile, Resolved, save
from sdlora.network.names import canonical, dotted, index, to_sgm
from tests.conftest import TinyModel
from tests.network import oracle
from tests.network.oracle import Bare, Factors, alphas, deltas, factors, flat, pairs, processor
from tests.network.test_attach import awake

KOHYA = (".lora_down.weight", ".lora_up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")


@pytest.fixture(scope="module")
def sdxl() -> Bare:
    return oracle.tiny_sdxl()


def written(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> AdapterFile:
    """The file that holds the tensors."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return AdapterFile.open(path)


def compare(resolved: Resolved, expected: dict[Layer, Tensor], *, rtol: float = 1e-5) -> None:
    """Every layer's delta is the expected one and there is no other layer."""
    assert set(resolved.adapters) == set(expected)
    for layer, delta in expected.items():
        got = resolved.adapters[layer].delta(torch.empty(delta.shape))
        assert (got - delta).norm() <= rtol * delta.norm(), layer


def of(family: Bare, component: str) -> Factors:
    return factors(family.components[component], oracle.attention)


def only_attention(path: str) -> bool:
    return ".attn" in path


TEXT: dict[str, Callable[[Factors], dict[str, Tensor]]] = {
    "kohya": lambda f: pairs(f, flat("lora_te_text_model_"), *KOHYA) | alphas(f, flat("lora_te_text_model_")),
    "kohya te1": lambda f: (
        pairs(f, flat("lora_te1_text_model_"), *KOHYA) | alphas(f, flat("lora_te1_text_model_"))
    ),
    "without text_model": lambda f: pairs(f, flat("lora_te_"), *KOHYA) | alphas(f, flat("lora_te_")),
    "comfy": lambda f: (
        pairs(f, lambda p: f"text_encoders.clip_l.transformer.text_model.{p}", *PEFT)
        | alphas(f, lambda p: f"text_encoders.clip_l.transformer.text_model.{p}")
    ),
}
UNET: dict[str, Callable[[Factors], dict[str, Tensor]]] = {
    "kohya": lambda f: pairs(f, flat("lora_unet_"), *KOHYA) | alphas(f, flat("lora_unet_")),
    "kohya sgm": lambda f: pairs(f, sgm_stem, *KOHYA) | alphas(f, sgm_stem),
    "lycoris": lambda f: pairs(f, flat("lycoris_"), *KOHYA) | alphas(f, flat("lycoris_")),
    "peft with alpha": lambda f: pairs(f, lambda p: f"unet.{p}", *PEFT) | alphas(f, lambda p: f"unet.{p}"),
    "comfy diffusers": lambda f: (
        pairs(f, lambda p: f"diffusion_model.{p}", *PEFT) | alphas(f, lambda p: f"diffusion_model.{p}")
    ),
}
UNSCALED: dict[str, Callable[[Factors], dict[str, Tensor]]] = {
    "peft": lambda f: pairs(f, lambda p: f"unet.{p}", *PEFT),
    "peft bare": lambda f: pairs(f, lambda p: p, *PEFT),
    "peft base_model": lambda f: pairs(f, lambda p: f"base_model.model.{p}", *PEFT),
    "peft adapter name": lambda f: pairs(
        f, lambda p: f"base_model.model.unet.{p}", ".lora_A.default.weight", ".lora_B.default.weight"
    ),
    "diffusers": lambda f: pairs(f, lambda p: f"unet.{p}", ".lora.down.weight", ".lora.up.weight"),
    "kohya without alpha": lambda f: pairs(f, flat("lora_unet_"), *KOHYA),
}
PROCESSORS = {"with unet": "unet.", "without": ""}


def sgm_stem(path: str) -> str:
    return "lora_unet_" + to_sgm(path.replace(".", "_"))


@pytest.mark.parametrize("form", UNET)
def test_unet_keys_with_alpha(form: str, sdxl: Bare, tmp_path: Path) -> None:
    held = of(sdxl, "unet")
    resolved = written(UNET[form](held), tmp_path / "x").resolve(sdxl)
    compare(resolved, deltas("unet", held))
    assert len(resolved.matched) == 3 * len(held) and not resolved.unmatched


@pytest.mark.parametrize("form", UNSCALED)
def test_unet_keys_without_alpha_have_scale_one(form: str, sdxl: Bare, tmp_path: Path) -> None:
    held = of(sdxl, "unet")
    compare(written(UNSCALED[form](held), tmp_path / "x").resolve(sdxl), deltas("unet", held, scaled=False))


@pytest.mark.parametrize("form", PROCESSORS)
def test_keys_of_attention_processors(form: str, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    held = factors(tiny_sd1.family.components["unet"], only_attention)
    tensors = pairs(held, processor(PROCESSORS[form]), "_lora.down.weight", "_lora.up.weight")
    compare(written(tensors, tmp_path / "x").resolve(tiny_sd1.family), deltas("unet", held, scaled=False))


@pytest.mark.parametrize("form", TEXT)
def test_text_encoder_keys(form: str, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    held = factors(tiny_sd1.family.components["text_encoder"], oracle.attention)
    resolved = written(TEXT[form](held), tmp_path / "x").resolve(tiny_sd1.family)
    compare(resolved, deltas("text_encoder", held))


@pytest.mark.parametrize(
    "names",
    [(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), PEFT],
)
@pytest.mark.parametrize("level", ["text_model.", ""])
def test_dotted_text_encoder_keys(
    names: tuple[str, str], level: str, tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    held = factors(tiny_sd1.family.components["text_encoder"], oracle.attention)
    tensors = pairs(held, lambda p: f"text_encoder.{level}{p}", *names)
    resolved = written(tensors, tmp_path / "x").resolve(tiny_sd1.family)
    compare(resolved, deltas("text_encoder", held, scaled=False))


def test_both_text_encoders_of_sdxl(sdxl: Bare, tmp_path: Path) -> None:
    first, second = of(sdxl, "text_encoder"), of(sdxl, "text_encoder_2")
    one, two = flat("lora_te1_text_model_"), flat("lora_te2_")
    tensors = (
        pairs(first, one, *KOHYA) | alphas(first, one) | pairs(second, two, *KOHYA) | alphas(second, two)
    )
    resolved = written(tensors, tmp_path / "x").resolve(sdxl)
    compare(resolved, deltas("text_encoder", first) | deltas("text_encoder_2", second))


def test_all_families_of_keys_mixed_in_one_file(sdxl: Bare, tmp_path: Path) -> None:
    held = of(sdxl, "unet")
    forms = list(UNET.values())
    tensors: dict[str, Tensor] = {}
    for number, (path, parts) in enumerate(held.items()):
        tensors |= forms[number % len(forms)]({path: parts})
    compare(written(tensors, tmp_path / "x").resolve(sdxl), deltas("unet", held))


def test_alpha_missing_on_some_layers_is_scale_one_there(sdxl: Bare, tmp_path: Path) -> None:
    held = of(sdxl, "unet")
    bare = list(held)[::3]
    tensors = {
        k: t
        for k, t in UNET["kohya"](held).items()
        if k not in alphas({p: held[p] for p in bare}, flat("lora_unet_"))
    }
    without = {path: held[path] for path in bare}
    expected = deltas("unet", held) | deltas("unet", without, scaled=False)
    compare(written(tensors, tmp_path / "x").resolve(sdxl), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_number_formats(dtype: torch.dtype, sdxl: Bare, tmp_path: Path) -> None:
    held = {p: (d.to(dtype).float(), u.to(dtype).float(), a) for p, (d, u, a) in of(sdxl, "unet").items()}
    tensors = {key: tensor.to(dtype) for key, tensor in UNET["kohya"](held).items()}
    compare(written(tensors, tmp_path / "x").resolve(sdxl), deltas("unet", held))


def test_convolutions_of_all_forms(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    held = factors(tiny_sd1.family.components["unet"], lambda path: True)
    assert any(down.shape[2:] == (3, 3) for down, _, _ in held.values())
    compare(written(UNET["kohya sgm"](held), tmp_path / "x").resolve(tiny_sd1.family), deltas("unet", held))


def test_pefts_configuration_gives_ranks_and_alphas(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    held = factors(tiny_sd1.family.components["unet"], only_attention)
    patterns = {path: alpha for path, (_, _, alpha) in held.items() if ".attn2." in path}
    held = {p: (d, u, patterns.get(p, 5.0)) for p, (d, u, _) in held.items()}
    config = {"unet.lora_alpha": 5.0, "unet.alpha_pattern": patterns, "unet.r": 2}
    path = tmp_path / "x"
    file = written(UNSCALED["peft"](held), path, {"lora_adapter_metadata": json.dumps(config)})
    compare(file.resolve(tiny_sd1.family), deltas("unet", held))


def test_a_configuration_beside_a_peft_file_counts(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    held = factors(tiny_sd1.family.components["unet"], only_attention)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3, "use_rslora": True}))
    file = written(UNSCALED["peft base_model"](held), tmp_path / "adapter_model.safetensors")
    # rank-stabilised LoRA (Kalajdzievski 2023): alpha / sqrt(rank)
    stabilised = {p: (d, u, 3 * d.shape[0] ** 0.5) for p, (d, u, _) in held.items()}
    compare(file.resolve(tiny_sd1.family), deltas("unet", stabilised))


def test_unknown_keys_are_told(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    held = factors(tiny_sd1.family.components["unet"], only_attention)
    strange = {"lora_unet_mid_block_nowhere.lora_down.weight": torch.zeros(1, 2), "something": torch.zeros(1)}
    resolved = written(UNET["kohya"](held) | strange, tmp_path / "x").resolve(tiny_sd1.family)
    assert set(resolved.unmatched) == set(strange)


def test_an_adapter_that_matches_nothing_is_refused(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    file = written({"lora_unet_mid_block_nowhere.lora_down.weight": torch.zeros(1, 2)}, tmp_path / "x")
    with pytest.raises(AdapterError, match="changes nothing in Stable Diffusion 1.x"):
        file.resolve(tiny_sd1.family)


def test_another_familys_adapter_is_refused_naming_both(
    tiny_sd1: TinyModel, sdxl: Bare, tmp_path: Path
) -> None:
    for_xl = written(UNET["kohya sgm"](of(sdxl, "unet")), tmp_path / "xl")
    with pytest.raises(AdapterError, match="made for Stable Diffusion XL .* base is Stable Diffusion 1.x"):
        for_xl.resolve(tiny_sd1.family)
    held = factors(tiny_sd1.family.components["unet"], only_attention)
    with pytest.raises(AdapterError, match="made for Stable Diffusion 1.x .* base is Stable Diffusion XL"):
        written(UNET["kohya"](held), tmp_path / "1").resolve(sdxl)


def test_another_width_of_the_same_family_is_refused(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.ones(2, 768), f"{key}.lora_up.weight": torch.ones(320, 2)}
    with pytest.raises(AdapterError, match="does not fit"):
        written(tensors, tmp_path / "x").resolve(tiny_sd1.family)


def test_a_tensor_held_twice_is_refused(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_conv_in.lora_down.weight": torch.ones(2, 4),
        "lora_unet_input_blocks_0_0.lora_down.weight": torch.ones(2, 4),
    }
    with pytest.raises(AdapterError, match="twice"):
        written(tensors, tmp_path / "x")


@pytest.mark.parametrize("format", ["kohya", "peft"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_what_is_saved_comes_back(format: str, dtype: str, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    network = awake(create(tiny_sd1.family, LoraSpec(rank=3, alpha=5.0), seed=0))
    path = tmp_path / "x.safetensors"
    save(path, network.adapters, family_name="sd1", dtype=dtype, format=format)  # type: ignore[arg-type]  # both are Formats
    resolved = AdapterFile.open(path).resolve(tiny_sd1.family)
    bits = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 8e-3}
    expected = {
        layer: adapter.delta(
            torch.empty(tiny_sd1.family.components[layer.component].get_submodule(layer.path).weight.shape)
        ).detach()
        for layer, adapter in network.adapters.items()
    }
    compare(resolved, expected, rtol=bits[dtype])
    assert not resolved.unmatched


@pytest.mark.parametrize("kind", SPECS.names())
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_every_kind_is_saved_in_every_number_format(
    kind: str, dtype: str, tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    network = awake(create(tiny_sd1.family, SPECS.get(kind)(), seed=0))
    save(tmp_path / "x.safetensors", network.adapters, family_name="sd1", dtype=dtype)
    resolved = AdapterFile.open(tmp_path / "x.safetensors").resolve(tiny_sd1.family)
    assert resolved.adapters.keys() == network.adapters.keys() and not resolved.unmatched
    close = {"fp32": 0.0, "fp16": 1e-3, "bf16": 8e-3}[dtype]
    for layer, adapter in network.adapters.items():
        found = resolved.adapters[layer].tensors()
        for suffix, tensor in adapter.tensors().items():
            torch.testing.assert_close(found[suffix].float(), tensor.float(), rtol=close, atol=close)


def test_saved_keys_are_kohyas(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    network = create(tiny_sd1.family, LoraSpec(targets="attn2.to_k$,layers.0.self_attn.q_proj"), seed=0)
    file = save(tmp_path / "x.safetensors", network.adapters, family_name="sd1")
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    for stem in (key, text):
        assert {f"{stem}.{s}" for s in ("lora_down.weight", "lora_up.weight", "alpha")} <= set(
            file.container.entries
        )


def test_saving_twice_gives_equal_bytes(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    network = awake(create(tiny_sd1.family, LoraSpec(rank=3), seed=0))
    for name in ("a", "b"):
        save(
            tmp_path / name / "x.safetensors", network.adapters, family_name="sd1", metadata={"ss_seed": "1"}
        )
    assert (tmp_path / "a/x.safetensors").read_bytes() == (tmp_path / "b/x.safetensors").read_bytes()


def test_values_that_do_not_fit_the_format_are_refused_and_the_old_file_stays(
    tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    network = awake(create(tiny_sd1.family, LoraSpec(rank=3), seed=0))
    path = tmp_path / "x.safetensors"
    save(path, network.adapters, family_name="sd1")
    before = path.read_bytes()
    with torch.no_grad():
        next(iter(network.parameters())).fill_(1e6)
    with pytest.raises(SdloraError, match="not finite or too large"):
        save(path, network.adapters, family_name="sd1")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["lora_down.weight", "alpha"])
def test_values_that_are_not_finite_are_refused(suffix: str, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    unet = tiny_sd1.family.components["unet"]
    inputs = len(unet.get_parameter("mid_block.attentions.0.proj_in.weight"))
    tensors = {
        "lora_down.weight": torch.ones(2, inputs, 1, 1),
        "lora_up.weight": torch.ones(inputs, 2, 1, 1),
        "alpha": torch.tensor([1.0]),
    }
    tensors[suffix].view(-1)[0] = torch.nan
    save_file({f"{name}.{s}": tensor for s, tensor in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match="not finite"):
        AdapterFile.open(tmp_path / "x.safetensors").resolve(tiny_sd1.family)


def test_names_of_blocks_translate_both_ways() -> None:
    for family in (oracle.sdxl(), oracle.sd15()):
        unet = family.components["unet"]
        for path, module in unet.named_modules():
            if list(module.named_parameters(recurse=False)):
                name = path.replace(".", "_")
                assert canonical("unet", to_sgm(name)).name == name


@pytest.mark.parametrize("family", [oracle.sd15, oracle.sdxl])
def test_a_canonical_name_tells_the_modules_path(family: Callable[[], oracle.Bare]) -> None:
    for name, layer in index(family()).items():
        assert dotted(name) == layer.path.removeprefix("text_model.")
