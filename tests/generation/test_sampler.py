"""Pictures are those of diffusers' pipeline, whatever the batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from sdlora.contracts import Family
from sdlora.errors import Cancelled, ConfigError, OutOfMemory
from sdlora.families.sd1 import StableDiffusion1
from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.generation.solvers import SOLVERS
from sdlora.loading import load_family
from sdlora.network.stack import Entry
from sdlora.noise import NoiseProcess
from tests.conftest import TinyModel

REQUEST = GenerateRequest(prompt="a red cat", negative="blue", steps=3, seed=7, guidance=5.0)


@pytest.fixture(scope="module")
def pipeline(tiny_sd1: TinyModel) -> StableDiffusionPipeline:
    """The pipeline of diffusers on the same folder."""
    loaded = StableDiffusionPipeline.from_pretrained(tiny_sd1.folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures in steps of 1/255."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_picture_equals_the_pipelines(
    tiny_sd1: TinyModel, pipeline: StableDiffusionPipeline, solver: str, guidance: float
) -> None:
    request = replace(REQUEST, solver=solver, guidance=guidance)
    pipeline.scheduler = SOLVERS[solver].build(tiny_sd1.family.noise, request.steps)
    expected = pipeline(
        request.prompt,
        negative_prompt=request.negative,
        num_inference_steps=request.steps,
        guidance_scale=guidance,
        # as a list, so that solvers that draw noise draw it picture by picture
        generator=[torch.Generator().manual_seed(request.seed)],
    ).images[0]
    (ours,) = generate(tiny_sd1.family, request)
    assert difference(ours, expected) <= 1


def test_four_pictures_equal_the_four_single_ones(tiny_sd1: TinyModel) -> None:
    for solver in ("DPM++ 2M Karras", "Euler a"):
        request = replace(REQUEST, solver=solver)
        together = generate(tiny_sd1.family, replace(request, count=4))
        for index, picture in enumerate(together):
            (alone,) = generate(tiny_sd1.family, replace(request, seed=request.seed + index))
            assert difference(picture, alone) <= 1
        assert difference(together[0], together[1]) > 10


def test_what_does_not_fit_at_once_is_drawn_in_smaller_batches(
    tiny_sd1: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, asked = replace(REQUEST, count=3), list[int]()
    expected = generate(tiny_sd1.family, request)
    predict = StableDiffusion1.predict

    def small(self: Family, noisy: Tensor, *told: Any) -> Tensor:
        asked.append(len(noisy))
        if len(noisy) > 2:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")
        return predict(self, noisy, *told)

    monkeypatch.setattr(StableDiffusion1, "predict", small)
    assert max(map(difference, generate(tiny_sd1.family, request), expected)) <= 1
    assert asked == [4, *[2] * 9]
    monkeypatch.setattr(StableDiffusion1, "predict", lambda *told: torch.empty(1 << 60, dtype=torch.uint8))
    with pytest.raises(OutOfMemory, match="64x64 does not fit"):
        generate(tiny_sd1.family, request)


def test_width_and_height_are_the_pictures(tiny_sd1: TinyModel) -> None:
    (picture,) = generate(tiny_sd1.family, replace(REQUEST, width=104, height=64, steps=1))
    assert picture.size == (104, 64)
    with pytest.raises(ConfigError, match="width = 100 is no multiple of 8"):
        generate(tiny_sd1.family, replace(REQUEST, width=100))


def test_every_step_is_told_with_a_preview(tiny_sd1: TinyModel) -> None:
    seen = []
    generate(tiny_sd1.family, replace(REQUEST, count=2), on_step=lambda *step: seen.append(step))
    assert [(done, steps) for done, steps, _ in seen] == [(2, 6), (4, 6), (6, 6)]
    assert all(preview.size == (8, 8) for _, _, preview in seen)


def test_cancelling_stops_at_the_next_step(tiny_sd1: TinyModel) -> None:
    steps: list[int] = []
    with pytest.raises(Cancelled):
        generate(
            tiny_sd1.family,
            REQUEST,
            on_step=lambda done, total, preview: steps.append(done),
            cancelled=lambda: len(steps) == 2,
        )
    assert steps == [1, 2]


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_ends_finite_on_a_zero_terminal_process(tiny_sd1: TinyModel, solver: str) -> None:
    family = replace(
        tiny_sd1.family, noise=NoiseProcess.scaled_linear("v_prediction", zero_terminal_snr=True)
    )
    (picture,) = generate(family, replace(REQUEST, solver=solver))
    assert np.asarray(picture).std() > 1


@pytest.mark.parametrize(
    "noise", [{}, {"prediction_type": "v_prediction"}, {"prediction_type": "v_prediction", "zero": True}]
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_is_what_diffusers_makes_of_the_models_own_schedule(
    solver: str, noise: dict[str, object]
) -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **noise}
    zero = config.pop("zero", False)
    if zero:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    row = SOLVERS[solver]
    expected = getattr(diffusers, row.scheduler)(**{**row.settings, **config})
    expected.set_timesteps(9)
    built = row.build(NoiseProcess.of_scheduler(config), 9)
    assert torch.allclose(built.timesteps, expected.timesteps, rtol=1e-5)
    assert built.config.prediction_type == expected.config.prediction_type
    assert torch.allclose(built.alphas_cumprod, expected.alphas_cumprod, rtol=1e-3, atol=1e-7)
    if hasattr(built, "sigmas"):
        assert torch.allclose(built.sigmas, expected.sigmas, rtol=1e-3)


def test_too_many_steps_for_a_solver_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps = 51"):
        SOLVERS["LCM"].build(NoiseProcess.scaled_linear(), 51)


def test_a_stack_changes_the_picture_and_leaves_no_trace(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    key = "lora_unet_up_blocks_3_attentions_2_proj_out"
    random = torch.Generator().manual_seed(0)
    tensors = {
        f"{key}.lora_down.weight": torch.randn(1, 32, 1, 1, generator=random),
        f"{key}.lora_up.weight": torch.randn(32, 1, 1, 1, generator=random),
    }
    save_file(tensors, tmp_path / "ink.safetensors")
    entry = Entry(tmp_path / "ink.safetensors", weight=2.0)
    (before,) = generate(tiny_sd1.family, REQUEST)
    (stacked,) = generate(tiny_sd1.family, replace(REQUEST, stack=(entry,)))
    (after,) = generate(tiny_sd1.family, REQUEST)
    assert difference(before, stacked) > 10 and difference(before, after) == 0


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_picture_in_bf16_is_like_the_one_in_fp32(request: pytest.FixtureRequest, name: str) -> None:
    tiny: TinyModel = request.getfixturevalue(f"tiny_{name}")
    half = load_family(str(tiny.folder), device="cpu", dtype=torch.bfloat16)
    (ours,), (expected,) = generate(half, REQUEST), generate(tiny.family, REQUEST)
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(expected)).mean() < 8


def test_the_last_preview_has_the_colours_of_the_picture() -> None:
    previews: list[Image.Image] = []
    (picture,) = generate(
        load_family("builtin", device="cpu", dtype=torch.float32),
        GenerateRequest(prompt="a flat icon of a red apple on a blue background", steps=8, guidance=4.0),
        on_step=lambda done, steps, preview: previews.append(preview),
    )
    small = picture.resize(previews[-1].size, Image.Resampling.BOX)
    assert np.abs(np.asarray(previews[-1]).astype(int) - np.asarray(small)).mean() < 40
