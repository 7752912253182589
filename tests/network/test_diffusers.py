"""Our files in diffusers with peft: the same delta on every layer."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from sdlora.adapters import SPECS
from sdlora.network.attach import create
from sdlora.network.codec import save
from tests.conftest import TinyModel
from tests.network.test_attach import awake

# family, kind, targets and form; DoRA is read there in PEFT's form alone
READ_THERE = [
    ("sd1", "lora", "attention", "kohya"),
    ("sd1", "lora", "all+conv", "kohya"),
    ("sd1", "lora", "all+conv", "peft"),
    ("sd1", "dora", "all+conv", "peft"),
    ("sdxl", "lora", "all+conv", "kohya"),
    ("sdxl", "dora", "attention", "peft"),
]


def weights(pipeline: DiffusionPipeline, components: list[str]) -> dict[str, Tensor]:
    """The weight of every layer, under the component and path that it has without adapters."""
    return {
        f"{component}.{name.replace('.base_layer', '')}": parameter.detach().clone()
        for component in components
        for name, parameter in getattr(pipeline, component).named_parameters()
        if name.endswith("weight") and "lora_" not in name
    }


def pipeline_of(tiny: TinyModel) -> DiffusionPipeline:
    if tiny.family.name == "sdxl":
        return StableDiffusionXLPipeline.from_pretrained(tiny.folder)
    return StableDiffusionPipeline.from_pretrained(
        tiny.folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


@pytest.mark.parametrize(("family", "kind", "targets", "format"), READ_THERE)
@pytest.mark.filterwarnings("ignore")  # theirs
def test_diffusers_gives_the_same_deltas(
    family: str, kind: str, targets: str, format: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tiny: TinyModel = request.getfixturevalue(f"tiny_{family}")
    spec = SPECS.get(kind)(rank=3, alpha=5.0, targets=targets)
    network = awake(create(tiny.family, spec, seed=0))
    path = tmp_path / "x.safetensors"
    save(path, network.adapters, family_name=family, dtype="fp32", format=format)  # type: ignore[arg-type]  # a Format
    pipeline, components = pipeline_of(tiny), list(tiny.family.components)
    before = weights(pipeline, components)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=components)
    after = weights(pipeline, components)
    adapted = {f"{layer.component}.{layer.path}.weight": a for layer, a in network.adapters.items()}
    assert adapted.keys() <= before.keys()
    for name, weight in before.items():
        if name in adapted:
            delta = adapted[name].delta(weight)
            torch.testing.assert_close(after[name] - weight, delta, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(after[name], weight)
