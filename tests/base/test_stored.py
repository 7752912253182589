"""A packed weight is near its original, and its layer is exactly the one that holds the unpacked weight."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sdlora.base.stored import PACKINGS, StoredConv2d, StoredLinear, nf4_levels, store, unpacked_twice

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MAKERS = [
    lambda: nn.Linear(320, 640),
    lambda: nn.Linear(1280, 320, bias=False),
    lambda: nn.Conv2d(96, 128, 3, padding=1),
    lambda: nn.Conv2d(160, 64, 3, stride=2, padding=1),
    lambda: nn.Conv2d(640, 320, 1),
]


def frozen(layer: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    return layer.to(dtype).requires_grad_(False).eval()


def pair(make: object, storage: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """A stored layer, and the plain one that holds its unpacked weight."""
    torch.manual_seed(0)
    plain = nn.Sequential(frozen(make(), dtype))
    stored = copy.deepcopy(plain)
    store(stored, storage, device=CPU)
    assert isinstance(stored[0], StoredLinear | StoredConv2d)
    plain[0].weight.copy_(stored[0].weight)
    return stored[0], plain[0]


def example(layer: nn.Module) -> Tensor:
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    shape = (2, 7, width) if isinstance(layer, nn.Linear) else (2, width, 8, 6)
    return torch.randn(shape).to(layer.weight.dtype).requires_grad_()


def there_and_back(weight: Tensor, storage: str) -> Tensor:
    packing = PACKINGS[storage]
    return packing.unpack(packing.pack(weight), weight.shape, weight.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_is_off_by_a_sixteenth_of_a_value_at_most(dtype: torch.dtype) -> None:
    spread = torch.randn(64, 1) * torch.logspace(-6, 2, 64)[:, None]
    weight = (torch.randn(64, 1024) * spread).to(dtype)
    weight[0] = 0
    # e4m3 has 3 bits behind the point; its smallest step is 2^-9, and scales are at least 2^-14
    rows = weight.float().abs()
    step = (rows.amax(dim=1, keepdim=True) / 448 * 2).clamp(min=2.0**-14) * 2.0**-9
    error = (there_and_back(weight, "fp8").float() - weight.float()).abs()
    assert (error <= torch.maximum(rows / 16, step / 2)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacking_fp8_again_changes_nothing(dtype: torch.dtype) -> None:
    once = there_and_back(torch.randn(2048, 64).to(dtype), "fp8")
    assert torch.equal(there_and_back(once, "fp8"), once)


def test_nf4_has_the_levels_of_the_paper() -> None:
    # QLoRA, appendix E
    told = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    told += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    assert nf4_levels().tolist() == pytest.approx(told, abs=2e-6)


def test_nf4_is_off_by_half_the_widest_gap_at_most() -> None:
    weight = torch.randn(100, 77) * torch.logspace(-3, 1, 100)[:, None]  # no multiple of a block
    blocks = nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    peaks = blocks.abs().amax(dim=1, keepdim=True)
    # half of 1 - 0.696 of the peak, and a sixteenth of the peak's distance from the mean of all
    bound = 0.1520 * peaks + ((peaks - peaks.mean()).abs() / 16).clamp(
        min=(peaks.max() - peaks.mean()) / 2**18
    )
    error = (there_and_back(weight, "nf4") - weight).flatten().abs()
    assert (error <= bound.expand_as(blocks).flatten()[: len(error)]).all()


@pytest.mark.parametrize(("storage", "bits", "off"), [("fp8", 8.1, 0.028), ("nf4", 4.2, 0.095)])
def test_normal_weights_lose_little_and_take_few_bits(storage: str, bits: float, off: float) -> None:
    weight = torch.randn(640, 1280).bfloat16()
    held = sum(part.nbytes for part in PACKINGS[storage].pack(weight))
    assert held * 8 / weight.numel() < bits
    assert (there_and_back(weight, storage) - weight).norm() / weight.norm() < off


@pytest.mark.parametrize("storage", ["full", "fp8", "nf4"])
@pytest.mark.parametrize("make", MAKERS)
def test_a_stored_layer_is_the_one_that_holds_the_unpacked_weight(make: object, storage: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        stored, plain = pair(make, storage, dtype)
        x = example(plain)
        outputs = [layer(x) for layer in (stored, plain)]
        assert torch.equal(*outputs)
        grads = [torch.autograd.grad(output.square().mean(), x)[0] for output in outputs]
        assert torch.equal(*grads)


def test_nothing_is_kept_for_the_backward_pass() -> None:
    stored, _ = pair(MAKERS[0], "fp8")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        stored(example(stored))
    assert kept == []


@pytest.mark.parametrize("make", MAKERS)
def test_a_stored_layer_is_of_its_layer_s_kind(make: object) -> None:
    stored, plain = pair(make, "fp8")
    assert isinstance(stored, type(plain)) and repr(stored).endswith(repr(plain).partition("(")[2])
    assert torch.equal(stored.get_parameter("weight"), plain.weight)
    assert [name for name, _ in stored.named_parameters()] == (["bias"] if plain.bias is not None else [])


def test_small_layers_and_other_layers_stay() -> None:
    network = nn.Sequential(
        nn.Linear(8, 8), nn.LayerNorm(100_000), nn.Embedding(1000, 100), nn.Linear(512, 512)
    )
    store(frozen(network), "nf4", device=CPU)
    assert [type(layer) for layer in network] == [nn.Linear, nn.LayerNorm, nn.Embedding, StoredLinear]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler against torch
def test_compiled_layers_keep_no_unpacked_weight() -> None:
    network = nn.Sequential(frozen(nn.Linear(256, 512)), nn.GELU(), frozen(nn.Linear(512, 256)))
    store(network, "fp8", device=CPU)
    kept: list[Tensor] = []
    keeping = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda t: t
    )
    with unpacked_twice(network), keeping:
        compiled = torch.compile(network, backend="aot_eager_decomp_partition")
        compiled(torch.randn(3, 256, requires_grad=True))
    assert {tensor.shape[0] for tensor in kept if tensor.is_floating_point()} == {3}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler against torch
@pytest.mark.parametrize("storage", ["fp8", "nf4"])
def test_a_compiler_sees_through_stored_layers(storage: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*(frozen(make()) for make in (MAKERS[2], lambda: nn.Conv2d(128, 128, 3))))
    store(network, storage, device=CPU)
    x = torch.randn(1, 96, 8, 8, requires_grad=True)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    outputs = [run(x) for run in (network, compiled)]
    assert torch.equal(*outputs)
    assert torch.equal(*(torch.autograd.grad(output.square().sum(), x)[0] for output in outputs))
