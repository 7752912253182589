"""Networks that LyCORIS wrote, of several algorithms and in all number formats, read to what they do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lycoris import kohya
from torch import nn

from sdlora.errors import AdapterError
from sdlora.network.codec import AdapterFile, save
from sdlora.network.container import write
from sdlora.network.info import inspect
from tests.adapters.lycoris_modules import trained
from tests.network import oracle
from tests.network.oracle import Bare

PRESET = {
    "enable_conv": True,
    "unet_target_module": ["Transformer2DModel", "ResnetBlock2D"],
    "unet_target_name": [],
    "text_encoder_target_module": ["CLIPAttention", "CLIPMLP"],
    "text_encoder_target_name": [],
    "exclude_name": ["down_blocks", "up_blocks"],
    "module_algo_map": {
        "Attention": {"algo": "locon", "weight_decompose": True},
        "FeedForward": {"algo": "diag-oft"},
        "ResnetBlock2D": {"algo": "lokr", "dim": 1},
        "CLIPAttention": {"algo": "ia3"},
        "CLIPMLP": {"algo": "glora"},
    },
}


FORMATS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8 e4m3": torch.float8_e4m3fn,
    "fp8 e5m2": torch.float8_e5m2,
}


@pytest.fixture(autouse=True)
def preset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LyCORIS keeps its choices in classes and tables; they are put back."""
    monkeypatch.setitem(kohya.PRESET, "tests", PRESET)
    kept = dict(vars(kohya.LycorisNetworkKohya))
    yield
    for name in (name for name in kept if name.isupper()):
        setattr(kohya.LycorisNetworkKohya, name, kept[name])


def network(family: Bare, **options: object) -> kohya.LycorisNetworkKohya:
    """A network on the middle of the UNet and both text encoders."""
    unet, *encoders = family.components.values()
    options |= {"preset": "tests", "warn_on_unmatched": False}
    return kohya.create_network(1.0, 4, 2.0, None, encoders, unet, **options)


def written(
    net: kohya.LycorisNetworkKohya, family: Bare, path: Path, dtype: torch.dtype | None
) -> AdapterFile:
    unet, *encoders = family.components.values()
    net.apply_to(encoders, unet, True, True)
    net.save_weights(str(path), dtype, None)
    return AdapterFile.open(path)


@torch.no_grad()
def shaken(net: kohya.LycorisNetworkKohya, dtype: torch.dtype) -> kohya.LycorisNetworkKohya:
    """The network with random values that `dtype` holds exactly."""
    draw = torch.Generator().manual_seed(0)
    for parameter in (parameter for module in net.loras for parameter in module.parameters()):
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
        parameter.copy_(parameter.to(dtype))
    return net.eval()


def example(layer: nn.Module) -> torch.Tensor:
    """Something that the layer can read."""
    match layer:
        case nn.Conv2d():
            return torch.ones(1, layer.in_channels, 3, 3)
        case nn.GroupNorm():
            return torch.ones(1, layer.num_channels, 2, 2)
    return torch.ones(1, layer.get_parameter("weight").shape[-1])


@pytest.mark.parametrize("format", ["fp32", "fp16", "bf16", "fp8 e4m3", "fp8 e5m2"])
@torch.no_grad()
def test_a_network_of_many_algorithms_is_what_it_does(format: str, tmp_path: Path) -> None:
    family, dtype = oracle.tiny_sdxl(), FORMATS[format]
    net = shaken(network(family, use_tucker=True, train_norm=True), dtype)
    changes = {x.lora_name: trained(x, example(x.org_module[0])) for x in net.loras}
    resolved = written(net, family, tmp_path / "x.safetensors", dtype).resolve(family)
    assert not resolved.unmatched and len(changes) == len(resolved.adapters) > 80
    kinds = {adapter.kind for adapter in resolved.adapters.values()}
    assert kinds == {"dora", "oft", "lokr", "ia3", "glora", "lora", "norm"}
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    for layer, adapter in resolved.adapters.items():
        weight, bias = changes[f"{prefixes[layer.component]}_{layer.path}".replace(".", "_")]
        base = family.components[layer.component].get_submodule(layer.path).get_parameter("weight")
        assert (adapter.delta(base) - weight.reshape(base.shape)).norm() < 1e-5 * weight.norm(), layer
        if bias is not None and (change := adapter.bias_delta(bias)) is not None:
            assert (change - bias).norm() < 1e-5 * bias.norm(), layer


def file(tmp_path: Path, **tensors: torch.Tensor) -> AdapterFile:
    """A file of one layer of 64 features."""
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    write(tmp_path / "x.safetensors", {f"{stem}.{name}": tensor for name, tensor in tensors.items()}, {})
    return AdapterFile.open(tmp_path / "x.safetensors")


def test_an_alpha_that_fp16_could_not_hold_plays_no_part_in_whole_matrices(tmp_path: Path) -> None:
    """A rank of 100,000 is how whole matrices are asked for; the file's alpha is then infinite."""
    small, large = torch.randn(4, 4).half(), torch.randn(16, 16).half()
    found = file(tmp_path, lokr_w1=small, lokr_w2=large, alpha=torch.tensor(100_000.0).half())
    assert not inspect(found.path).problem
    ((layer, lokr),) = found.resolve(oracle.tiny_sdxl()).adapters.items()
    delta = torch.kron(small.float(), large.float())
    assert torch.equal(lokr.delta(torch.empty(64, 64)).detach(), delta)
    save(tmp_path / "again.safetensors", {layer: lokr}, family_name="sdxl")


def test_only_what_changes_nothing_on_any_base_is_called_dead(tmp_path: Path) -> None:
    blocks = torch.randn(16, 4, 4)
    assert not inspect(file(tmp_path, oft_blocks=blocks, alpha=torch.tensor(0.0)).path).problem
    assert "nothing" in inspect(file(tmp_path, oft_blocks=0 * blocks, alpha=torch.tensor(0.0)).path).problem
    half = {"lora_down.weight": torch.randn(2, 64), "lora_up.weight": torch.zeros(64, 2)}
    assert "nothing" in inspect(file(tmp_path, **half).path).problem
    assert not inspect(file(tmp_path, **half, diff_b=torch.ones(64)).path).problem
    assert not inspect(file(tmp_path, **half, dora_scale=torch.ones(64, 1)).path).problem


def test_what_is_no_kind_that_is_known_says_so(tmp_path: Path) -> None:
    """T-LoRA: its change is counted from a start that the file does not hold."""
    tensors = {"q_layer.weight": torch.ones(4, 64), "p_layer.weight": torch.ones(64, 4)}
    with pytest.raises(AdapterError, match=r"no kind of adapter that is known .*lambda_layer"):
        file(tmp_path, **tensors, lambda_layer=torch.ones(1, 4)).resolve(oracle.tiny_sdxl())
