"""Runs on the tiny model, in a home of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.training.run import Run
from tests.conftest import TinyModel

MakeRun = Callable[..., Run]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home."""
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def make_run(home: Path, tiny_sd1: TinyModel, image_folder: Path) -> MakeRun:
    """A short run on six pictures with everything random switched on; keywords change its options."""

    def make(**changes: object) -> Run:
        values = {
            "base.model": str(tiny_sd1.folder),
            "data.folder": str(image_folder),
            "data.flip": True,
            "data.captions.shuffle": True,
            "data.captions.dropout": 0.3,
            "adapter.rank": 2,
            "adapter.dropout": 0.2,
            "adapter.targets": r"attn2.to_q|layers.0.self_attn.q_proj",
            "objective.noise_offset": 0.05,
            "optimizer.lr": 1e-3,
            "loop.steps": 6,
            "loop.batch_size": 2,
            "loop.accumulate": 1,
            "loop.ema": 0.9,
            "loop.device": "cpu",
            "loop.save_every": 2,
            "preview.every": -1,
            "preview.steps": 2,
        }
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return Run.create(options.build(TrainConfig, {**values, **changes}), home / "runs")

    return make
