"""Train: what is taught, by which recipe, and what it will take; one button starts it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.config import TrainConfig
from sdlora.errors import ModelAbsent, SdloraError
from sdlora.options import build, flatten, from_toml, to_toml
from sdlora.presets import MODEL, PRESETS, SUBJECT, Preset, preset
from sdlora.service.studio import Studio, TrainPlan, Verdict
from ui.form import VALID, Form
from ui.handling import told
from ui.markup import chips, code, duration, facts, failure, note, size
from ui.several import Several
from ui.wording import SECTIONS

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
_FIRST = "balanced"
DATASET, NAME, TRIGGER = "data.folder", "output.name", "data.captions.trigger"
_UNNAMED = TrainConfig().output.name


class TrainTab:
    """The tab. `start` is pressed to train; `shown` is everything that another tab may set."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.form = Form(TrainConfig, sources=_sources(studio))
        self.several = Several(studio, self.form)
        self._layout()
        for component, update in self.choose(_FIRST, "style", "builtin").items():
            component.value = update["value"]
        self.checked = [self.plan, self.start, self.toml]
        self.inputs = {**self.form.components, **self.several.components}
        self.form.connect()
        self.several.connect()
        self._connect()

    @property
    def recipe(self) -> list[Any]:  # Any: gradio's components
        """What decides the recipe: its length, the subject, the base."""
        return [self.preset, self.form.components[SUBJECT], self.form.components[MODEL]]

    @property
    def words(self) -> list[Any]:  # Any: as above
        """What decides how a dataset's own settings are shown."""
        return [self.form.components[NAME], self.form.components[TRIGGER], *self.recipe]

    @property
    def shown(self) -> list[Any]:  # Any: gradio's components
        """Everything that a run's settings or a dataset change here."""
        return [*self.form.components.values(), *self.checked]

    @property
    def sourced(self) -> list[Any]:  # Any: gradio's components
        """Everything that offers or shows what lies on this machine."""
        return list(self.inputs.values())

    def _layout(self) -> None:
        with gr.Row(elem_classes="split", equal_height=False):
            with gr.Column(scale=8, min_width=330):
                self._what()
                self._recipe()
                self.several.draw()
                self._advanced()
            with gr.Column(scale=5, min_width=330, elem_classes="sticky"):
                self._check()

    def _what(self) -> None:
        with gr.Column(elem_classes="box"):
            gr.HTML(_step(1, "What to teach"))
            with gr.Column(elem_classes="fields"):
                self.form.draw("data", "output", level="basic")

    def _recipe(self) -> None:
        with gr.Column(elem_classes="box"):
            gr.HTML(_step(2, "Recipe"))
            self.preset = gr.Radio(
                [(_card(each), name) for name, each in PRESETS.items()],
                value=_FIRST, label="Length", elem_classes="cards-radio", elem_id="preset",
            )  # fmt: skip
            with gr.Column(elem_classes="fields"):
                self.form.draw("base", "adapter", "optimizer", "loop", "preview", level="basic")

    def _advanced(self) -> None:
        with gr.Column(elem_classes="box"):
            gr.HTML(
                '<h3>Everything else</h3><p class="dim">Good as it is. Each has its reason beside it.</p>'
            )
            for name in self.form.sections():
                with (
                    gr.Accordion(SECTIONS[name], open=False),
                    gr.Column(elem_classes="fields"),
                ):
                    self.form.draw(name)
            with gr.Accordion("These settings as a file", open=False):
                self.load = gr.UploadButton(
                    "Load settings (.toml)", file_types=[".toml"], elem_id="load-settings"
                )
                self.toml = gr.HTML(elem_id="settings-toml")

    def _check(self) -> None:
        with gr.Column(elem_classes="box"):
            gr.HTML(_step(3, "Check and start"))
            self.plan = gr.HTML(elem_id="plan")
            self.start = gr.Button("Start training", variant="primary", size="lg", elem_id="start-training")
            gr.HTML(
                '<p class="dim">It runs by itself: you may close this page. Watch it in the tab Runs.</p>'
            )

    def _connect(self) -> None:
        every = self.form.components
        gr.on(
            [component.change for component in self.inputs.values()], told(self.check), None, self.checked,
            inputs_kwargs=self.inputs, trigger_mode="always_last", **_QUIET,
        )  # fmt: skip
        gr.on(
            [component.select for component in self.recipe], told(self.choose), self.recipe,
            list(every.values()), **_QUIET,
        )  # fmt: skip
        every[DATASET].input(told(self.suit), [every[DATASET], *self.words], list(every.values()), **_QUIET)
        self.load.upload(told(self._load), self.load, list(every.values()), **_QUIET)

    def check(self, **raw: object) -> Updates:
        """What the run, or several in one pass, would take, or why it cannot start."""
        try:
            configs = self.several.configs(raw)
            words = self._plan(configs) if raw[DATASET] else _NO_DATASET
        except SdloraError as error:
            return {self.plan: failure(error), self.start: gr.update(interactive=False)}
        return {
            self.plan: words,
            self.start: gr.update(
                value="Start training" if len(configs) == 1 else f"Train these {len(configs)} together",
                interactive=bool(raw[DATASET]),
            ),
            self.toml: code(to_toml(self.form.config(raw)), name="settings.toml"),
        }

    def valid(self, **raw: object) -> list[dict[str, Any]]:  # Any: gradio's answers
        """For each of the `inputs` whether its value will do; what the last ones say is judged by `check`."""
        return [*self.form.check(**raw), *[VALID] * len(self.several.components)]

    def _plan(self, configs: Sequence[TrainConfig]) -> str:
        """What the runs will take, in words. Raises SdloraError when they cannot start."""
        several = len(configs) > 1
        try:
            plan = self.studio.plan_together(configs) if several else self.studio.plan(configs[0])
        except ModelAbsent as error:
            return note(error.message, kind="warn", hint="The run downloads it first.")
        verdict = self.studio.verdict(configs[0], plan)
        if several and verdict:
            verdict = replace(verdict, ways=())  # they are told for one run
        names = _several(configs, plan.memory_bytes) if several else ""
        return names + _told(plan, verdict, device=self.studio.machine.title)

    def begin(self, **raw: object) -> str:
        """A run with these settings, or several in one pass, have started; the first one's name."""
        configs = self.several.configs(raw)
        if len(configs) > 1:
            return self.studio.start_together(configs)[0]
        return self.studio.start(configs[0])

    def sources(self, chosen: str | None = None) -> Updates:
        """The datasets and models to choose from as they are now, the dataset called `chosen` chosen."""
        updates: Updates = {
            self.form.components[path]: gr.update(choices=found)
            for path, found in _sources(self.studio).items()
        }
        updates |= self.several.choices(self.studio.datasets.folders())
        if chosen:
            updates[self.form.components[DATASET]]["value"] = str(self.studio.datasets.folder(chosen))
        return updates

    def suit(
        self, folder: str | None, name: str, trigger: str, preset: str, subject: str, model: str
    ) -> Updates:
        """What goes with the dataset in `folder` is shown: its name, and what it says or its newest run had.

        What goes with another does not stay. A name or a word that is no dataset's and no run's is a
        person's own, and does.
        """
        runs = list(self.studio.runs.configs())
        known = {path.resolve(): each for each, path in self.studio.datasets.folders().items()}
        at = Path(folder or "").resolve()
        used = {Path(run.data.folder).resolve(): run for run in reversed(runs)}
        own: dict[str, object] = {SUBJECT: subject, TRIGGER: "", **self.studio.datasets.settings(at)}
        if at in used:
            own |= {SUBJECT: used[at].output.subject, TRIGGER: used[at].data.captions.trigger}
        if name.strip() in {"", _UNNAMED, *known.values(), *(run.output.name for run in runs)}:
            own = {NAME: known.get(at, _UNNAMED), **own}
        if trigger.strip() not in {"", *self._triggers(known), *(run.data.captions.trigger for run in runs)}:
            del own[TRIGGER]
        recipe = self.choose(preset, str(own[SUBJECT]), model) if own[SUBJECT] != subject else {}
        return recipe | self.form.show(own)

    def _triggers(self, folders: Iterable[Path]) -> Iterator[str]:
        """The words that datasets bring along."""
        for folder in folders:
            with suppress(SdloraError):
                yield str(self.studio.datasets.settings(folder).get(TRIGGER, ""))

    def again(self, name: str) -> Updates:
        """The settings of the run called `name`."""
        return self.form.show_config(self.studio.runs.config(name))

    def resume(self, kept: Mapping[str, Any]) -> Updates:  # Any: whatever a browser has kept
        """The form that was filled in and not sent."""
        held = self.form.sound(kept)
        return {self.form.components[key]: gr.update(value=value) for key, value in held.items()}

    def choose(self, name: str, subject: str, model: str) -> Updates:
        """The recipe called `name`, for what is taught to which base."""
        return self.form.show(preset(name, subject=subject, model=model))

    def _load(self, file: str) -> Updates:
        """What the file says is shown; what it does not say stays as it is."""
        name = Path(file).name
        said = from_toml(Path(file).read_text(encoding="utf-8", errors="replace"), name)
        try:
            checked = flatten(build(TrainConfig, said))
        except SdloraError as error:
            raise SdloraError(f"{name}: {error.message}", error.hint) from error
        return self.form.show({path: checked[path] for path in said})


