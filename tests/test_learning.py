"""Training teaches the shipped base something: an effect in pictures that a broken trainer cannot reach."""

from pathlib import Path

import pytest
import torch

from sdlora.config import TrainConfig
from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.loading import load_family
from sdlora.network.stack import Entry
from sdlora.options import build
from sdlora.training.loop import train
from sdlora.training.run import Run

INK = Path(__file__).parents[1] / "datasets" / "ink-style"
PROMPT = "an ink icon of a strawberry on a white background"


def colour(entries: tuple[Entry, ...]) -> float:
    """How colourful two pictures are: mean distance of the largest and the smallest channel, in [0,255]."""
    family = load_family("builtin", device="cpu", dtype=torch.float32)
    request = GenerateRequest(prompt=PROMPT, seed=3, count=2, steps=6, stack=entries)
    pictures = [torch.tensor(list(p.convert("RGB").tobytes())).view(-1, 3) for p in generate(family, request)]
    channels = torch.stack(pictures).float()
    return float((channels.amax(-1) - channels.amin(-1)).mean())


@pytest.mark.slow
def test_twenty_five_steps_teach_the_shipped_base_to_draw_in_ink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path))
    monkeypatch.delenv("SDLORA_BUILTIN", raising=False)
    values = {
        "data.folder": str(INK),
        "loop.steps": 25,
        "loop.batch_size": 4,
        "adapter.alpha": 16.0,
        "optimizer.lr": 6e-3,
        "optimizer.text_lr": 1e-3,
        "preview.every": -1,
        "loop.save_every": 25,
    }
    run = Run.create(build(TrainConfig, values), tmp_path / "runs")
    assert train(run).outcome == "finished"
    assert colour((Entry(run.adapter),)) < 0.5 * colour(())
