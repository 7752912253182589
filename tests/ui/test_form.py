"""The form is a walk over the option tree: each option has one component, and nothing is lost between."""

import asyncio
from typing import Any, TypeVar

import gradio as gr
import pytest

from sdlora.config import TrainConfig
from sdlora.errors import ConfigError
from sdlora.generation.request import GenerateRequest
from sdlora.options import build, flatten, walk
from sdlora.presets import PRESETS, SUBJECTS, preset
from ui.form import Form

Tree = TypeVar("Tree")
Raw = dict[str, Any]  # Any: whatever a component holds


@pytest.fixture(params=[TrainConfig, GenerateRequest])
def form(request: pytest.FixtureRequest) -> Form[Any]:
    return asyncio.run(drawn(request.param))


@pytest.fixture
def training() -> Form[TrainConfig]:
    return asyncio.run(drawn(TrainConfig))


async def drawn(tree: type[Tree]) -> Form[Tree]:
    """The form in a page. In an event loop, because Gradio would open one and leave it open."""
    with gr.Blocks(analytics_enabled=False):
        form = Form(tree)
        form.draw()
        form.connect()
    return form


def raw(form: Form[Any]) -> Raw:
    """What the components hold before anyone touches them."""
    return {key: component.value for key, component in form.components.items()}


def test_every_option_that_is_not_hidden_has_one_component(form: Form[Any]) -> None:
    paths = {leaf.path for leaf in walk(form.tree) if leaf.meta.level != "hidden"}
    assert {leaf.path for leaf in form.leaves.values()} == paths
    assert list(form.components) == list(form.leaves)


def test_untouched_components_say_the_defaults(form: Form[Any]) -> None:
    assert form.config(raw(form)) == form.tree()


def test_every_component_has_a_label_and_a_reason(form: Form[Any]) -> None:
    assert [key for key, c in form.components.items() if not c.label or not c.info] == []


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_shown_configuration_is_read_back_equal(
    training: Form[TrainConfig], name: str, subject: str
) -> None:
    config = build(TrainConfig, {**preset(name, subject=subject), "preview.prompts": "a cat\na dog"})
    shown = {component: update["value"] for component, update in training.show_config(config).items()}
    held = {key: shown.get(component, component.value) for key, component in training.components.items()}
    assert flatten(training.config(held)) == flatten(config)


def test_options_of_a_plug_in_that_is_not_chosen_are_left_out(training: Form[TrainConfig]) -> None:
    kinds = training.leaves["optimizer.kind"].meta.choices
    for kind in kinds:
        held = {**raw(training), "optimizer.kind": kind}
        assert training.config(held).optimizer.kind == kind


def test_a_wrong_value_is_told_at_its_own_field(training: Form[TrainConfig]) -> None:
    verdicts = dict(
        zip(training.components, training.check(**{**raw(training), "loop.steps": -3}), strict=True)
    )
    wrong = {key: verdict["message"] for key, verdict in verdicts.items() if not verdict["is_valid"]}
    assert list(wrong) == ["loop.steps"]
    assert "at least 1" in wrong["loop.steps"] or "from 1" in wrong["loop.steps"]


def test_an_emptied_number_is_told_at_its_field(training: Form[TrainConfig]) -> None:
    verdicts = dict(
        zip(training.components, training.check(**{**raw(training), "loop.steps": None}), strict=True)
    )
    assert not verdicts["loop.steps"]["is_valid"]


def test_a_fraction_of_a_step_is_refused_and_not_rounded(training: Form[TrainConfig]) -> None:
    with pytest.raises(ConfigError, match="loop.steps"):
        training.config({**raw(training), "loop.steps": 1.5})
