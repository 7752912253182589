"""Our files in diffusers with peft: the same delta on every layer."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from sdlora.adapters.lora import LoraSpec
from sdlora.network.attach import create
from sdlora.network.codec import save
from tests.conftest import TinyModel
from tests.network.test_attach import awake


def weights(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """The weight of every layer, under the component and path that it has without adapters."""
    found = {}
    for component in ("unet", "text_encoder"):
        root: nn.Module = getattr(pipeline, component)
        for name, parameter in root.named_parameters():
            if name.endswith("weight") and "lora_" not in name:
                found[f"{component}.{name.replace('.base_layer', '')}"] = parameter.detach().clone()
    return found


@pytest.mark.parametrize("targets", ["attention", "all+conv"])
@pytest.mark.parametrize("format", ["kohya", "peft"])
@pytest.mark.filterwarnings("ignore")  # theirs
def test_diffusers_gives_the_same_deltas(
    format: str, targets: str, tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    network = awake(create(tiny_sd1.family, LoraSpec(rank=3, alpha=5.0, targets=targets), seed=0))
    path = tmp_path / "x.safetensors"
    save(path, network.adapters, family_name="sd1", dtype="fp32", format=format)  # type: ignore[arg-type]  # a Format
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_sd1.folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    before = weights(pipeline)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=["unet", "text_encoder"])
    after = weights(pipeline)
    adapted = {
        f"{layer.component}.{layer.path}.weight": adapter for layer, adapter in network.adapters.items()
    }
    for name, weight in before.items():
        if name in adapted:
            delta = adapted[name].delta(weight)
            torch.testing.assert_close(after[name] - weight, delta, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(after[name], weight)
