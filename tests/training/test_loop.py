"""A run finishes, stops and goes on to the same bytes, and says how it ended whatever happens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.contracts import Step
from sdlora.errors import ConfigError, RunError, SdloraError
from sdlora.events import CheckpointSaved, Notice, Phase, PreviewSaved, RunEnded, RunStarted, StepDone
from sdlora.files import write_atomic
from sdlora.network import sidecar
from sdlora.network.info import inspect
from sdlora.training.loop import train
from sdlora.training.run import Run
from sdlora.training.step import TrainStep
from tests.conftest import TinyModel
from tests.training.conftest import MakeRun


def stop_at(run: Run, step: int):
    """An `on_event` that tells the run to stop after `step`."""

    def on_event(event: object) -> None:
        if isinstance(event, StepDone) and event.step == step:
            run.command("stop")

    return on_event


def of(run: Run, kind: type) -> list:
    return [event for event in run.events()[0] if isinstance(event, kind)]


def changed(run: Run, values: dict[str, object]) -> None:
    """The run's configuration with other values, as a person might edit it."""
    config = options.build(TrainConfig, {**options.flatten(run.config), **values})
    write_atomic(run.path / "config.toml", options.to_toml(config))


def test_a_run_finishes_with_an_adapter_and_its_history(make_run: MakeRun) -> None:
    run = make_run(preview__every=3)
    assert train(run).outcome == "finished"
    assert run.status == "finished" and run.adapter.is_file()
    assert [event.step for event in of(run, StepDone)] == list(range(1, 7))
    assert [event.step for event in of(run, CheckpointSaved)] == [2, 4, 6]
    assert sorted({event.step for event in of(run, PreviewSaved)}) == [0, 3, 6]
    assert {event.name for event in of(run, Phase)} == {"loading the base", "encoding images"}
    (started,) = of(run, RunStarted)
    assert (started.images, started.steps, started.step) == (6, 6, 0)


def test_events_reach_the_listener_in_the_order_of_the_file(make_run: MakeRun) -> None:
    run, heard = make_run(loop__steps=2), []
    train(run, on_event=heard.append)
    assert heard == run.events()[0]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_stopped_and_resumed_run_writes_the_same_bytes(make_run: MakeRun, step: int) -> None:
    keeping = {"objective__preservation": 0.5, "data__captions__trigger": "ball"}
    straight, broken = (make_run(loop__accumulate=2, **keeping) for _ in range(2))
    train(straight)
    assert train(broken, on_event=stop_at(broken, step)).outcome == "stopped"
    assert broken.status == "stopped" and broken.adapter.is_file()
    assert train(broken).outcome == "finished"
    assert broken.adapter.read_bytes() == straight.adapter.read_bytes()
    last = [run.checkpoints()[-1] / "state.safetensors" for run in (straight, broken)]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_equal_runs_have_equal_losses(make_run: MakeRun) -> None:
    first, second = make_run(), make_run()
    train(first)
    train(second)
    assert [event.loss for event in of(first, StepDone)] == [event.loss for event in of(second, StepDone)]


def test_previews_change_nothing(make_run: MakeRun) -> None:
    without, having = make_run(), make_run(preview__every=3)
    train(without)
    train(having)
    assert [e.loss for e in of(without, StepDone)] == [e.loss for e in of(having, StepDone)]


