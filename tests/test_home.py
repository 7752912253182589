"""A person's folders."""

from pathlib import Path

import pytest

from sdlora.home import Home


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
