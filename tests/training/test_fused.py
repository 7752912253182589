"""Our kernels compute what torch's do, and a UNet with them learns the same; they repeat their bits."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdlora import runtime
from sdlora.training.fused import fused, hindrance
from tests.conftest import TinyModel

CUDA = torch.device("cuda", 0)


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
    return pytest.mark.gpu(skip(test))


def test_elsewhere_than_on_a_gpu_there_is_a_reason_not_to_use_them() -> None:
    assert hindrance(torch.device("cpu"), torch.float32).result() == "they are for NVIDIA GPUs"


@on_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_a_gpu_all_of_them_run(dtype: torch.dtype) -> None:
    assert hindrance(CUDA, dtype).result() == ""


@on_gpu
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("channels", "height", "width", "offset"),
    [(64, 8, 8, 0.0), (320, 64, 64, 3.0), (96, 33, 17, 50.0), (2560, 8, 8, 0.0)],
)
def test_groups_are_normalised_as_by_torch(
    channels: int, height: int, width: int, offset: float, silu: bool
) -> None:
    from sdlora.training.kernels import group_norm

    torch.manual_seed(0)
    x = (torch.randn(2, channels, height, width, device=CUDA) * 2 + offset).requires_grad_()
    slope, weight, bias = torch.randn_like(x), *torch.randn(2, channels, device=CUDA)
    wanted = F.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-5)
    wanted = F.silu(wanted) if silu else wanted
    norm = torch.nn.GroupNorm(32, channels).to(CUDA)
    norm.weight.data, norm.bias.data = weight, bias
    found = group_norm(x, norm, silu=silu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.double(), wanted, atol=2e-5)
    back = [torch.autograd.grad(out, x, slope.to(out.dtype))[0].double() for out in (found, wanted)]
    assert torch.allclose(*back, atol=2e-5)


@on_gpu
def test_gates_open_as_by_torch() -> None:
    from sdlora.training.kernels import geglu

    torch.manual_seed(0)
    both = torch.randn(3, 77, 640, device=CUDA, requires_grad=True)
    value, gate = both.chunk(2, dim=-1)
    wanted, found = value * F.gelu(gate), geglu(both)
    assert torch.allclose(found, wanted, atol=1e-5)
    slope = torch.randn_like(wanted)
    assert torch.allclose(*(torch.autograd.grad(out, both, slope)[0] for out in (found, wanted)), atol=1e-5)


@on_gpu
def test_a_unet_with_them_answers_and_learns_the_same_and_is_put_back(
    tiny_sd1: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = tiny_sd1.family
    unet = family.components["unet"].to(CUDA)
    conditioning = family.encode_text(family.tokenize(["a cat"])).map(lambda part: part.to(CUDA))
    torch.manual_seed(0)
    noisy = torch.randn(2, 4, 16, 16, device=CUDA, requires_grad=True)
    states = conditioning.states.expand(2, -1, -1)

    def learned() -> list[Tensor]:
        out = unet(noisy, torch.tensor([10, 500], device=CUDA), states, return_dict=False)[0]
        return [out, *torch.autograd.grad(out.square().mean(), noisy)]

    # cuDNN's convolutions round to 10 bits of mantissa where they may, and to others in each layout
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    try:
        with runtime.kernels(deterministic=True):
            wanted = learned()
            with fused(unet):
                found, again = learned(), learned()
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(found, wanted, strict=True))
        assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))
        assert not any("forward" in vars(module) for module in unet.modules())
    finally:
        unet.to(family.device)
