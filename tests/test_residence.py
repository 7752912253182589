"""Networks come to the family's device while they are needed, with the same bits, and leave it again.

Here the device is `meta`, where tensors have no content: where they lie can be seen without a GPU.
"""

import copy

import pytest
import torch
from torch import nn

from sdlora.contracts import Family
from sdlora.loading import load_family
from sdlora.residence import present, settle, settle_in, text_encoders
from tests.conftest import TinyModel


@pytest.fixture
def elsewhere(tiny_sdxl: TinyModel) -> Family:
    """A family whose networks wait for another device."""
    return load_family(str(tiny_sdxl.folder), device="meta", dtype=torch.float32, waiting=True)


def places(network: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*network.parameters(), *network.buffers())}


def test_a_waiting_family_is_for_its_device_and_lies_in_memory(elsewhere: Family) -> None:
    assert elsewhere.device.type == "meta"
    assert {place for network in elsewhere.networks.values() for place in places(network)} == {"cpu"}


def test_networks_come_and_leave_with_the_same_bits(elsewhere: Family) -> None:
    before = copy.deepcopy(elsewhere.networks["vae"].state_dict())
    with pytest.raises(KeyError), present(elsewhere, "vae", *text_encoders(elsewhere)):
        assert places(elsewhere.networks["unet"]) == {"cpu"}
        for name in ("vae", "text_encoder", "text_encoder_2"):
            assert places(elsewhere.networks[name]) == {"meta"}
        raise KeyError
    after = elsewhere.networks["vae"].state_dict()
    assert places(elsewhere.networks["text_encoder_2"]) == {"cpu"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_has_settled_stays(elsewhere: Family) -> None:
    settle(elsewhere, "unet")
    with present(elsewhere, "unet"):
        pass
    assert places(elsewhere.networks["unet"]) == {"meta"}


def test_where_memory_is_short_only_the_unet_settles(elsewhere: Family) -> None:
    held = sum(
        part.nbytes for network in elsewhere.networks.values() for part in network.state_dict().values()
    )
    settle_in(elsewhere, free=held)
    assert {name for name, network in elsewhere.networks.items() if places(network) == {"meta"}} == {"unet"}
    settle_in(elsewhere, free=2 * held)
    assert {place for network in elsewhere.networks.values() for place in places(network)} == {"meta"}


@pytest.mark.gpu
def test_on_a_gpu_what_comes_has_the_same_bits_and_its_memory_is_given_back(tiny_sdxl: TinyModel) -> None:
    waiting, there = (
        load_family(str(tiny_sdxl.folder), device="cuda:0", dtype=torch.float32, waiting=on)
        for on in (True, False)
    )
    pixels = torch.rand(1, 3, 64, 64, device="cuda") * 2 - 1
    there.encode_images(pixels)  # libraries take memory at the first call
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with present(waiting, "vae"):
        latents = waiting.encode_images(pixels)
    assert torch.equal(latents, there.encode_images(pixels))
    del latents
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before
