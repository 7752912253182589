"""Deltas of every kind equal those of LyCORIS and peft on the same tensors, within 1e-5."""

import pytest
import torch
from lycoris.functional.diag_oft import diff_weight as oft_diff_weight
from lycoris.modules import get_module, make_module
from lycoris.modules.dylora import DyLoraModule
from lycoris.utils import make_sparse
from peft.tuners.lora.dora import DoraLinearLayer
from torch import nn

from sdlora.adapters import KINDS
from sdlora.errors import AdapterError
from sdlora.layers import bias_of
from tests.adapters.lycoris_modules import WRITTEN, Options, distance, fits, made, saved, trained
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


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("algorithm", "option"), [(a, o) for a, (_, options) in WRITTEN.items() for o in options]
)
def test_what_lycoris_saves_is_what_it_trained(algorithm: str, option: str, name: str) -> None:
    kind, options = WRITTEN[algorithm]
    layer, shape = LAYERS[name]
    if fits(algorithm, layer):
        assert distance(made(kind, layer, options[option]), layer, torch.randn(shape)) < 1e-5


@pytest.mark.parametrize(("algorithm", "options", "times"), [
    ("glora", {"rs_lora": True}, 4**0.5),  # it trains alpha / sqrt(r) and saves alpha
    ("lokr", {"rs_lora": True, "full_matrix": True}, 4**0.5),  # it trains sqrt(r), and the file has no r
])  # fmt: skip
def test_what_lycoris_does_not_save_is_read_as_lycoris_reads_it(
    algorithm: str, options: Options, times: float
) -> None:
    layer, shape = LAYERS["linear"]
    weight = layer.get_parameter("weight")
    module = made(WRITTEN[algorithm][0], layer, options)
    state = {f"x.{suffix}": tensor for suffix, tensor in saved(module).items()}
    again = make_module(*get_module(state, "x"), "x", layer)
    got = KINDS.get(algorithm).read(saved(module), layer).delta(weight).detach()
    for theirs, by in ((again, 1), (module, times)):
        expected = trained(theirs, torch.randn(shape))[0].detach()
        torch.testing.assert_close(got * by, expected, **TOLERANCE)


@pytest.mark.parametrize("algorithm", ["locon", "loha", "lokr", "glora"])
@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
def test_a_lycoris_module_that_leaves_the_weight_alone_does_the_same(algorithm: str, name: str) -> None:
    layer, shape = LAYERS[name]
    options = {"bypass_mode": True, "use_tucker": True, "use_scalar": True}
    module, x = made(WRITTEN[algorithm][0], layer, options), torch.randn(shape)
    adapter = KINDS.get("lora" if algorithm == "locon" else algorithm).read(saved(module), layer)
    torch.testing.assert_close(layer(x) + adapter(x, layer), module.forward(x), rtol=1e-4, atol=1e-5)


def test_all_of_dylora_is_read_as_the_lora_that_it_saves() -> None:
    """delta = alpha / r * up @ down; its own forward takes some of the blocks, and alpha / blocks."""
    for name in ("linear", "conv1x1", "conv3x3"):
        layer = LAYERS[name][0]
        weight = layer.get_parameter("weight")
        module = made(DyLoraModule, layer, {"lora_dim": 4, "block_size": 2})
        up, down = torch.cat(list(module.up_list), dim=1), torch.cat(list(module.down_list))
        got = KINDS.get("lora").read(saved(module), layer).delta(weight).detach()
        torch.testing.assert_close(got, (3 / 4 * up @ down).reshape(weight.shape), **TOLERANCE)


def test_what_lycoris_extraction_leaves_over_is_added_in_its_places() -> None:
    """The largest values of what the low rank misses, by row and column of the weight as a matrix."""
    layer = LAYERS["conv3x3"][0]
    weight = layer.get_parameter("weight")
    rest = make_sparse(torch.randn(weight.flatten(1).shape), 0.98)
    entries = rest.to_sparse().coalesce()
    held = {
        "bias_indices": entries.indices().to(torch.int16),
        "bias_values": entries.values(),
        "bias_size": torch.tensor(rest.shape, dtype=torch.int16),
    }
    sparse = KINDS.get("sparse")
    assert torch.equal(sparse.read(held, layer).delta(weight).detach(), rest.reshape(weight.shape))
    with pytest.raises(AdapterError, match="lead out"):
        sparse.read(held | {"bias_indices": held["bias_indices"] + 15}, layer)


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
