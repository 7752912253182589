"""AdamW is the paper's, and can be scaled and left out on the device."""

import torch

from sdlora.optimizers.adamw import AdamW


def built(lr: float = 0.1) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    group = {"params": [weight], "lr": lr, "name": "unet"}
    return weight, AdamW(lr=lr).build([group], device=torch.device("cpu"))


def test_the_first_step_equals_the_hand_calculation() -> None:
    weight, optimizer = built()
    weight.grad = torch.tensor([0.5, 0.25])
    optimizer.step()
    # decay: w (1 - lr wd); then the first Adam step is lr times the gradient's sign
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.1 * 0.01) - 0.1
    assert torch.allclose(weight.detach(), expected, atol=1e-6)


def test_the_learning_rate_is_a_tensor_that_a_captured_step_can_read() -> None:
    weight, optimizer = built()
    optimizer.param_groups[0]["lr"].zero_()
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == [1.0, -2.0]


def test_gradients_are_divided_by_grad_scale() -> None:
    weight, optimizer = built()
    weight.grad = torch.tensor([8.0, 8.0])
    optimizer.grad_scale = torch.tensor(4.0)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert torch.allclose(optimizer.state[weight]["exp_avg"], torch.tensor([0.2, 0.2]))


def test_a_step_with_found_inf_leaves_everything_as_it_was() -> None:
    weight, optimizer = built()
    weight.grad = torch.ones(2)
    optimizer.step()
    before = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    weight.grad = torch.tensor([float("nan"), float("inf")])
    optimizer.grad_scale = torch.tensor(1.0)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(weight, before[0]) and torch.equal(optimizer.state[weight]["exp_avg"], before[1])
    assert optimizer.state[weight]["step"] == 1
