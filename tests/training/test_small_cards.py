"""What makes training fit a small card changes no bit of what is learned, and does make it fit."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sdlora.events import Notice, StepDone
from sdlora.loading import load_family
from sdlora.runtime import Runtime
from sdlora.training.loop import Loop, train
from sdlora.training.run import Run
from sdlora.training.session import Session
from tests.training.conftest import MakeRun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SHARED = {
    "loop__device": "cuda",
    "loop__precision": "bf16",
    "loop__deterministic": True,
    "loop__compile": "never",
}


@pytest.fixture(autouse=True)
def tiny_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdlora.base.stored.SMALLEST", 1024)


@pytest.fixture
def whole_card() -> Iterator[None]:
    """After the test the process may take the whole card again."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def learned(run: Run) -> bytes:
    """All that the run's last checkpoint holds."""
    train(run)
    return (run.checkpoints()[-1] / "state.safetensors").read_bytes()


def notices(run: Run) -> list[str]:
    return [event.text for event in run.events()[0] if isinstance(event, Notice)]


@pytest.mark.parametrize("storage", ["fp8", "nf4"])
def test_packed_weights_can_be_captured(make_run: MakeRun, storage: str) -> None:
    captured, plain = (make_run(**SHARED, base__storage=storage, loop__capture=on) for on in (True, False))
    assert learned(captured) == learned(plain)
    assert notices(captured) == []


@pytest.mark.parametrize("storage", ["full", "fp8"])
def test_weights_that_wait_outside_teach_the_same(make_run: MakeRun, storage: str) -> None:
    shared = {**SHARED, "base__storage": storage, "loop__capture": False, "loop__checkpointing": True}
    outside, inside = make_run(**shared, loop__offload=True), make_run(**shared)
    assert learned(outside) == learned(inside)
    assert notices(outside) == []


def test_packed_weights_can_be_compiled(make_run: MakeRun) -> None:
    runs = [make_run(**{**SHARED, "loop__compile": how}, base__storage="fp8") for how in ("always", "never")]
    losses = []
    for run in runs:
        train(run)
        losses.append([event.loss for event in run.events()[0] if isinstance(event, StepDone)])
    assert notices(runs[0]) == []
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_run_that_does_not_fit_goes_on_with_less(make_run: MakeRun, whole_card: None) -> None:
    shared = {**SHARED, "data__resolution": 512, "loop__batch_size": 6, "loop__steps": 3, "data__flip": False}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(make_run(**shared))
    torch.cuda.empty_cache()
    limit = 0.6 * torch.cuda.max_memory_reserved()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    run = make_run(**shared)
    assert train(run).outcome == "finished"
    assert notices(run) and all("memory did not suffice" in text for text in notices(run))
    assert len([event for event in run.events()[0] if isinstance(event, StepDone)]) == 3


def test_while_steps_are_done_only_the_unet_is_on_the_card(make_run: MakeRun) -> None:
    run = make_run(
        **SHARED,
        data__captions__shuffle=False,
        adapter__text_encoder=False,
        adapter__targets="attn2.to_q",
        preview__every=2,
        preview__prompts=("a cat",),
    )
    machine = Runtime.choose("cuda", "bf16")
    family = load_family(run.config.base.model, device=machine.device, dtype=machine.dtype, waiting=True)
    places: list[dict[str, str]] = []

    def look(event: object) -> None:
        if isinstance(event, StepDone):
            places.append({name: place(network) for name, network in family.networks.items()})

    with run.locked():
        session = Session.begin(run, machine, family=family, last=None, tell=look)
        Loop(session, machine).go()
    assert len(places) == 6
    assert all(at == {"unet": "cuda", "text_encoder": "cpu", "vae": "cpu"} for at in places)


def place(network: nn.Module) -> str:
    (found,) = {tensor.device.type for tensor in network.parameters()}
    return found
