"""What is told of an adapter file without a base."""

import json
from pathlib import Path

import pytest
import torch

from sdlora.adapters.lora import LoraSpec
from sdlora.errors import AdapterError
from sdlora.families import FAMILIES
from sdlora.network.attach import create
from sdlora.network.codec import AdapterFile, save
from sdlora.network.container import write
from sdlora.network.detect import CARRIED
from sdlora.network.info import inspect
from tests.conftest import TinyModel
from tests.network.test_attach import awake


@pytest.fixture
def file(tiny_sd1: TinyModel, tmp_path: Path) -> Path:
    network = awake(create(tiny_sd1.family, LoraSpec(rank=3, alpha=6.0), seed=0))
    texts = {"modelspec.title": "My cat", "ss_tag_frequency": json.dumps({"10_cat": {"cat": 9, "red ": 4}})}
    return save(tmp_path / "x.safetensors", network.adapters, family_name="sd1", metadata=texts).path


def test_facts_of_a_file(file: Path) -> None:
    info = inspect(file)
    assert (info.title, info.family, info.family_title) == ("My cat", "sd1", "Stable Diffusion 1.x")
    assert (info.kinds, info.ranks, info.alphas) == (("lora",), (3.0, 3.0), (6.0, 6.0))
    assert info.modules == {"unet": 128, "text_encoder": 48}
    assert info.triggers == ("cat", "red") and info.weight is None
    assert info.bytes == file.stat().st_size and info.problem == "" and info.unread == ()
    assert info.metadata["sshs_model_hash"].startswith(info.hash) and len(info.hash) == 12
    assert info.metadata["ss_network_dim"] == "3" and info.metadata["ss_network_alpha"] == "6"


def test_the_sidecar_tells_trigger_and_weight(file: Path) -> None:
    card = {"activation text": "zwx, my cat", "preferred weight": 0.7}
    file.with_suffix(".json").write_text(json.dumps(card))
    info = inspect(file)
    assert info.triggers == ("zwx", "my cat") and info.weight == 0.7


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"preferred weight": "x", "activation text": 3}'])
def test_a_broken_sidecar_is_as_none(text: str, file: Path) -> None:
    file.with_suffix(".json").write_text(text)
    assert inspect(file).triggers == ("cat", "red")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"b": "c"}}'])
def test_a_broken_tag_table_is_as_none(text: str, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    network = create(tiny_sd1.family, LoraSpec(rank=1), seed=0)
    path = tmp_path / "x.safetensors"
    save(path, network.adapters, family_name="sd1", metadata={"ss_tag_frequency": text})
    assert inspect(path).triggers == ()


@pytest.mark.parametrize(
    ("counts", "triggers"),
    [
        ({"zwx": 20, "hat": 5, "dog": 4, "a zwx in the rain": 1}, ("zwx", "hat")),
        ({"a cat on a chair": 1, "a dog that runs": 1}, ()),
        ({"ink drawing": 3, "a boat": 2, "a red house": 1}, ("ink drawing", "a boat")),
        ({"": 40, "cat": 10, "sun": 9}, ("cat", "sun")),
    ],
)
def test_only_what_many_captions_share_is_a_trigger(
    counts: dict[str, int], triggers: tuple[str, ...], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    network = create(tiny_sd1.family, LoraSpec(rank=1), seed=0)
    texts = {"ss_tag_frequency": json.dumps({"10_x": counts})}
    path = save(tmp_path / "x.safetensors", network.adapters, family_name="sd1", metadata=texts).path
    assert inspect(path).triggers == triggers


def test_dead_adapters_are_told(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    network = create(tiny_sd1.family, LoraSpec(rank=1), seed=0)
    assert (
        "changes nothing" in inspect(save(tmp_path / "x", network.adapters, family_name="sd1").path).problem
    )


def test_values_that_are_not_finite_are_told(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2:] = torch.tensor([float("nan")]).half().view(torch.uint8).numpy().tobytes()
    file.write_bytes(content)
    assert "not finite" in inspect(file).problem


FOREIGN = {
    "lora_unet_double_blocks_0_img_attn_proj": "Flux",
    "diffusion_model.joint_blocks.0.context_block.attn.qkv": "Stable Diffusion 3",
    "diffusion_model.blocks.0.self_attn.q": "an unknown model",  # Wan
    "transformer.transformer_blocks.0.img_mlp.net.2": "an unknown model",  # Qwen-Image
    "lora_unet_layers_0_attention_to_q": "an unknown model",  # Z-Image
}


@pytest.mark.parametrize("layer", FOREIGN)
def test_what_no_base_here_carries_says_so(layer: str, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 8), f"{layer}.lora_up.weight": torch.ones(8, 2)}
    write(tmp_path / "x.safetensors", tensors, {"ss_base_model_version": "sd_v1"})
    told = inspect(tmp_path / "x.safetensors")
    assert told.family_title == FOREIGN[layer] and "No base here carries it" in told.problem
    with pytest.raises(AdapterError, match=f"made for {FOREIGN[layer]}.*No base here carries it"):
        AdapterFile.open(told.path).resolve(tiny_sd1.family)


def test_the_families_that_are_carried_are_those_that_there_are() -> None:
    assert sorted(CARRIED) == sorted(FAMILIES.names())
