"""Stable Diffusion 1 is what diffusers computes."""

import torch
from diffusers import StableDiffusionPipeline

from tests.conftest import TinyModel


def test_predict_equals_the_unet_of_diffusers(tiny_sd1: TinyModel) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd1.folder)
    family = tiny_sd1.family
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([3, 901])
    conditioning = family.encode_text(family.tokenize(["a red cat", ""]))
    expected = pipeline.unet(noisy, timesteps, conditioning.states).sample
    assert torch.equal(family.predict(noisy, timesteps, conditioning), expected)


def test_text_states_equal_the_pipeline(tiny_sd1: TinyModel) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd1.folder)
    ours = tiny_sd1.family.encode_text(tiny_sd1.family.tokenize(["a photo of a dog"])).states
    theirs, _ = pipeline.encode_prompt("a photo of a dog", "cpu", 1, False)
    assert torch.equal(ours, theirs)


def test_clip_skip_equals_an_encoder_without_its_last_layers(tiny_sd1: TinyModel) -> None:
    encoder = StableDiffusionPipeline.from_pretrained(tiny_sd1.folder).text_encoder
    encoder.encoder.layers = encoder.encoder.layers[:-2]
    tokens = tiny_sd1.family.tokenize(["a photo of a dog"])
    ours = tiny_sd1.family.encode_text(tokens, clip_skip=3).states
    assert torch.allclose(ours, encoder(tokens.ids[:, 0]).last_hidden_state, atol=1e-6)


def test_text_states_have_gradients_in_the_encoder(tiny_sd1: TinyModel) -> None:
    weight = tiny_sd1.family.components["text_encoder"].get_parameter(
        "encoder.layers.0.self_attn.q_proj.weight"
    )
    weight.requires_grad_(True)
    try:
        tiny_sd1.family.encode_text(tiny_sd1.family.tokenize(["a cat"])).states.sum().backward()
        assert weight.grad is not None and weight.grad.abs().sum() > 0
    finally:
        weight.requires_grad_(False)
        weight.grad = None


def test_latents_and_pictures_equal_the_autoencoder_of_diffusers(tiny_sd1: TinyModel) -> None:
    vae = StableDiffusionPipeline.from_pretrained(tiny_sd1.folder).vae
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    latents = tiny_sd1.family.encode_images(pixels)
    assert torch.allclose(latents, vae.encode(pixels).latent_dist.mean * 0.18215, atol=1e-6)
    expected = vae.decode(latents / 0.18215).sample.clamp(-1, 1)
    assert torch.allclose(tiny_sd1.family.decode(latents), expected, atol=1e-5)
