"""SDXL is what diffusers computes."""

import re

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import nn

from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.generation.solvers import SOLVERS
from tests.conftest import TinyModel


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl: TinyModel) -> StableDiffusionXLPipeline:
    """The pipeline of diffusers on the same folder."""
    loaded = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl.folder, add_watermarker=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_text_equals_the_pipelines(tiny_sdxl: TinyModel, pipeline: StableDiffusionXLPipeline) -> None:
    family = tiny_sdxl.family
    for clip_skip, theirs in ((1, None), (2, None), (3, 1), (6, 4)):
        ours = family.encode_text(family.tokenize(["a photo of a dog"]), clip_skip=clip_skip)
        states, _, pooled, _ = pipeline.encode_prompt(
            "a photo of a dog", do_classifier_free_guidance=False, clip_skip=theirs
        )
        assert torch.equal(ours.states, states)
        assert ours.pooled is not None and torch.equal(ours.pooled, pooled)


def test_a_long_prompt_is_pooled_from_its_first_chunk(tiny_sdxl: TinyModel) -> None:
    family = tiny_sdxl.family
    whole = family.encode_text(family.tokenize(["red cat BREAK blue dog"], weighted=True))
    first = family.encode_text(family.tokenize(["red cat"]))
    assert whole.states.shape[1] == 154
    assert whole.pooled is not None and first.pooled is not None
    assert torch.allclose(whole.pooled, first.pooled, atol=1e-6)


def test_predict_equals_the_unet_of_diffusers(
    tiny_sdxl: TinyModel, pipeline: StableDiffusionXLPipeline
) -> None:
    family = tiny_sdxl.family
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([3, 901])
    told = family.encode_text(family.tokenize(["a red cat", ""]))
    sizes = family.sizes([(64, 96), (1023, 8)], [(0, 4), (2, 0)], [(64, 64), (64, 64)])
    told = type(told)(told.states, told.pooled, sizes)
    added = {"text_embeds": told.pooled, "time_ids": sizes}
    expected = pipeline.unet(noisy, timesteps, told.states, added_cond_kwargs=added).sample
    assert torch.equal(family.predict(noisy, timesteps, told), expected)


@pytest.mark.parametrize("solver", ["Euler a", "DPM++ 2M Karras"])
def test_a_picture_equals_the_pipelines(
    tiny_sdxl: TinyModel, pipeline: StableDiffusionXLPipeline, solver: str
) -> None:
    pipeline.scheduler = SOLVERS[solver].build(tiny_sdxl.family.noise, 3)
    expected = pipeline(
        "a red cat", negative_prompt="blue", num_inference_steps=3, guidance_scale=5.0, width=96, height=64,
        generator=[torch.Generator().manual_seed(3)],
    ).images[0]  # fmt: skip
    request = GenerateRequest(
        prompt="a red cat", negative="blue", steps=3, guidance=5.0, seed=3, solver=solver, width=96, height=64
    )
    (ours,) = generate(tiny_sdxl.family, request)
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(expected)).max() <= 1


# UNet + first + second encoder; 722 and 787 are sd-scripts' counts, 6 its embeddings, input and output
@pytest.mark.parametrize(
    ("preset", "layers"),
    [("attention", 560 + 48 + 128), ("attention+mlp", 722 + 72 + 192), ("all+conv", 787 + 6 + 72 + 192)],
)
def test_presets_cover_what_sd_scripts_trains(tiny_sdxl: TinyModel, preset: str, layers: int) -> None:
    patterns = tiny_sdxl.family.presets[preset]
    matched = [
        path
        for network in tiny_sdxl.family.components.values()
        for path, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and any(re.fullmatch(p, path) for p in patterns)
    ]
    assert len(matched) == layers
