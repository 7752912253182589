"""A home of its own for each test, on the tiny model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sdlora.home import Home
from sdlora.service.studio import Studio
from tests.conftest import TinyModel


@pytest.fixture
def studio(tmp_path: Path, tiny_sd1: TinyModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """A studio whose built-in base is the tiny model."""
    monkeypatch.setenv("SDLORA_BUILTIN", str(tiny_sd1.folder))
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path / "home"))
    made = Studio(Home.default(), device="cpu")
    yield made
    made.close()
