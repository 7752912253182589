"""An option in a sentence is called as the field that a person has to find."""

import pytest

from sdlora.config import TrainConfig
from sdlora.options import Leaf, walk
from ui.wording import in_labels, label_of


@pytest.mark.parametrize("leaf", list(walk(TrainConfig)), ids=lambda leaf: leaf.path)
def test_every_option_is_called_by_its_label(leaf: Leaf) -> None:
    told = in_labels(f"Lower {leaf.path}, or set --{leaf.path} to 0. Not {leaf.path}.")
    assert told.count(f"{label_of(leaf)}”") == 3 and leaf.path not in told and told.endswith("”.")


@pytest.mark.parametrize("name", ["my.loop.steps", "loop.steps.png", "loop.stepsize", "a-loop.steps"])
def test_what_only_holds_an_options_name_is_left_alone(name: str) -> None:
    assert in_labels(f"{name} is damaged.") == f"{name} is damaged."


def test_what_is_folded_away_is_told_with_its_place() -> None:
    told = in_labels("lower loop.batch_size, switch loop.checkpointing on")
    assert told == "lower “Batch size”, switch “Training loop › Gradient checkpointing” on"
