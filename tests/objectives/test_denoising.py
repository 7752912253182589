"""The denoising loss equals what its papers' formulas give by hand."""

import math

import pytest
import torch

from sdlora.contracts import Conditioning, Step
from sdlora.errors import ConfigError
from sdlora.noise import NoiseProcess
from sdlora.objectives.denoising import Denoising

PROCESS = NoiseProcess.scaled_linear()


class Constant:
    """A family whose UNet always predicts the same."""

    def __init__(self, prediction: torch.Tensor, noise: NoiseProcess = PROCESS) -> None:
        self.noise = noise
        self.prediction = prediction

    def predict(self, noisy, timestep, conditioning):
        return self.prediction


def step_of(noise: torch.Tensor, timesteps: list[int], **changes) -> Step:
    count = len(timesteps)
    step = Step(
        latents=torch.zeros_like(noise),
        noise=noise,
        timesteps=torch.tensor(timesteps),
        tokens=None,
        conditioning=Conditioning(torch.zeros(count, 1, 1)),
        sizes=None,
        weight=torch.ones(count),
        mask=None,
    )
    return step._replace(**changes)


def loss_of(objective: Denoising, error: float, timestep: int, process: NoiseProcess = PROCESS) -> float:
    """The loss when every place is wrong by `error`."""
    noise = torch.zeros(1, 4, 2, 2)
    family = Constant(noise + error, process)
    return objective.loss(family, step_of(noise, [timestep])).item()


def snr(timestep: int) -> float:
    alpha = PROCESS.alphas_bar[timestep].item()
    return alpha / (1 - alpha)


def test_mse_is_the_mean_square() -> None:
    assert loss_of(Denoising(min_snr_gamma=0), 3.0, 500) == pytest.approx(9.0)


@pytest.mark.parametrize("timestep", [0, 300, 999])
def test_min_snr_weight_of_epsilon_is_min_of_snr_and_gamma_over_snr(timestep: int) -> None:
    expected = min(snr(timestep), 5) / snr(timestep)
    assert loss_of(Denoising(min_snr_gamma=5), 1.0, timestep) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("timestep", [0, 300, 999])
def test_min_snr_weight_of_velocity_divides_by_snr_plus_one(timestep: int) -> None:
    process = NoiseProcess(PROCESS.alphas_bar, "v_prediction")
    expected = min(snr(timestep), 5) / (snr(timestep) + 1)
    assert loss_of(Denoising(min_snr_gamma=5), 1.0, timestep, process) == pytest.approx(expected, rel=1e-5)


def test_velocity_at_zero_terminal_snr_has_weight_zero() -> None:
    process = NoiseProcess.scaled_linear("v_prediction", zero_terminal_snr=True)
    assert loss_of(Denoising(min_snr_gamma=5), 1.0, 999, process) == 0


@pytest.mark.parametrize("timestep", [0, 500, 999])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_huber_equals_the_hand_calculation(schedule: str, timestep: int) -> None:
    sigma = snr(timestep) ** -0.5
    c = {
        "constant": 0.1,
        "exponential": math.exp(math.log(0.1) * timestep / 1000),
        "snr": 0.9 / (1 + sigma) ** 2 + 0.1,
    }[schedule]
    root = math.sqrt(0.49 + c * c)
    shared = {"huber_c": 0.1, "huber_schedule": schedule, "min_snr_gamma": 0}
    assert loss_of(Denoising(distance="huber", **shared), 0.7, timestep) == pytest.approx(
        2 * c * (root - c), rel=1e-4
    )
    assert loss_of(Denoising(distance="smooth_l1", **shared), 0.7, timestep) == pytest.approx(
        2 * (root - c), rel=1e-4
    )


def test_a_huge_huber_threshold_is_the_mean_square() -> None:
    objective = Denoising(distance="huber", huber_c=10, huber_schedule="constant", min_snr_gamma=0)
    assert loss_of(objective, 0.1, 500) == pytest.approx(0.01, rel=1e-3)


def test_masks_and_weights_scale_a_samples_loss() -> None:
    noise = torch.zeros(2, 4, 2, 2)
    mask = torch.ones(2, 1, 2, 2)
    mask[1, :, 0] = 0
    step = step_of(noise, [500, 500], mask=mask, weight=torch.tensor([3.0, 1.0]))
    loss = Denoising(min_snr_gamma=0).loss(Constant(noise + 1), step)
    assert loss.tolist() == pytest.approx([3.0, 0.5])


def test_timesteps_cover_exactly_their_range() -> None:
    objective = Denoising(timestep_min=10, timestep_max=12)
    drawn = objective.timesteps(torch.Generator().manual_seed(0), 200)
    assert drawn.dtype == torch.int64 and set(drawn.tolist()) == {10, 11, 12}


def test_a_range_without_timesteps_is_refused() -> None:
    with pytest.raises(ConfigError, match="timestep_min = 9"):
        Denoising(timestep_min=9, timestep_max=8)


def test_noise_offset_moves_whole_channels() -> None:
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    shaped = Denoising(noise_offset=0.5).shape_noise(noise, torch.Generator().manual_seed(2))
    offsets = 0.5 * torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(2))
    assert torch.equal(shaped, noise + offsets)


def test_without_offset_the_noise_is_white() -> None:
    noise = torch.randn(4, 8, 8)
    assert Denoising().shape_noise(noise, torch.Generator()) is noise
