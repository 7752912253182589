"""What every kind of adapter must be, on every layer that it can change."""

import pytest
import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError
from sdlora.layers import bias_of

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 16), (2, 5, 12)),
    "conv1x1": (nn.Conv2d(12, 16, 1), (2, 12, 6, 6)),
    "conv3x3": (nn.Conv2d(12, 16, 3, stride=2, padding=1), (2, 12, 6, 6)),
    "layer norm": (nn.LayerNorm(12), (2, 5, 12)),
    "group norm": (nn.GroupNorm(4, 12), (2, 12, 6, 6)),
}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {name: (name, {}) for name in SPECS.names()} | {
    "oft bounded": ("oft", {"constraint": 0.001}),
    "boft": ("oft", {"butterfly": True, "block": 4}),
    "lokr whole": ("lokr", {"rank": 1000}),
    "lora tucker": ("lora", {"tucker": True, "conv_rank": 3}),
    "lora pissa": ("lora", {"start": "pissa", "rank": 4}),
    "rslora": ("lora", {"rank_stabilised": True}),
    "dora pissa": ("dora", {"start": "pissa", "rank": 4}),
    "ia3 input": ("ia3", {"on_input": True}),
}


def cases() -> list[tuple[str, str]]:
    """Every variant with every layer that it can change."""
    return [
        (variant, name)
        for variant, (kind, _) in VARIANTS.items()
        for name, (layer, _) in LAYERS.items()
        if isinstance(layer, KINDS.get(kind).layer_types)
    ]


def new(variant: str, layer: nn.Module) -> Adapter:
    """A new adapter."""
    kind, options = VARIANTS[variant]
    return KINDS.get(kind).create(layer, SPECS.get(kind)(**options), torch.Generator().manual_seed(1))


def moved(variant: str, layer: nn.Module) -> Adapter:
    """An adapter that changes something, as after some training."""
    adapter, generator = new(variant, layer), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


def changed(layer: nn.Module, adapter: Adapter, x: Tensor) -> Tensor:
    """The layer's output with the deltas in its own weight and bias."""
    parameters = dict(layer.named_parameters())
    parameters["weight"] = parameters["weight"] + adapter.delta(parameters["weight"])
    if (bias := adapter.bias_delta(bias_of(layer))) is not None:
        parameters["bias"] = parameters["bias"] + bias
    return torch.func.functional_call(layer, parameters, (x,))


@pytest.mark.parametrize(("variant", "name"), cases())
def test_a_new_adapter_changes_nothing(variant: str, name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    adapter = new(variant, layer)
    assert torch.equal(layer(x) + adapter(x, layer), layer(x))
    assert not bool(adapter.delta(layer.get_parameter("weight")).any())
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters())


@pytest.mark.parametrize(("variant", "name"), cases())
def test_forward_is_the_layer_with_the_deltas_in_place(variant: str, name: str) -> None:
    layer, shape = LAYERS[name]
    adapter, x = moved(variant, layer), torch.randn(shape)
    torch.testing.assert_close(layer(x) + adapter(x, layer), changed(layer, adapter, x), rtol=1e-4, atol=1e-5)
    assert float((changed(layer, adapter, x) - layer(x)).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(("variant", "name"), cases())
def test_tensors_read_again_give_the_same_deltas(variant: str, name: str) -> None:
    layer, _ = LAYERS[name]
    weight = layer.get_parameter("weight")
    adapter = moved(variant, layer)
    held = adapter.tensors()
    kinds = [kind for _, kind in KINDS.items() if kind.recognises(frozenset(held))]
    assert kinds == [type(adapter)]
    again = kinds[0].read(held, layer)
    torch.testing.assert_close(again.delta(weight), adapter.delta(weight), rtol=1e-5, atol=1e-6)
    bias, expected = again.bias_delta(bias_of(layer)), adapter.bias_delta(bias_of(layer))
    assert (bias is None) == (expected is None)
    if bias is not None and expected is not None:
        assert torch.equal(bias, expected)


@pytest.mark.parametrize(("variant", "name"), cases())
def test_every_parameter_learns(variant: str, name: str) -> None:
    layer, shape = LAYERS[name]
    adapter = moved(variant, layer)
    adapter(torch.randn(shape), layer).square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert any(bool(parameter.grad.any()) for parameter in adapter.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("variant", "name"), cases())
def test_tensors_of_another_layer_are_refused(variant: str, name: str) -> None:
    layer, _ = LAYERS[name]
    held = moved(variant, layer).tensors()
    others = [nn.Linear(17, 19), nn.Conv2d(17, 19, 5), nn.LayerNorm(23)]
    for other in (o for o in others if isinstance(o, KINDS.get(VARIANTS[variant][0]).layer_types)):
        with pytest.raises(AdapterError):
            KINDS.get(VARIANTS[variant][0]).read(held, other)
