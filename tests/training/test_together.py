"""Runs that train together learn what each would learn alone, and each ends by itself."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file

from sdlora.contracts import Step
from sdlora.data.batches import NO_TRIGGER
from sdlora.errors import ConfigError
from sdlora.events import Event, Notice, PreviewSaved, StepDone
from sdlora.training import measured, preview
from sdlora.training.loop import train
from sdlora.training.run import Run, Status
from sdlora.training.session import Session
from sdlora.training.step import TrainStep
from sdlora.training.together import train_together
from tests.pictures import draw
from tests.training.conftest import MakeRun

ALONE = {"adapter__dropout": 0.0, "loop__steps": 4}


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Four drawn squares with captions."""
    folder = tmp_path / "squares"
    folder.mkdir()
    for number in range(4):
        draw((64, 64), f"hsl({number * 80}, 80%, 50%)").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a ball of colour {number}")
    return folder


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints()[-1] / "state.safetensors")


def losses(run: Run) -> list[float]:
    return [event.loss for event in run.events()[0] if isinstance(event, StepDone)]


def test_each_learns_what_it_would_alone_whatever_the_forms_of_its_batches(
    make_run: MakeRun, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], torch.Size]] = []
    losses_of = TrainStep.losses

    def watched(train_step: TrainStep, step: Step) -> torch.Tensor:
        seen.append((step.members, step.latents.shape))
        return losses_of(train_step, step)

    settings = [
        {"optimizer__lr": 1e-3, "loop__seed": 1, "adapter__rank": 2},
        {"optimizer__lr": 3e-3, "loop__seed": 2, "adapter__rank": 4, "adapter__alpha": 1.0},
        {"data__folder": str(squares), "loop__ema": 0.0, "adapter__kind": "dora"},
        {"data__folder": str(squares), "data__captions__trigger": "x " * 90, "adapter__text_encoder": False},
    ]
    alone = [make_run(**ALONE, **values) for values in settings]
    together = [make_run(**ALONE, **values) for values in settings]
    for run in alone:
        train(run)
    monkeypatch.setattr(TrainStep, "losses", watched)
    ended = train_together(together)
    assert [end.outcome for end in ended.values()] == ["finished"] * 4
    assert len({shape[2:] for _, shape in seen}) > 1
    assert {1, 2} <= {len(members) for members, _ in seen}
    for one, other in zip(alone, together, strict=True):
        assert losses(other) == pytest.approx(losses(one), rel=1e-4)
        expected, found = weights(one), weights(other)
        assert expected.keys() == found.keys()
        moved = [name for name in found if name.startswith("weight/")]
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in moved)
        assert other.adapter.exists()


def test_those_with_a_trigger_keep_what_those_without_leave(make_run: MakeRun) -> None:
    settings = [
        {"data__captions__trigger": "ball", "loop__seed": 1},
        {"data__captions__trigger": ""},
        {"data__captions__trigger": "red", "adapter__text_encoder": False},
    ]
    shared = {**ALONE, "objective__preservation": 0.5, "optimizer__lr": 1e-3}
    alone = [make_run(**shared, **values) for values in settings]
    together = [make_run(**shared, **values) for values in settings]
    for run in alone:
        train(run)
    train_together(together)
    for one, other in zip(alone, together, strict=True):
        assert losses(other) == pytest.approx(losses(one), rel=1e-4)
        found = weights(other)
        for name, tensor in weights(one).items():
            assert not name.startswith("weight/") or torch.allclose(found[name], tensor, atol=1e-5), name
    told = [[event.text for event in run.events()[0] if isinstance(event, Notice)] for run in together]
    assert [NO_TRIGGER in texts for texts in told] == [False, True, False]