_KINDS = {"fits": "good", "tight": "warn", "too big": "bad"}
_NO_DATASET = note("No dataset is chosen.", hint="Choose one above, or bring pictures in the tab Datasets.")


def _sources(studio: Studio) -> Mapping[str, list[tuple[str, str]]]:
    """Text options whose values are things on this machine."""
    datasets = [(name, str(folder)) for name, folder in studio.datasets.folders().items()]
    return {DATASET: datasets, MODEL: list(studio.models.names())}


def _several(configs: Sequence[TrainConfig], memory: int) -> str:
    """How many runs there will be, what they need together, and what they will be called."""
    names = chips(config.output.name for config in configs)
    return note(f"{len(configs)} runs are trained in one pass, with about {size(memory)} of memory.") + names


def _card(preset: Preset) -> str:
    """A preset in two lines: its name, then what it means."""
    return f"{preset.title}\n{preset.summary}"


def _step(number: int, title: str) -> str:
    return f'<h2 class="step-title"><b aria-hidden="true">{number}</b>{escape(title)}</h2>'


def _told(plan: TrainPlan, verdict: Verdict | None, *, device: str) -> str:
    rows = [
        ("Steps", f"{plan.steps:,}"),
        ("Pictures", f"{plan.images:,}"),
        ("Each is seen", f"{plan.passes:.0f} times" if plan.passes >= 1.5 else "about once"),
        (
            "Time",
            f"about {duration(plan.seconds)}" if plan.seconds is not None else "known after the first steps",
        ),
        ("Memory", f"about {size(plan.memory_bytes)}"),
    ]
    warnings = "".join(note(text, kind="warn") for text in plan.warnings)
    fits = note(verdict.text, kind=_KINDS[verdict.fit], hint=verdict.hint) if verdict else ""
    return f'<p class="dim">{escape(plan.base)}. {escape(device)}.</p>' + facts(rows) + fits + warnings
