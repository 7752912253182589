"""Captured steps do exactly what uncaptured ones do, for every shape, and stand back where they cannot."""

import pytest
import torch

from sdlora.events import Notice, StepDone
from sdlora.training.capture import CapturedStep
from sdlora.training.loop import train
from sdlora.training.run import Run
from tests.training.conftest import MakeRun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def trained(run: Run, stop_at: int = 0) -> Run:
    def on_event(event: object) -> None:
        if isinstance(event, StepDone) and event.step == stop_at:
            run.command("stop")

    train(run, on_event=on_event)
    return run


def notices(run: Run) -> list[str]:
    return [event.text for event in run.events()[0] if isinstance(event, Notice)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_captured_equals_uncaptured_bit_for_bit(make_run: MakeRun, precision: str) -> None:
    shared = {
        "loop__device": "cuda",
        "loop__deterministic": True,
        "loop__precision": precision,
        "loop__accumulate": 2,
        "loop__steps": 8,
        "objective__preservation": 0.5,
        "data__captions__trigger": "cat",
    }
    captured, plain = make_run(**shared), make_run(**shared, loop__capture=False)
    trained(captured)
    trained(plain)
    assert not any("captured" in text for text in notices(captured)), notices(captured)
    assert captured.adapter.read_bytes()[-4096:] == plain.adapter.read_bytes()[-4096:]
    states = [run.checkpoints()[-1] / "state.safetensors" for run in (captured, plain)]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_a_captured_run_goes_on_to_the_same_bytes(make_run: MakeRun) -> None:
    straight, broken = (
        make_run(loop__device="cuda", loop__deterministic=True, loop__steps=12) for _ in range(2)
    )
    trained(straight)
    trained(broken, stop_at=2)
    assert trained(broken).adapter.read_bytes() == straight.adapter.read_bytes()


def test_recomputed_activations_can_be_captured(make_run: MakeRun) -> None:
    run = trained(make_run(loop__device="cuda", loop__checkpointing=True, adapter__dropout=0))
    assert notices(run) == []


def test_a_step_that_cannot_be_captured_runs_uncaptured_and_says_so(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: CapturedStep, work: object) -> torch.cuda.CUDAGraph:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(CapturedStep, "_graph", refuse)
    shared = {"loop__device": "cuda", "loop__deterministic": True}
    run, plain = make_run(**shared), make_run(**shared, loop__capture=False)
    assert trained(run).status == "finished"
    assert notices(run) == [
        "The training step could not be captured: operation not permitted when stream is capturing."
    ]
    assert run.adapter.read_bytes()[-4096:] == trained(plain).adapter.read_bytes()[-4096:]
