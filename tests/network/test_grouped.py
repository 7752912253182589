"""Adapters of several runs on one base: each part of a batch gets what its own adapter alone would make."""

import pytest
import torch

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.network.attach import Network, attached, create
from sdlora.network.grouped import grouped
from tests.conftest import TinyModel

KINDS = [
    [{"adapter.rank": 4, "adapter.alpha": 4.0}] * 2,
    [{"adapter.rank": 2, "adapter.alpha": 4.0}, {"adapter.rank": 6, "adapter.alpha": 1.0}],
    [{"adapter.kind": "loha", "adapter.rank": 2}, {"adapter.rank": 4}],
    [{"adapter.targets": "attn1"}, {"adapter.targets": "attn2"}],
]


def awake(family: object, values: dict[str, object], *, seed: int) -> Network:
    spec = options.build(TrainConfig, {"data.folder": "x", **values}).adapter
    network = create(family, spec, seed=seed)
    with torch.no_grad():
        for parameter in network.parameters():
            generator = torch.Generator().manual_seed(seed)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


@pytest.mark.parametrize("settings", KINDS)
def test_each_part_answers_and_learns_as_with_its_own_adapter_alone(
    tiny_sd1: TinyModel, settings: list[dict[str, object]]
) -> None:
    family = tiny_sd1.family
    networks = [awake(family, values, seed=seed) for seed, values in enumerate(settings)]
    tokens = family.tokenize(["a cat", "a dog", "a red hat", "a"]).ids
    noisy = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    steps = torch.tensor([10, 300, 600, 900])

    def answer(rows: slice) -> torch.Tensor:
        conditioning = family.encode_text(type(family.tokenize(["a"]))(tokens[rows]))
        return family.predict(noisy[rows], steps[rows], conditioning)

    alone = []
    for network, rows in zip(networks, (slice(0, 2), slice(2, 4)), strict=True):
        with attached(family, network):
            out = answer(rows)
            gradients = torch.autograd.grad(
                out.square().sum(), list(network.parameters()), materialize_grads=True
            )
        alone.append((out, gradients))
    group = grouped(networks)
    with attached(family, group):
        together = answer(slice(None))
        leaves = [list(network.parameters()) for network in networks]
        found = torch.autograd.grad(together.square().sum(), [*leaves[0], *leaves[1]], materialize_grads=True)
        for adapter in group.adapters.values():
            adapter.present = (1,)
        only = answer(slice(2, 4))
    assert torch.allclose(together, torch.cat([out for out, _ in alone]), atol=1e-5)
    assert torch.allclose(only, alone[1][0], atol=1e-6)
    for one, other in zip(found, [*alone[0][1], *alone[1][1]], strict=True):
        assert torch.allclose(one, other, atol=1e-4 * max(1.0, float(other.abs().max())))
