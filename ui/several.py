"""Several runs in one pass: values to compare, and datasets that are taught along. Part of the tab Train."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.config import TrainConfig
from sdlora.errors import ConfigError
from sdlora.service.studio import Studio
from ui.form import Form
from ui.handling import told
from ui.wording import label_of

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
_COMPARED = ("optimizer.lr", "adapter.rank", "adapter.alpha", "loop.seed")
_NOTHING = ("Nothing", "")


class Several:
    """The fields. `components` are what decides, by the keys under which handlers get them."""

    def __init__(self, studio: Studio, form: Form[TrainConfig]) -> None:
        self.studio = studio
        self.form = form

    def draw(self) -> None:
        """The fields are here, folded away."""
        title = "Compare settings, or teach several datasets at once"
        with gr.Column(elem_classes="box"), gr.Accordion(title, open=False, elem_id="several"):
            gr.HTML(
                '<p class="dim">All are trained in one pass, which on a GPU is faster than one after the'
                " other. Each makes an adapter of its own; the tab Runs shows them side by side.</p>"
            )
            self.first, self.first_values = self._pair("Compare", shown=True)
            self.second, self.second_values = self._pair("And with each of them", shown=False)
            self.datasets = gr.Dropdown(
                [], multiselect=True, label="Teach these as well", elem_id="several-datasets",
                info="Datasets besides the one above, each as an adapter that is called after it.",
            )  # fmt: skip
            self.triggers = gr.Textbox(
                label="Their trigger words", visible=False, elem_id="several-triggers",
                info="One for each of these in their order, separated by commas. Empty: the word above.",
            )  # fmt: skip

    def _pair(self, label: str, *, shown: bool) -> tuple[gr.Dropdown, gr.Textbox]:
        leaves = {leaf.path: leaf for leaf in self.form.leaves.values()}
        choices = [_NOTHING, *((label_of(leaves[path]), path) for path in _COMPARED)]
        name = "first" if shown else "second"
        with gr.Column(elem_classes="fields"):
            option = gr.Dropdown(choices, value="", label=label, visible=shown, elem_id=f"several-{name}")
            values = gr.Textbox(
                label="Values", info="Separated by commas.", visible=False, elem_id=f"several-{name}-values"
            )
        return option, values

    @property
    def components(self) -> dict[str, Any]:  # Any: gradio's components
        """What decides which runs are trained."""
        return {
            "several.first": self.first, "several.first_values": self.first_values,
            "several.second": self.second, "several.second_values": self.second_values,
            "several.datasets": self.datasets, "several.triggers": self.triggers,
        }  # fmt: skip

    def connect(self) -> None:
        """Who chooses an option is offered values around its present one; datasets may have own words."""
        self.datasets.change(
            lambda chosen: gr.update(visible=bool(chosen)), self.datasets, self.triggers, **_QUIET
        )
        for option, values, more in (
            (self.first, self.first_values, [self.second]),
            (self.second, self.second_values, []),
        ):
            gr.on(
                [option.input], told(self._offer(option, values, more)), None, [values, *more],
                inputs_kwargs={**self.form.components, "option": option}, **_QUIET,
            )  # fmt: skip

    def _offer(self, option: gr.Dropdown, values: gr.Textbox, more: Sequence[gr.Dropdown]) -> Any:
        def offer(**raw: object) -> Updates:
            path = str(raw["option"])
            text = ", ".join(around(path, self.form.values(raw).get(path)))
            shown = {each: gr.update(visible=bool(path)) for each in more}
            return {values: gr.update(value=text, visible=bool(path)), **shown}

        return offer

    def choices(self, folders: Mapping[str, Path]) -> Updates:
        """The datasets to choose from as they are now."""
        return {self.datasets: gr.update(choices=[(name, str(folder)) for name, folder in folders.items()])}

    def configs(self, raw: Mapping[str, Any]) -> tuple[TrainConfig, ...]:  # Any: whatever components hold
        """What each of the runs is told that the fields ask for; mostly it is one.

        Raises ConfigError when they cannot be followed.
        """
        config = self.form.config(raw)
        more = [folder for folder in raw.get("several.datasets") or () if folder != config.data.folder]
        swept = _swept(raw)
        if not more and not swept:
            return (config,)
        folders = [Path(folder) for folder in (config.data.folder, *more)]
        words = [word.strip() for word in str(raw.get("several.triggers") or "").split(",")]
        triggers = [config.data.captions.trigger, *words] if more and any(words) else []
        return self.studio.several(config, datasets=folders, swept=swept, triggers=triggers)


def around(path: str, value: object) -> list[str]:
    """Values that are worth comparing with the present one: seeds that follow it, else half and double."""
    if not isinstance(value, int | float):
        return []
    if path == "loop.seed":
        return [f"{value + more}" for more in range(3)]
    found = [value * factor for factor in (0.5, 1, 2)]
    if isinstance(value, int):
        found = [max(1, round(each)) for each in found]
    return list(dict.fromkeys(f"{each:g}" for each in found))


def _swept(raw: Mapping[str, Any]) -> dict[str, list[str]]:  # Any: whatever components hold
    found: dict[str, list[str]] = {}
    for name in ("first", "second"):
        path = raw.get(f"several.{name}") or ""
        if not path:
            continue
        values = [value.strip() for value in str(raw[f"several.{name}_values"]).split(",") if value.strip()]
        if not values:
            raise ConfigError(f"No values of {path} are given.", "Write some, separated by commas.")
        if path in found:
            raise ConfigError(f"{path} is compared twice.", "Choose another option, or nothing.")
        found[path] = values
    return found
