"""Adapters on a live model: what attaching changes, and what detaching leaves."""

import pytest
import torch
from torch import Tensor, nn

from sdlora import options
from sdlora.adapters import SPECS
from sdlora.adapters.lora import Lora, LoraSpec
from sdlora.config import TrainConfig
from sdlora.contracts import Family
from sdlora.errors import ConfigError
from sdlora.network.attach import Network, attached, create
from sdlora.network.targets import resolve
from tests.conftest import TinyModel

SPEC = LoraSpec(rank=4)


@torch.no_grad()
def answer(family: Family) -> Tensor:
    """What the whole family puts out for a fixed input."""
    torch.manual_seed(0)
    conditioning = family.encode_text(family.tokenize(["a photo of a red cat"]))
    return family.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), conditioning)


def awake(network: Network) -> Network:
    """The network with every tensor random, so that it changes something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


def test_a_new_network_changes_nothing(tiny_sd1: TinyModel) -> None:
    before = answer(tiny_sd1.family)
    with attached(tiny_sd1.family, create(tiny_sd1.family, SPEC, seed=0)):
        assert torch.equal(answer(tiny_sd1.family), before)


def test_detaching_leaves_the_base_bit_equal(tiny_sd1: TinyModel) -> None:
    family = tiny_sd1.family
    before = answer(family)
    weights = {name: p.clone() for name, p in family.components["unet"].named_parameters()}
    network = awake(create(family, SPEC, seed=0))
    with attached(family, network):
        assert not torch.equal(answer(family), before)
        with network.silenced():
            assert torch.equal(answer(family), before)
        assert not torch.equal(answer(family), before)
    assert torch.equal(answer(family), before)
    assert all(torch.equal(p, weights[n]) for n, p in family.components["unet"].named_parameters())


def test_an_error_inside_detaches_too(tiny_sd1: TinyModel) -> None:
    before = answer(tiny_sd1.family)
    with (
        pytest.raises(ZeroDivisionError),
        attached(tiny_sd1.family, awake(create(tiny_sd1.family, SPEC, seed=0))),
    ):
        raise ZeroDivisionError
    assert torch.equal(answer(tiny_sd1.family), before)


def test_only_adapters_receive_gradients_and_all_of_them_do(tiny_sd1: TinyModel) -> None:
    family = tiny_sd1.family
    network = awake(create(family, SPEC, seed=0))
    with attached(family, network):
        conditioning = family.encode_text(family.tokenize(["a cat"]))
        # 16 latents a side leave several places in the smallest block, where attention is no constant
        noisy = torch.randn(1, 4, 16, 16)
        family.predict(noisy, torch.tensor([10]), conditioning).square().mean().backward()
    assert all(p.grad is None for root in family.components.values() for p in root.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_the_start_depends_on_the_seed_and_the_layers_name_alone(tiny_sd1: TinyModel) -> None:
    few = create(tiny_sd1.family, LoraSpec(targets="attn2.to_k", text_encoder=False), seed=7)
    many = create(tiny_sd1.family, LoraSpec(), seed=7)
    other = create(tiny_sd1.family, LoraSpec(), seed=8)
    for layer, adapter in few.adapters.items():
        same, different = (dict(n.adapters[layer].named_parameters())["down"] for n in (many, other))
        assert torch.equal(dict(adapter.named_parameters())["down"], same)
        assert not torch.equal(same, different)


def test_parameters_are_parted_by_component(tiny_sd1: TinyModel) -> None:
    network = create(tiny_sd1.family, SPEC, seed=0)
    # 16 blocks with two attentions of four projections; 12 encoder layers of four; two factors each
    assert len(network.parameters_of("unet")) == 16 * 2 * 4 * 2
    assert len(network.text_parameters) == 12 * 4 * 2
    assert len(list(network.parameters())) == 16 * 2 * 4 * 2 + 12 * 4 * 2


def test_state_of_a_network_comes_back(tiny_sd1: TinyModel) -> None:
    network = awake(create(tiny_sd1.family, SPEC, seed=0))
    again = create(tiny_sd1.family, SPEC, seed=1)
    again.load_state_dict(network.state_dict())
    pairs = zip(network.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_patterns_pick_layers_of_both_components(tiny_sd1: TinyModel) -> None:
    layers = resolve(tiny_sd1.family, LoraSpec(targets="attn2.to_k, fc1"))
    assert {layer.path.rsplit(".", 1)[1] for layer in layers} == {"to_k", "fc1"}
    assert {layer.component for layer in layers} == {"unet", "text_encoder"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "attn3"}, 'attn3" matches no layer of Stable Diffusion 1.x. Did you mean "attn'),
        ({"targets": "atention"}, 'Did you mean "attention"'),
        ({"targets": "("}, "no regular expression"),
        ({"targets": " , "}, "targets is empty"),
        ({"unet": False, "text_encoder": False}, "Neither the UNet nor the text encoder"),
    ],
)
def test_targets_that_name_nothing_are_refused(
    tiny_sd1: TinyModel, options: dict[str, str | bool], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        create(tiny_sd1.family, LoraSpec(**options), seed=0)
    assert message in str(caught.value)


def test_half_precision_layers_take_fp32_adapters() -> None:
    layer = nn.Linear(8, 8).bfloat16()
    lora = Lora.create(layer, SPEC, torch.Generator())
    assert lora.down.dtype == torch.float32
    assert lora(torch.randn(2, 8).bfloat16(), layer).dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("kind", SPECS.names())
def test_every_kind_is_made_with_its_own_defaults_for_one_part_alone(
    tiny_sd1: TinyModel, kind: str, part: str
) -> None:
    parts = {"adapter.unet": part == "unet", "adapter.text_encoder": part == "text_encoder"}
    config = options.build(TrainConfig, {"data.folder": "x", "adapter.kind": kind, **parts})
    network = create(tiny_sd1.family, config.adapter, seed=0)
    assert {layer.component for layer in network.layers} == {part}
