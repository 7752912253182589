"""Deltas of every kind equal those of LyCORIS and peft on the same tensors, within 1e-5."""

import pytest
import torch
from lycoris.functional.diag_oft import diff_weight as oft_diff_weight
from lycoris.functional.lokr import kron_weight
from lycoris.modules import get_module, make_module
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn

from sdlora.adapters import KINDS
from sdlora.layers import bias_of
from tests.adapters.test_kinds import LAYERS, cases, moved

# A bias alone is read by no module of theirs; the rest is compared on every layer.
COMPARED = [(variant, name) for variant, name in cases() if variant != "bias"]
# They measure the weight's norm plus 1.2e-7, and invert in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize(("variant", "name"), COMPARED)
def test_deltas_equal_lycoris(variant: str, name: str) -> None:
    layer, _ = LAYERS[name]
    weight = layer.get_parameter("weight")
    adapter = moved(variant, layer)
    held = adapter.tensors()
    state = {f"x.{suffix}": tensor for suffix, tensor in held.items()}
    if variant.startswith("ia3"):  # theirs forgets the side when it reads
        expected = weight * held["weight"].reshape(
            [-1 if a == (variant == "ia3 input") else 1 for a in range(weight.ndim)]
        )
        torch.testing.assert_close(adapter.delta(weight), expected.detach())
        return
    if variant in ("oft", "oft bounded"):  # their module takes blocks of its own sizes only
        bound = float(held["alpha"]) * weight.shape[0]
        expected = oft_diff_weight(weight, held["oft_blocks"], None, constraint=bound)
        torch.testing.assert_close(adapter.delta(weight), expected, **TOLERANCE)
        return
    theirs = make_module(*get_module(state, "x"), "x", layer)
    if variant.startswith(("loha", "lokr")):  # their merge multiplies the scale twice, their training once
        torch.testing.assert_close(adapter.delta(weight), theirs.get_weight(weight.shape), **TOLERANCE)
        return
    merged, bias = theirs.get_merged_weight()
    torch.testing.assert_close(weight + adapter.delta(weight), merged.reshape(weight.shape), **TOLERANCE)
    own_bias = adapter.bias_delta(bias_of(layer))
    if own_bias is not None and variant == "norm":
        torch.testing.assert_close(layer.get_parameter("bias") + own_bias, bias)


@pytest.mark.parametrize("tucker", [True, False])
def test_loha_with_a_tucker_core_equals_lycoris(tucker: bool) -> None:
    layer = LAYERS["conv3x3"][0]
    draw = torch.Generator().manual_seed(0)
    sides = {"a": (4, 16), "b": (4, 12)} if tucker else {"a": (16, 4), "b": (4, 12 * 9)}
    held = {f"hada_w{n}_{s}": torch.randn(shape, generator=draw) for n in "12" for s, shape in sides.items()}
    held |= {f"hada_t{n}": torch.randn(4, 4, 3, 3, generator=draw) for n in "12"} if tucker else {}
    compare("loha", held | {"alpha": torch.tensor(3.0)}, layer)


@pytest.mark.parametrize("form", ["tucker", "both factored", "factored", "whole"])
def test_forms_of_lokr_equal_lycoris(form: str) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"lokr_w1": (4, 4), "lokr_w2": (16, 16, 3, 3)}
    if form == "both factored":
        shapes = {"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 4), **shapes}
        del shapes["lokr_w1"]
    if form != "whole":
        del shapes["lokr_w2"]
        tucker = {"lokr_w2_a": (2, 16), "lokr_w2_b": (2, 16), "lokr_t2": (2, 2, 3, 3)}
        shapes |= tucker if form == "tucker" else {"lokr_w2_a": (16, 2), "lokr_w2_b": (2, 16 * 9)}
    held = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    scale = 1.0 if form == "whole" else 3.0 / 2
    names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    weight = nn.Conv2d(64, 64, 3).weight
    expected = kron_weight(*(held.get(name) for name in names), scale=scale).reshape(weight.shape)
    got = KINDS.get("lokr").read(held | {"alpha": torch.tensor(3.0)}, nn.Conv2d(64, 64, 3)).delta(weight)
    assert float((got - expected).detach().norm() / expected.norm()) < 1e-5


def test_the_older_numbering_of_glora_is_read() -> None:
    layer = LAYERS["linear"][0]
    weight = layer.get_parameter("weight")
    held = moved("glora", layer).tensors()
    older = {n if n == "alpha" else f"{n[0]}{3 - int(n[1])}.weight": t for n, t in held.items()}
    glora = KINDS.get("glora")
    assert torch.equal(glora.read(older, layer).delta(weight), glora.read(held, layer).delta(weight))


def test_magnitudes_over_inputs_rescale_columns() -> None:
    layer = LAYERS["linear"][0]
    weight = layer.get_parameter("weight").detach()
    held = moved("lora", layer).tensors()
    magnitude = torch.rand(1, 12)
    dora = KINDS.get("dora").read(held | {"dora_scale": magnitude}, layer)
    new = weight + KINDS.get("lora").read(held, layer).delta(weight)
    expected = magnitude * new / new.norm(dim=0, keepdim=True)
    torch.testing.assert_close((weight + dora.delta(weight)).detach(), expected.detach())


def test_dora_equals_pefts_forward() -> None:
    layer = nn.Linear(12, 16)
    dora = moved("dora", layer)
    held = dora.tensors()
    scale = float(held["alpha"]) / held["lora_down.weight"].shape[0]
    theirs = DoraLinearLayer(fan_in_fan_out=False)
    factors = held["lora_down.weight"], held["lora_up.weight"]
    theirs.update_layer(base_layer=layer, lora_A=factors[0], lora_B=factors[1], scaling=scale)
    with torch.no_grad():
        theirs.weight.copy_(held["dora_scale"].flatten())
    x = torch.randn(3, 12)
    a, b = nn.Linear(12, 16, bias=False), nn.Linear(16, 16, bias=False)
    a.weight, b.weight = nn.Parameter(factors[0]), nn.Parameter(factors[1])
    change = theirs(x, lora_A=a, lora_B=b, scaling=scale, base_layer=layer)
    torch.testing.assert_close(dora(x, layer), change, rtol=1e-4, atol=1e-5)


def test_older_rotations_equal_what_lycoris_made_of_them() -> None:
    """W' = einsum("k n m, k n ... -> k m ...", oft_diag, W) in LyCORIS 2.0's first form."""
    diag = torch.eye(4) + torch.randn(4, 4, 4) * 0.1
    for name in ("linear", "conv3x3"):
        layer = LAYERS[name][0]
        weight = layer.get_parameter("weight").detach()
        parted = weight.reshape(4, 4, *weight.shape[1:])
        expected = torch.einsum("knm,kn...->km...", diag, parted).reshape(weight.shape)
        rotation = KINDS.get("rotation").read({"oft_diag": diag}, layer)
        torch.testing.assert_close(weight + rotation.delta(weight), expected, **TOLERANCE)


def compare(kind: str, held: dict[str, Tensor], layer: nn.Module) -> None:
    """Our delta of the tensors equals LyCORIS' within 1e-5."""
    weight = layer.get_parameter("weight")
    theirs = make_module(*get_module({f"x.{n}": t for n, t in held.items()}, "x"), "x", layer)
    expected = theirs.get_weight(weight.shape)
    got = KINDS.get(kind).read(held, layer).delta(weight)
    assert float((got - expected).detach().norm() / expected.detach().norm()) < 1e-5