@pytest.mark.gpu
def test_captured_steps_of_several_forms_are_those_that_run_uncaptured(make_run: MakeRun) -> None:
    shared = {**ALONE, "loop__device": "cuda", "loop__deterministic": True, "loop__steps": 8}
    states = []
    for capture in (True, False):
        runs = [make_run(**shared, loop__seed=seed, loop__capture=capture) for seed in range(3)]
        train_together(runs)
        assert not [event for event in runs[0].events()[0] if isinstance(event, Notice)]
        states.append([(run.checkpoints()[-1] / "state.safetensors").read_bytes() for run in runs])
    assert states[0] == states[1]


def test_one_ends_early_and_the_others_go_on(make_run: MakeRun) -> None:
    runs = [make_run(**ALONE, loop__seed=seed) for seed in range(3)]
    short = make_run(**{**ALONE, "loop__steps": 2})

    def on_event(run: Run, event: Event) -> None:
        if run is runs[1] and isinstance(event, StepDone) and event.step == 1:
            run.command("stop")

    ended = train_together([short, *runs], on_event=on_event)
    assert ended[runs[1]].outcome == "stopped" and ended[runs[1]].step < 4
    assert (ended[short].outcome, ended[short].step) == ("finished", 2)
    assert all((ended[run].outcome, ended[run].step) == ("finished", 4) for run in (runs[0], runs[2]))
    straight = make_run(**ALONE, loop__seed=1)
    train(straight)
    train(runs[1])
    for name, tensor in weights(straight).items():
        assert torch.allclose(weights(runs[1])[name], tensor, atol=1e-5), name


def test_each_draws_with_its_own_adapter(make_run: MakeRun) -> None:
    preview = {"preview__every": 0, "preview__prompts": ("a cat",)}
    runs = [make_run(**ALONE, **preview, optimizer__lr=rate, loop__seed=3) for rate in (1e-3, 0.1)]
    alone = make_run(**ALONE, **preview, optimizer__lr=0.1, loop__seed=3)
    train(alone)
    train_together(runs)

    def last(run: Run) -> Image.Image:
        pictures = [event for event in run.events()[0] if isinstance(event, PreviewSaved)]
        return Image.open(run.path / pictures[-1].file)

    def apart(run: Run) -> int:
        """The greatest difference of a colour to what was drawn alone."""
        return max(high for _, high in ImageChops.difference(last(run), last(alone)).getextrema())

    assert apart(runs[1]) <= 1 < apart(runs[0])


def test_what_one_does_between_its_steps_is_no_part_of_the_others_steps(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = make_run(**ALONE, preview__every=1)
    other = make_run(**ALONE, loop__save_every=1)

    def slow(session: Session, step: int, **_: object) -> Iterator[Event]:
        time.sleep(2)
        yield Notice(text=f"Drawn after step {step}.")

    monkeypatch.setattr(preview, "draw", slow)
    train_together([drawing, other])
    for run in (drawing, other):
        seconds = [event.seconds for event in run.events()[0] if isinstance(event, StepDone)]
        assert len(seconds) == 4 and max(seconds) < 2


def test_a_run_that_has_ended_is_free_while_the_others_go_on(make_run: MakeRun) -> None:
    short, long = make_run(**{**ALONE, "loop__steps": 1}), make_run(**ALONE)
    found: list[Status] = []

    def on_event(run: Run, event: Event) -> None:
        if run is long and isinstance(event, StepDone) and event.step > 1:
            found.append(short.status)

    train_together([short, long], on_event=on_event)
    assert found[0] == "finished"


def test_what_runs_take_together_is_not_taken_for_what_one_takes(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered: list[object] = []
    monkeypatch.setattr(measured, "remember", lambda *_, **__: remembered.append(1))
    train_together([make_run(**ALONE), make_run(**ALONE, loop__seed=1)])
    assert not remembered


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loop__batch_size": 1}, "loop.batch_size"),
        ({"objective__min_snr_gamma": 1.0}, "objective.min_snr_gamma"),
    ],
)
def test_what_must_be_shared_is_named(make_run: MakeRun, change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train_together([make_run(), make_run(**change)])
