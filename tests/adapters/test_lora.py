"""LoRA's arithmetic, against peft, LyCORIS and itself."""

import pytest
import torch
import torch.nn.functional as F
from lycoris.modules.locon import LoConModule
from peft import LoraConfig, get_peft_model
from torch import nn

from sdlora.adapters.lora import Lora, LoraSpec
from sdlora.errors import AdapterError

LAYERS = {
    "linear": (nn.Linear(12, 20), (2, 5, 12)),
    "conv1x1": (nn.Conv2d(12, 20, 1), (2, 12, 6, 6)),
    "conv3x3": (nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 6, 6)),
}


def made(layer: nn.Module, *, rank: int = 4, alpha: float = 6.0) -> Lora:
    """An adapter of `layer` that changes something."""
    lora = Lora.create(layer, LoraSpec(rank=rank, alpha=alpha), torch.Generator().manual_seed(1))
    nn.init.normal_(lora.up, generator=torch.Generator().manual_seed(2))
    return lora


@pytest.mark.parametrize("name", LAYERS)
def test_a_new_adapter_changes_nothing(name: str) -> None:
    layer, shape = LAYERS[name]
    lora = Lora.create(layer, LoraSpec(), torch.Generator().manual_seed(1))
    x = torch.randn(shape)
    assert torch.equal(layer(x) + lora(x, layer), layer(x))
    assert lora.down.dtype == lora.up.dtype == torch.float32


def test_down_starts_gaussian_with_the_variance_of_a_new_layer() -> None:
    layer = nn.Linear(400, 20)
    lora = Lora.create(layer, LoraSpec(rank=256), torch.Generator().manual_seed(1))
    standard = lora.down.detach().flatten() * (3 * 400) ** 0.5
    assert abs(float(standard.mean())) < 0.02 and abs(float(standard.var()) - 1) < 0.03
    assert abs(float((standard**4).mean()) - 3) < 0.1  # 1.8 where values are uniform


@pytest.mark.parametrize("name", LAYERS)
def test_forward_is_the_layer_with_the_delta_for_its_weight(name: str) -> None:
    layer, shape = LAYERS[name]
    lora, x = made(layer), torch.randn(shape)
    changed = torch.func.functional_call(layer, {"weight": layer.weight + lora.delta(layer.weight)}, (x,))
    torch.testing.assert_close(layer(x) + lora(x, layer), changed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_forward_equals_pefts_on_the_same_tensors(name: str) -> None:
    layer, shape = LAYERS[name]
    lora, x = made(layer), torch.randn(shape)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], lora_dropout=0.0)
    theirs = get_peft_model(nn.Sequential(layer), config)  # type: ignore[arg-type]  # any module will do
    with torch.no_grad():
        theirs.get_parameter("base_model.model.0.lora_A.default.weight").copy_(lora.down)
        theirs.get_parameter("base_model.model.0.lora_B.default.weight").copy_(lora.up)
    torch.testing.assert_close(layer(x) + lora(x, layer), theirs(x), rtol=1e-6, atol=1e-6)


def test_a_tucker_core_gives_lycoris_delta() -> None:
    layer = nn.Conv2d(12, 20, 3, padding=1)
    theirs = LoConModule("x", layer, lora_dim=4, alpha=6, use_tucker=True)
    for part in (theirs.lora_down, theirs.lora_mid, theirs.lora_up):
        nn.init.normal_(part.weight)
    tensors = {name: tensor for name, tensor in theirs.state_dict().items() if "." in name or name == "alpha"}
    ours = Lora.read(tensors, layer)
    torch.testing.assert_close(ours.delta(layer.weight), theirs.get_diff_weight()[0])
    x = torch.randn(1, 12, 5, 5)
    torch.testing.assert_close(
        ours(x, layer), F.conv2d(x, ours.delta(layer.weight), padding=1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("flat_layer", [True, False])
def test_linear_tensors_fit_a_1x1_convolution_and_the_other_way_round(flat_layer: bool) -> None:
    linear, conv = nn.Linear(12, 20), nn.Conv2d(12, 20, 1)
    lora = made(conv if flat_layer else linear)
    read = Lora.read(lora.tensors(), linear if flat_layer else conv)
    expected = lora.delta((conv if flat_layer else linear).weight).flatten(1)
    assert torch.equal(read.delta((linear if flat_layer else conv).weight).flatten(1), expected)


def test_alpha_that_is_missing_means_scale_one() -> None:
    layer = LAYERS["linear"][0]
    tensors = made(layer).tensors()
    del tensors["alpha"]
    assert Lora.read(tensors, layer).scale == 1.0


def test_dropout_is_fixed_by_the_global_seed_and_off_in_evaluation() -> None:
    layer, shape = LAYERS["linear"]
    lora, x = made(layer), torch.randn(shape)
    lora.dropout = 0.5
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(lora(x, layer))
    assert torch.equal(*results)
    whole = lora.eval()(x, layer)
    assert not torch.equal(results[0], whole)
    torch.testing.assert_close(whole, F.linear(x, lora.delta(layer.weight)))


@pytest.mark.parametrize("name", ["lora_down.weight", "lora_up.weight"])
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    layer = LAYERS["linear"][0]
    tensors = made(layer).tensors()
    with pytest.raises(AdapterError, match="the layer needs"):
        Lora.read(tensors | {name: torch.zeros(3, 7)}, layer)
    del tensors[name]
    with pytest.raises(AdapterError, match="missing"):
        Lora.read(tensors, layer)
