"""A person's folders."""

from pathlib import Path

import pytest

from sdlora.home import ELSEWHERE, Home, name_elsewhere


def test_folders_lie_under_the_root_unless_absolute(tmp_path: Path) -> None:
    home = Home(tmp_path, adapters=Path("/elsewhere/loras"))
    assert home.runs == tmp_path / "runs"
    assert home.adapters == Path("/elsewhere/loras")


def test_the_variable_names_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path))
    assert Home.default().root == tmp_path
    monkeypatch.delenv("SDLORA_HOME")
    monkeypatch.chdir(tmp_path)
    assert Home.default().cache == tmp_path / "cache"


def test_folders_of_other_tools_come_after_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ELSEWHERE.values():
        monkeypatch.setenv(variable, "")  # put back afterwards
    (tmp_path / "extra_model_paths.yaml").write_text(
        "a111:\n  base_path: /webui\n  checkpoints: sd\n  loras: lora\ncomfy:\n  is_default: true\n"
        "  loras: /comfy\n"
    )
    name_elsewhere("--ckpt-dir", str(tmp_path / "one"))
    name_elsewhere("--ckpt-dir", str(tmp_path / "two"))
    (tmp_path / "more.yaml").write_text("x:\n  checkpoints: three")
    name_elsewhere("--extra-model-paths-config", str(tmp_path / "more.yaml"))
    home = Home.at(tmp_path)
    own = home.models, home.adapters
    three = (tmp_path / "one", tmp_path / "two", Path("/webui/sd"), tmp_path / "three")
    assert home.model_folders == (own[0], *three)
    assert home.adapter_folders == (own[1], Path("/comfy"), Path("/webui/lora"))
