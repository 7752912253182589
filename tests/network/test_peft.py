"""Adapters that PEFT wrote, read to the weights that PEFT itself merges."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig, get_peft_model
from torch import nn

from sdlora.contracts import Family
from sdlora.errors import AdapterError
from sdlora.network.codec import AdapterFile
from sdlora.network.metadata import peft_told
from sdlora.network.stack import Entry, stacked
from tests.network import oracle

TARGETS = ["to_q", "to_k", "to_out.0", "proj_in", "conv1", "conv_shortcut", "ff.net.2"]
CONFIGS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_rslora=True, alpha_pattern={"to_k": 2}),
    "dora": LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_dora=True),
    "ia3": IA3Config(target_modules=TARGETS, feedforward_modules=["ff.net.2", "conv1"]),
    "loha": LoHaConfig(r=4, alpha=3, target_modules=TARGETS),
    "lokr": LoKrConfig(r=1, alpha=3, decompose_both=True, decompose_factor=8, target_modules=TARGETS),
    "oft": OFTConfig(oft_block_size=4, target_modules=TARGETS),
    "oft of seven terms": OFTConfig(oft_block_size=4, target_modules=TARGETS, num_cayley_neumann_terms=7),
    "oft by Cayley": OFTConfig(oft_block_size=4, target_modules=TARGETS, use_cayley_neumann=False),
    "oft shared": OFTConfig(oft_block_size=4, target_modules=TARGETS, block_share=True),
}


def base() -> Any:  # Any: a UNet of diffusers
    """The UNet of a small SDXL, with biases that are not zero."""
    unet = oracle.tiny_sdxl().components["unet"]
    for name, parameter in unet.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    return unet


def family(unet: nn.Module) -> Family:
    components = {"unet": unet}
    bare = SimpleNamespace(name="sdxl", title="Stable Diffusion XL", components=components)
    bare.device, bare.dtype = torch.device("cpu"), torch.float32
    return cast(Family, bare)


def written(config: PeftConfig, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of PEFT's with random values, and all weights as PEFT merges them."""
    model = get_peft_model(base(), copy.deepcopy(config))
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if any(mark in name for mark in ("lora_", "ia3_l", "oft_R", "hada_", "lokr_")):
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder)
    merged = model.merge_and_unload()
    return folder / "adapter_model.safetensors", {n: p.detach() for n, p in merged.named_parameters()}


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_of_peft_gives_the_weights_that_peft_merges(name: str, tmp_path: Path) -> None:
    path, expected = written(CONFIGS[name], tmp_path)
    unet = base()
    before = {n: p.detach().clone() for n, p in unet.named_parameters()}
    with stacked(family(unet), [Entry(path)]) as reports:
        assert not reports[0].unmatched and reports[0].layers["unet"] > 100
        for key, weight in unet.named_parameters():
            distance = (weight - expected[key]).norm() / (expected[key] - before[key]).norm().clamp(min=1e-3)
            assert float(distance) < 1e-5, key
    changed = {n for n, p in before.items() if not torch.equal(expected[n], p)}
    assert len(changed) > 100 and (name != "ia3" or any(n.endswith("bias") for n in changed))


@pytest.mark.filterwarnings("ignore")
def test_what_peft_alone_could_tell_is_asked_for(tmp_path: Path) -> None:
    path, _ = written(CONFIGS["ia3"], tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="inputs or for its outputs"):
        AdapterFile.open(path).resolve(family(base()))
    path, _ = written(OFTConfig(oft_block_size=4, target_modules=TARGETS, coft=True), tmp_path / "c")
    with pytest.raises(AdapterError, match="coft"):
        AdapterFile.open(path).resolve(family(base()))


def test_what_pefts_configuration_says_in_another_way_is_refused() -> None:
    with pytest.raises(AdapterError, match="is an expression"):
        peft_told({"lora_alpha": 3, "alpha_pattern": {".*to_k": 1}}, "a.to_k", {"lora_down.weight": (4, 8)})
    with pytest.raises(AdapterError, match="whole matrices"):
        peft_told({"alpha": 3, "r": 4}, "a.to_k", {"lokr_w1": (2, 2), "lokr_w2": (4, 4)})
