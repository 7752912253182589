"""The noise process keeps its algebra."""

import pytest
import torch
from diffusers import DDIMScheduler

from sdlora.errors import ModelError
from sdlora.noise import NoiseProcess, Prediction


def process(prediction: Prediction, zero_terminal: bool = False) -> NoiseProcess:
    return NoiseProcess.scaled_linear(prediction, zero_terminal_snr=zero_terminal)


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_the_schedule_equals_that_of_diffusers(zero_terminal: bool) -> None:
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=zero_terminal,
    ).alphas_cumprod
    ours = process("v_prediction", zero_terminal).alphas_bar
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_noising_and_v_equal_those_of_diffusers() -> None:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, noise, timesteps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    ours = process("v_prediction")
    noisy = scheduler.add_noise(latents, noise, timesteps)
    assert torch.allclose(ours.add(latents, noise, timesteps), noisy, atol=1e-5)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    assert torch.allclose(ours.target(latents, noise, timesteps), velocity, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_target_predicts_the_latents(prediction: Prediction) -> None:
    ours = process(prediction)
    latents, noise, timesteps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 300, 700])
    noisy, target = ours.add(latents, noise, timesteps), ours.target(latents, noise, timesteps)
    assert torch.allclose(ours.predicted(noisy, target, timesteps), latents, atol=1e-4)


def test_snr_falls_to_zero_after_the_rescale_only() -> None:
    last = torch.tensor([999])
    assert process("v_prediction", True).snr(last).item() == 0
    # abar_999 = 0.00466, hence SNR = 0.00466 / 0.99534
    assert process("epsilon").snr(last).item() == pytest.approx(0.00468, rel=1e-2)


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be combined"):
        process("epsilon", True)


def test_a_foreign_schedule_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="squaredcos_cap_v2"):
        NoiseProcess.of_scheduler({"beta_schedule": "squaredcos_cap_v2"})
