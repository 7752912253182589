"""A sweep on the command line: a run for every combination, a file each, one picture that compares."""

from pathlib import Path

import pytest
from PIL import Image

from sdlora.adapters import SPECS
from sdlora.cli import main
from sdlora.network.info import inspect
from sdlora.training.run import Run, step_of
from tests.conftest import TinyModel
from tests.pictures import make_folder

WORDS = ["--loop.steps", "2", "--preview.steps", "2", "--loop.device", "cpu", "--loop.batch_size", "2"]


def test_a_sweep_makes_every_combination(
    tiny_sd1: TinyModel, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path / "home"))
    words = ["train", str(image_folder), "--base", str(tiny_sd1.folder), *WORDS, "--output.name", "ball"]
    sweep = ["--sweep", "optimizer.lr=1e-3,1e-4", "--sweep", "adapter.rank=2,4"]
    assert main([*words, *sweep, "--output", str(tmp_path / "out")]) == 0
    found = {file.stem: inspect(file) for file in (tmp_path / "out").glob("*.safetensors")}
    assert set(found) == {f"ball-lr-{rate}-rank-{rank}" for rate in ("1e-3", "1e-4") for rank in (2, 4)}
    assert all(info.ranks == (int(name[-1]),) * 2 for name, info in found.items())
    with Image.open(tmp_path / "out" / "comparison.png") as sheet:
        assert sheet.height > 4 * 64
    runs = [Run.open(tmp_path / "home" / "runs" / name) for name in sorted(found)]
    assert set(runs[0].siblings) == set(runs) and runs[0].comparison.is_file()
    assert main(["resume", runs[2].path.name, runs[0].path.name, "--loop.steps", "3"]) == 0
    assert [step_of(run.checkpoints()[-1]) for run in runs] == [3, 2, 3, 2]


def test_every_kind_starts_from_a_preset(
    tiny_sd1: TinyModel, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path / "home"))
    words = ["train", str(image_folder), "--base", str(tiny_sd1.folder), *WORDS, "--preview.every", "-1"]
    kinds = f"adapter.kind={','.join(SPECS.names())}"
    assert main([*words, "--preset", "quick", "--sweep", kinds, "--output", str(tmp_path / "out")]) == 0
    assert {file.stem.rpartition("-")[2] for file in (tmp_path / "out").glob("*.safetensors")} == set(
        SPECS.names()
    )


def test_each_dataset_is_learned_by_its_own_word(
    tiny_sd1: TinyModel, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path / "home"))
    other = make_folder(tmp_path / "others")
    words = ["train", str(image_folder), str(other), "--base", str(tiny_sd1.folder), *WORDS]
    triggers = ["--data.captions.trigger", "minka", "--data.captions.trigger=rex", "--preview.every", "-1"]
    assert main([*words, *triggers, "--output", str(tmp_path / "out")]) == 0
    found = {file.stem: inspect(file).triggers for file in (tmp_path / "out").glob("*.safetensors")}
    assert found == {"pictures": ("minka",), "others": ("rex",)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sweep", "optimizer.lr="], "names no values"),
        (["--sweep", "adapter.rank=2,2"], "both be"),
        (["--sweep", "adapter.rank=2", "--sweep", "adapter.rank=4"], "twice"),
        (["--sweep", "loop.batch_size=1,2"], "share loop.batch_size"),
        (["--sweep", "adapter.rank=2,4", "--output", "one.safetensors"], "Name a folder"),
        (["--sweep", "adapter.rnk=2,4"], "adapter.rank"),
        (
            ["--sweep", "adapter.rank=2,4", *["--data.captions.trigger", "rex"] * 2],
            "2 trigger words are given",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_told_in_one_sentence(
    words: list[str], said: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path / "home"))
    assert main(["train", str(image_folder), *words]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told
    assert not list((tmp_path / "home" / "runs").glob("*"))
