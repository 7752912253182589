"""Stable Diffusion 2 is what diffusers computes."""

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.generation.solvers import SOLVERS
from tests.conftest import TinyModel


def test_it_is_told_apart_and_predicts_v(tiny_sd2: TinyModel) -> None:
    assert tiny_sd2.family.title == "Stable Diffusion 2.x"
    assert tiny_sd2.family.noise.prediction == "v_prediction"


def test_clip_skip_counts_the_layer_that_is_left_out(tiny_sd2: TinyModel) -> None:
    family = tiny_sd2.family
    tokens = family.tokenize(["a red cat"])
    states = [family.encode_text(tokens, clip_skip=layer).states for layer in (1, 2, 3)]
    encoder = StableDiffusionPipeline.from_pretrained(tiny_sd2.folder).text_encoder
    hidden = encoder(tokens.ids[:, 0], output_hidden_states=True).hidden_states
    expected = [encoder.final_layer_norm(hidden[layer]) for layer in (-1, -1, -2)]
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(states, expected, strict=True))


def test_a_picture_equals_the_pipelines(tiny_sd2: TinyModel) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd2.folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SOLVERS["DDIM"].build(tiny_sd2.family.noise, 3)
    expected = pipeline(
        "a red cat", negative_prompt="blue", num_inference_steps=3, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    request = GenerateRequest(
        prompt="a red cat", negative="blue", steps=3, guidance=5.0, seed=3, solver="DDIM"
    )
    (ours,) = generate(tiny_sd2.family, request)
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(expected)).max() <= 1
