"""The command line's door: words, exit codes and sentences."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdlora import options
from sdlora.cli import main, split_options
from sdlora.commands import kohya
from sdlora.config import TrainConfig
from sdlora.home import ELSEWHERE
from tests.conftest import TinyModel


def test_help_is_instant_because_torch_stays_out() -> None:
    code = "import sys; from sdlora.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert 'Did you mean "train"?' in capsys.readouterr().err


def test_an_option_of_the_tree_where_none_is_taken_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "--loop.steps", "3"]) == 2
    assert '"--loop.steps"' in capsys.readouterr().err


def test_options_of_the_tree_may_stand_anywhere() -> None:
    words = ["--loop.steps", "5", "data", "--data.flip", "--base", "x", "--adapter.rank=4"]
    options = {"loop.steps": "5", "data.flip": "true", "adapter.rank": "4"}
    assert split_options(words) == (options, ["data", "--base", "x"])


def test_a_repeated_option_becomes_a_list() -> None:
    assert split_options(["--preview.prompts", "a", "--preview.prompts", "b"])[0] == {
        "preview.prompts": "a\nb"
    }


def test_options_lists_every_leaf_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    from sdlora.config import TrainConfig
    from sdlora.options import walk

    assert main(["options", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["option"] for row in rows] == [leaf.path for leaf in walk(TrainConfig)]


def test_an_unforeseen_error_is_a_sentence_and_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdlora.commands import options

    monkeypatch.setattr(options, "run", lambda arguments: 1 / 0)
    assert main(["options"]) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told
    assert "Traceback" not in told


def test_folders_elsewhere_are_flags_of_every_command(
    tmp_path: Path, tiny_sd1: TinyModel, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ELSEWHERE.values():
        monkeypatch.setenv(variable, "")  # put back afterwards
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path / "home"))
    words = ["train", str(image_folder), "--base", tiny_sd1.folder.name, "--run", str(tmp_path / "run")]
    small = ["--loop.steps", "1", "--preview.every", "-1", "--adapter.rank", "1", "--loop.device", "cpu"]
    assert main([*words, *small]) == 2  # nobody knows the name
    assert main(["--ckpt-dir", str(tiny_sd1.folder.parent), *words, *small]) == 0
    told = options.from_toml((tmp_path / "run" / "config.toml").read_text(), "config.toml")
    assert told["base.model"] == str(tiny_sd1.folder)  # a resumed run needs no flag
    assert main(["train", "--lora-dir"]) == 2


def test_flags_of_sd_scripts_lead_to_options_that_exist() -> None:
    named = set(re.findall(r"--(\w+\.[\w.]*\w)", " ".join(kohya.FLAGS.values())))
    assert named and named <= {leaf.path for leaf in options.walk(TrainConfig)}
