"""Compiled blocks compute what the blocks do, one compilation serves all alike, and failing is no end."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.network.attach import attached, create
from sdlora.training import compile
from sdlora.training.loop import train
from tests.conftest import TinyModel
from tests.training.conftest import MakeRun
from tests.training.test_capture import notices

# what the compiler does inside torch makes torch warn
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The graphs that torch.compile makes from now on; they run as they stand, which takes no compiler."""
    made: list[object] = []
    compiler = torch.compile

    def counting(forward: Callable[..., Tensor], **how: object) -> Callable[..., Tensor]:
        def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
            made.append(graph)
            return graph.forward

        return compiler(forward, backend=keep, **how)

    monkeypatch.setattr(torch, "compile", counting)
    torch._dynamo.reset()
    return made


def test_compiled_blocks_answer_and_learn_the_same_and_are_put_back(
    tiny_sd1: TinyModel, graphs: list[object]
) -> None:
    family = tiny_sd1.family
    unet = family.components["unet"]
    spec = options.build(TrainConfig, {"data.folder": "x", "adapter.text_encoder": False}).adapter
    network = create(family, spec, seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view(parameter.shape))
    conditioning = family.encode_text(family.tokenize(["a cat"]))
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def answer() -> Tensor:
        return family.predict(noisy, torch.tensor([10]), conditioning)

    def learned() -> list[Tensor]:
        loss = family.predict(noisy, torch.tensor([10]), conditioning).square().mean()
        return [loss, *torch.autograd.grad(loss, list(network.parameters()))]

    with attached(family, network):
        expected = learned()
        with compile.compiled(unet):
            found = learned()
            first = len(graphs)
            learned()
            assert len(graphs) == first
            with network.silenced():
                alone = answer()
            learned()
            second = len(graphs)
            with network.silenced():
                assert torch.equal(answer(), alone)
            assert len(graphs) == second
            with compile.uncompiled():
                assert torch.equal(learned()[0], expected[0])
    blocks = sum(name.endswith(("Block2D", "Transformer2DModel")) for name in map(_kind, unet.modules()))
    assert 0 < first < blocks
    assert torch.allclose(alone, answer(), atol=1e-6)
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(found, expected, strict=True))
    assert not any("forward" in vars(module) for module in unet.modules())


def test_a_run_that_cannot_be_compiled_says_so_and_goes_on(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
        raise RuntimeError("no compiler here")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **how: compiler(forward, backend=refuse, **how))
    torch._dynamo.reset()
    run, plain = make_run(loop__compile="always"), make_run()
    train(run)
    train(plain)
    told = next(text for text in notices(run) if "compiled" in text)
    assert told.startswith("The base's blocks could not be compiled: ")
    assert run.adapter.read_bytes()[-4096:] == plain.adapter.read_bytes()[-4096:]


@pytest.mark.parametrize(
    ("seconds", "steps", "forms", "worth"),
    [(0.02, 2000, 1, False), (0.5, 2000, 1, True), (0.5, 2000, 4, False), (0.02, 100_000, 1, True)],
)
def test_compiling_is_for_runs_that_repay_it(seconds: float, steps: int, forms: int, worth: bool) -> None:
    assert compile.repays(seconds, steps, forms=forms) == worth


def _kind(module: torch.nn.Module) -> str:
    return type(module).__name__