def test_recomputing_activations_changes_no_loss(make_run: MakeRun) -> None:
    plain, frugal = make_run(loop__steps=3), make_run(loop__steps=3, loop__checkpointing=True)
    train(plain)
    train(frugal)
    losses = [[event.loss for event in of(run, StepDone)] for run in (plain, frugal)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "failure", [torch.OutOfMemoryError(), RuntimeError("MPS backend out of memory (allocated: 8.99 GB)")]
)
def test_out_of_memory_the_run_goes_on_with_recomputed_activations(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, failure: RuntimeError
) -> None:
    plain, short = make_run(loop__accumulate=2), make_run(loop__accumulate=2)
    train(plain)
    calls = []
    accumulate = TrainStep.accumulate

    def too_much_at_the_fourth(self: TrainStep, step: Step) -> None:
        calls.append(step)
        if len(calls) == 4:
            raise failure
        accumulate(self, step)

    monkeypatch.setattr(TrainStep, "accumulate", too_much_at_the_fourth)
    assert train(short).outcome == "finished"
    (notice,) = of(short, Notice)
    assert notice.text.startswith("The device's memory did not suffice; ")
    losses = [[event.loss for event in of(run, StepDone)] for run in (plain, short)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_error_without_words_is_told_by_its_kind(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()

    def fail(self: TrainStep, step: Step) -> None:
        raise RuntimeError

    monkeypatch.setattr(TrainStep, "accumulate", fail)
    with pytest.raises(RuntimeError):
        train(run)
    assert "RuntimeError" in of(run, RunEnded)[-1].error


def test_an_adapter_that_changes_nothing_is_told(make_run: MakeRun) -> None:
    run = make_run(loop__steps=1, optimizer__lr=1e-12, optimizer__text_lr=1e-12)
    train(run)
    assert "It changes nothing" in of(run, Notice)[0].text


def test_one_image_is_learned_by_heart(make_run: MakeRun, image_folder: Path) -> None:
    for file in sorted(image_folder.iterdir())[2:]:
        file.unlink()
    run = make_run(
        loop__steps=40,
        loop__batch_size=1,
        loop__accumulate=1,
        loop__ema=0.0,
        adapter__targets="all-linear",
        adapter__rank=16,
        adapter__alpha=16,
        adapter__dropout=0,
        optimizer__lr=1e-2,
        data__flip=False,
        objective__timestep_min=500,
    )
    train(run)
    losses = [event.loss for event in of(run, StepDone)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10]), losses


def test_only_the_unet_is_taught_when_so_told_and_captions_are_then_encoded_once(make_run: MakeRun) -> None:
    run = make_run(adapter__text_encoder=False, data__captions__shuffle=False, loop__steps=2)
    train(run)
    assert "encoding captions" in {event.name for event in of(run, Phase)}
    with safe_open(run.adapter, "pt") as file:
        assert all(key.startswith("lora_unet") for key in list(file.keys()))


def test_a_learning_rate_of_zero_leaves_a_part_out(make_run: MakeRun) -> None:
    run = make_run(optimizer__lr=0, loop__steps=1)
    train(run)
    with safe_open(run.adapter, "pt") as file:
        assert all(key.startswith("lora_te") for key in list(file.keys()))


def test_the_file_tells_how_it_was_made(make_run: MakeRun) -> None:
    noise = {"base__prediction": "v_prediction", "base__zero_terminal": "on"}
    run = make_run(loop__steps=1, data__captions__trigger="zxc", **noise)
    train(run)
    with safe_open(run.adapter, "pt") as file:
        texts = file.metadata()
    assert texts["sdlora.trigger"] == texts["modelspec.trigger_phrase"] == "zxc"
    assert (texts["modelspec.prediction_type"], texts["ss_zero_terminal_snr"]) == ("v", "True")
    assert json.loads(texts["ss_tag_frequency"])["pictures"]["a red ball"] == 1
    config = options.build(TrainConfig, options.from_toml(texts["sdlora.config"]))
    assert config.loop == run.config.loop
    assert "/" not in config.data.folder and "/" not in config.base.model


def test_commands_save_and_draw_between_steps(make_run: MakeRun) -> None:
    run = make_run(loop__save_every=100)

    def on_event(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            run.command("checkpoint")
            run.command("preview")

    train(run, on_event=on_event)
    assert [event.step for event in of(run, CheckpointSaved)] == [2, 6]
    assert [event.step for event in of(run, PreviewSaved)] == [2, 2, 2]


def test_previews_are_pictures_of_fixed_seeds(make_run: MakeRun) -> None:
    run = make_run(preview__every=100, preview__prompts=("a cat",), loop__steps=1, optimizer__lr=1e-9)
    train(run)
    before, after = (Image.open(run.path / event.file) for event in of(run, PreviewSaved))
    assert before.size == (64, 64)
    assert max(high for _, high in before.getextrema()) > 0
    worst = max(abs(a - b) for a, b in zip(before.tobytes(), after.tobytes(), strict=True))
    assert worst <= 1  # the learning rate is nearly zero


def test_the_adapter_shows_its_last_picture_and_has_a_sidecar(make_run: MakeRun) -> None:
    run = make_run(preview__every=100, loop__steps=1, data__captions__trigger="zwx", output__description="A.")
    train(run)
    info = inspect(run.adapter)
    assert info.metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    card = sidecar.read(run.adapter)
    assert (card["activation text"], card["sd version"], card["description"]) == ("zwx", "SD1", "A.")
    shown = sidecar.preview(run.adapter)
    assert shown == run.adapter.with_suffix(".preview.png")
    with Image.open(shown) as beside, Image.open(run.path / "previews" / "step-000001-0.png") as last:
        assert beside.tobytes() == last.tobytes()


def test_a_failing_preview_is_told_and_the_run_goes_on(make_run: MakeRun) -> None:
    run = make_run(preview__every=100, loop__steps=2)
    (run.path / "previews").rmdir()
    (run.path / "previews").write_text("in the way")
    assert train(run).outcome == "finished"
    assert any("Preview 1 failed" in event.text for event in of(run, Notice))


def test_a_stop_while_previews_are_drawn_is_no_failure_of_theirs(make_run: MakeRun) -> None:
    run = make_run(preview__every=100, loop__steps=2)

    def stop(event: object) -> None:
        if isinstance(event, PreviewSaved):
            run.command("stop")

    assert train(run, on_event=stop).outcome == "stopped"
    assert len(of(run, PreviewSaved)) == 1
    assert not [event for event in of(run, Notice) if "failed" in event.text]


def test_a_stop_while_encoding_is_obeyed_and_the_next_start_begins_anew(make_run: MakeRun) -> None:
    run = make_run(loop__steps=2)
    run.command("stop")
    assert train(run).outcome == "stopped"
    assert of(run, StepDone) == [] and not run.adapter.exists()
    assert train(run).outcome == "finished"


def test_a_finished_run_can_be_made_longer(make_run: MakeRun) -> None:
    run = make_run(loop__steps=2)
    train(run)
    changed(run, {"loop.steps": 4})
    assert train(run).step == 4
    assert [event.step for event in of(run, StepDone)] == [1, 2, 3, 4]


def test_only_the_newest_checkpoints_are_kept(make_run: MakeRun) -> None:
    run = make_run(loop__save_every=1, loop__keep=2)
    train(run)
    assert [path.name[-2:] for path in run.checkpoints()] == ["04", "05", "06"]


def test_a_changed_option_is_named_when_a_run_goes_on(make_run: MakeRun) -> None:
    run = make_run()
    train(run, on_event=stop_at(run, 2))
    changed(run, {"optimizer.lr": 0.5, "adapter.rank": 4})
    with pytest.raises(RunError, match=r"adapter.rank was 2 and is 4; optimizer.lr was 0.001 and is 0.5"):
        train(run)
    assert run.status == "failed"


def test_a_changed_caption_is_named_when_a_run_goes_on(make_run: MakeRun, image_folder: Path) -> None:
    run = make_run()
    train(run, on_event=stop_at(run, 2))
    (image_folder / "0-red.txt").write_text("another caption")
    with pytest.raises(RunError, match=r"the image 0-red.png or its caption is another"):
        train(run)


def test_a_damaged_checkpoint_is_one_sentence(make_run: MakeRun) -> None:
    run = make_run()
    train(run, on_event=stop_at(run, 2))
    state = run.checkpoints()[-1] / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(RunError, match="is damaged"):
        train(run)


def test_what_goes_wrong_is_the_run_s_last_word(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(base__model=str(tmp_path / "nowhere"))
    with pytest.raises(SdloraError):
        train(run)
    (ended,) = of(run, RunEnded)
    assert ended.outcome == run.status == "failed" and "nowhere" in ended.error and ended.hint


def test_a_device_that_is_not_there_is_told(make_run: MakeRun) -> None:
    run = make_run(loop__device="cuda:77")
    with pytest.raises(ConfigError, match="cuda:77"):
        train(run)
    assert run.status == "failed"


@pytest.mark.parametrize(
    ("steps", "told", "told_of"), [(40, "25 losses or gradients in a row", 25), (3, "after 3 losses", 3)]
)
def test_losses_that_stay_infinite_end_the_run_with_a_sentence(
    make_run: MakeRun, tiny_sd1: TinyModel, tmp_path: Path, steps: int, told: str, told_of: int
) -> None:
    broken = shutil.copytree(tiny_sd1.folder, tmp_path / "broken")
    (weights,) = (broken / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["conv_out.bias"].fill_(1e30)
    save_file(tensors, weights, metadata={"format": "pt"})
    run = make_run(base__model=str(broken), loop__steps=steps, loop__batch_size=1, loop__accumulate=1)
    with pytest.raises(SdloraError, match=f"{told}.*not finite.*optimizer.lr"):
        train(run)
    assert not run.adapter.exists()
    assert len(of(run, Notice)) == told_of and of(run, StepDone) == []
    assert run.status == "failed"
