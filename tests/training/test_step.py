"""A training step equals torch's own recipe, and never lets a bad number near the weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.contracts import Conditioning, Step
from sdlora.network import attach
from sdlora.noise import NoiseProcess
from sdlora.training.ema import Ema
from sdlora.training.step import TrainStep


class OneLayer:
    """A family whose UNet is one 1x1 convolution."""

    title = "one layer"
    device = torch.device("cpu")
    presets = {"attention": ("proj",)}
    noise = NoiseProcess.scaled_linear()

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.dtype = dtype
        layer = nn.Conv2d(4, 4, 1).requires_grad_(False).to(dtype)
        self.components = {"unet": nn.ModuleDict({"proj": layer})}

    def predict(self, noisy, timestep, conditioning):
        return self.components["unet"]["proj"](noisy.to(self.dtype)).float()


def example(seed: int, count: int = 2) -> Step:
    random = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn(2, count, 4, 4, 4, generator=random)
    return Step(
        latents=latents,
        noise=noise,
        timesteps=torch.randint(0, 1000, (count,), generator=random),
        tokens=None,
        conditioning=Conditioning(torch.zeros(count, 1, 1)),
        sizes=None,
        weight=torch.ones(count),
        mask=None,
    )


def made(family: OneLayer | None = None, **values: object) -> SimpleNamespace:
    """A step with everything it works on."""
    shared = {"optimizer.lr": 0.01, "adapter.rank": 2, "adapter.text_encoder": False}
    config = options.build(TrainConfig, shared | {key.replace("__", "."): v for key, v in values.items()})
    family = family or OneLayer()
    network = attach.create(family, config.adapter, seed=0)
    return SimpleNamespace(
        family=family, network=network, config=config, step=TrainStep(family, network, config)
    )


def run(it: SimpleNamespace, *steps: Step, number: int = 0) -> list[float]:
    """One optimizer step over micro-batches; its loss, gradient norm and whether it was left out."""
    with attach.attached(it.family, it.step.working):
        it.step.prepare(number, lr_factor=1.0)
        for step in steps:
            it.step.accumulate(step)
        it.step.update()
    return it.step.result.tolist()


def weights(it: SimpleNamespace) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in it.network.parameters()]


def test_a_step_equals_torch_s_own_recipe() -> None:
    ours, theirs = made(loop__clip=0.5), made()
    optimizer = torch.optim.AdamW(theirs.network.parameters(), lr=0.01, weight_decay=0.01)
    for number in range(3):
        loss, norm, _ = run(ours, example(number), number=number)
        with attach.attached(theirs.family, theirs.network):
            expected = theirs.config.objective.loss(theirs.family, example(number)).mean()
            optimizer.zero_grad()
            expected.backward()
        expected_norm = nn.utils.clip_grad_norm_(theirs.network.parameters(), 0.5)
        optimizer.step()
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        assert norm == pytest.approx(expected_norm.item(), rel=1e-6)
    for mine, other in zip(weights(ours), weights(theirs), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    whole, parts = made(), made(loop__accumulate=2)
    both = example(3, count=4)
    halves = [
        both._replace(
            latents=both.latents[part],
            noise=both.noise[part],
            timesteps=both.timesteps[part],
            conditioning=both.conditioning.map(lambda tensor, part=part: tensor[part]),
            weight=both.weight[part],
        )
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert run(whole, both) == pytest.approx(run(parts, *halves), rel=1e-5)
    for one, other in zip(weights(whole), weights(parts), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_new_adapters_have_nothing_to_keep_and_nothing_to_undo() -> None:
    it = made()
    assert run(it, example(0)._replace(keeps=True)) == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeping_brings_the_answers_of_the_base_back(dtype: torch.dtype) -> None:
    it = made(OneLayer(dtype), optimizer__weight_decay=0)
    for number in range(20):
        run(it, example(number), number=number)
    first = run(it, example(30)._replace(keeps=True), number=20)[0]
    for number in range(21, 60):
        last = run(it, example(30)._replace(keeps=True), number=number)[0]
    assert 0 < last < first / 10


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_moves_nothing_and_says_so(poison: float) -> None:
    it = made(loop__ema=0.9)
    run(it, example(0))
    before = {name: tensor.clone() for name, tensor in it.step.state().items() if "ema" not in name}
    bad = example(1)
    bad.latents[0, 0, 0, 0] = poison
    assert run(it, bad)[2] == 1
    assert all(torch.equal(it.step.state()[name], tensor) for name, tensor in before.items())
    assert run(it, example(2))[2] == 0


def test_state_is_all_that_the_next_step_depends_on() -> None:
    straight, resumed = made(loop__ema=0.9), made(loop__ema=0.9)
    run(straight, example(0))
    resumed.step.restore({name: tensor.clone() for name, tensor in straight.step.state().items()})
    assert run(straight, example(1), number=1) == run(resumed, example(1), number=1)
    for name, tensor in straight.step.state().items():
        assert torch.equal(tensor, resumed.step.state()[name]), name


def test_every_tensor_that_outlives_a_step_keeps_its_address() -> None:
    it = made(loop__ema=0.9)
    before = {name: tensor.data_ptr() for name, tensor in it.step.state().items()}
    grads = [parameter.grad.data_ptr() for parameter in it.network.parameters()]
    run(it, example(0))
    assert before == {name: tensor.data_ptr() for name, tensor in it.step.state().items()}
    assert grads == [parameter.grad.data_ptr() for parameter in it.network.parameters()]


def test_fp16_finds_a_loss_scale_and_learns() -> None:
    it = made(OneLayer(torch.float16))
    it.step.loss_scale.value.fill_(2.0**24)
    results = [run(it, example(0), number=number) for number in range(60)]
    assert results[0][2] == 1 and results[-1][2] == 0
    assert it.step.loss_scale.value < 2.0**24
    assert results[-1][0] < next(result[0] for result in results if not result[2])


def test_fp16_gradients_are_those_of_fp32() -> None:
    half, full = made(OneLayer(torch.float16)), made()
    assert run(half, example(0))[1] == pytest.approx(run(full, example(0))[1], rel=1e-2)


def test_the_average_follows_fast_at_first_and_is_put_back() -> None:
    weight = nn.Parameter(torch.zeros(2))
    ema = Ema([weight], decay=0.99)
    with torch.no_grad():
        weight.fill_(1.0)
    ema.prepare(0)
    ema.update()
    assert ema.average[0].tolist() == pytest.approx([0.9, 0.9])  # 1 - 1/10
    with ema.applied():
        assert weight.tolist() == pytest.approx([0.9, 0.9])
    assert weight.tolist() == [1.0, 1.0]
    ema.prepare(10_000)
    ema.update()
    assert ema.average[0].tolist() == pytest.approx([0.901, 0.901])


def test_copies_in_half_precision_train_as_casting_at_every_use_does() -> None:
    copied, cast = (made(OneLayer(torch.bfloat16)) for _ in range(2))
    run(copied, example(0), number=0)
    cast.step.restore(copied.step.state())
    run(copied, example(1), number=1)
    with attach.attached(cast.family, cast.network):
        cast.config.objective.loss(cast.family, example(1)).mean().backward()
    cast.step.update()
    assert all(torch.equal(*pair) for pair in zip(weights(copied), weights(cast), strict=True))
    assert copied.step.result[1] == cast.step.result[1] > 0
