"""Presets: whichever was chosen before, choosing one leaves nothing of it behind."""

from itertools import product

import pytest

from sdlora.config import TrainConfig
from sdlora.errors import ConfigError
from sdlora.options import build
from sdlora.presets import PRESETS, SUBJECTS, preset

ALL = tuple(product(PRESETS, SUBJECTS, ("builtin", "some/model")))


def test_every_preset_says_the_same_options_whatever_the_subject_and_the_base() -> None:
    assert len({frozenset(preset(name, subject=subject, model=model)) for name, subject, model in ALL}) == 1


@pytest.mark.parametrize(("name", "subject", "model"), ALL)
def test_every_preset_is_a_valid_run(name: str, subject: str, model: str) -> None:
    build(TrainConfig, preset(name, subject=subject, model=model))


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("model", ["builtin", "some/model"])
def test_longer_presets_make_more_and_smaller_steps(subject: str, model: str) -> None:
    runs = [build(TrainConfig, preset(name, subject=subject, model=model)) for name in PRESETS]
    steps, rates = [run.loop.steps for run in runs], [run.optimizer.lr for run in runs]
    assert steps == sorted(set(steps)) and rates == sorted(set(rates), reverse=True)


def test_an_unknown_preset_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="quik") as caught:
        preset("quik")
    assert "quick" in caught.value.hint
