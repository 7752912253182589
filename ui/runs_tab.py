"""Runs: watch training, stop and resume it, look at its previews, and take its adapter along."""

import hashlib
from html import escape
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.service.progress import RunView
from sdlora.service.studio import Studio
from ui.chart import loss_curve
from ui.compare import Compare
from ui.handling import told
from ui.markup import code, duration, empty, facts, file_url, note, size, when
from ui.widget import widget

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_LIVE = ("starting", "running")
_NOTHING = empty("No runs yet", "Start one in the tab Train. It goes on when you close this page.")
_NO_PREVIEWS = {
    True: '<p class="dim">The first pictures come before the first step.</p>',
    False: '<p class="dim">This run drew no pictures.</p>',
}
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments


class RunsTab:
    """The tab. `chosen` holds the name of the run that is shown, `state` the file to use of it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._layout()
        self.shown = [
            part for part in vars(self).values() if isinstance(part, Block) and part is not self.timer
        ] + self.compare.shown
        self._connect()

    def _layout(self) -> None:
        self.chosen = gr.State("")
        self.seen = gr.State("")
        with gr.Row(elem_classes="split", equal_height=False):
            with gr.Column(scale=1, min_width=240, elem_classes="box side"):
                gr.HTML("<h2>Runs</h2>")
                self.list = widget("runs", {"chosen": "", "items": []}, elem_id="runs")
                self.nothing = gr.HTML(_NOTHING)
            with gr.Column(scale=3, min_width=320, visible=False) as self.detail:
                self._detail()
        self.timer = gr.Timer(1.0)

    def _detail(self) -> None:
        with gr.Column(elem_classes="box"):
            self.head = gr.HTML(elem_id="run-head")
            with gr.Row(elem_classes="actions", equal_height=True):
                self.state = gr.Dropdown(
                    [], label="State to use", elem_id="run-state", min_width=180, scale=0
                )
                self.use = gr.Button("Use in Generate", elem_id="run-use", scale=0, min_width=150)
                self.resume = gr.Button("Resume", elem_id="run-resume", scale=0, min_width=110)
                self.stop = gr.Button("Stop and save", elem_id="run-stop", scale=0, min_width=130)
                self.preview = gr.Button("Preview now", scale=0, min_width=120)
                self.save = gr.Button("Save now", scale=0, min_width=100)
                self.again = gr.Button("Train again…", elem_id="run-again", scale=0, min_width=120)
                self.remove = gr.Button("Move to trash", elem_id="run-remove", scale=0, min_width=120)
        self.compare = Compare(self.studio)
        with gr.Row(equal_height=False, elem_classes="split"):
            with gr.Column(elem_classes="box", min_width=300, scale=5):
                gr.HTML("<h3>Previews</h3>")
                self.no_previews = gr.HTML()
                self.previews = widget("previews", None, elem_id="previews")
            with gr.Column(elem_classes="box", min_width=300, scale=6):
                gr.HTML("<h3>Loss</h3>")
                self.loss = gr.HTML(elem_id="loss")
        with gr.Column(elem_classes="box"):
            self._files()

    def _files(self) -> None:
        with gr.Accordion("Settings of this run", open=False):
            self.settings = gr.HTML(elem_id="run-settings")
        with gr.Accordion("Log", open=False):
            self.log = gr.Textbox(
                lines=12, max_lines=12, interactive=False, show_label=False, label="Log", elem_id="run-log"
            )

    def _connect(self) -> None:
        self.timer.tick(
            told(self.show), [self.chosen, self.seen], self.shown, concurrency_limit=None, **_QUIET
        )
        for listed in (self.list, self.compare.grid):
            listed.select(told(self._choose), None, self.shown, **_QUIET)
        self.compare.connect(self.chosen)
        self.resume.click(told(self._resume), self.chosen, self.shown, **_QUIET)
        self.stop.click(told(self._stop), self.chosen, None, **_QUIET)
        self.preview.click(told(self._preview), self.chosen, None, **_QUIET)
        self.save.click(told(self._save), self.chosen, None, **_QUIET)
        self.remove.click(told(self._remove), self.list, self.shown, js=_SURE, **_QUIET)

    def show(self, chosen: str, seen: str = "") -> Updates:
        """The tab as it must look now; next to nothing when the page, which has `seen` a look, shows it."""
        views = self.studio.runs.views()
        view = next((view for view in views if view.name == chosen), views[0] if views else None)
        name = view.name if view else ""
        siblings = self.studio.runs.siblings(name) if view else None
        look = hashlib.sha256(repr((views, name, siblings)).encode()).hexdigest()
        if look == seen:
            return {self.seen: seen}
        updates: Updates = {
            self.seen: look,
            self.chosen: name,
            self.list: {"chosen": name, "items": [_listed(view) for view in views]},
            self.nothing: gr.update(visible=not views),
            self.detail: gr.update(visible=bool(views)),
        }
        if view is not None:
            updates |= self._detail_of(view)
            updates |= {
                self.settings: code(self.studio.runs.config_text(name), name=f"{name}.toml"),
                self.log: self.studio.runs.log(name),
                **self.compare.show(siblings, name),
            }
        return updates

    def _detail_of(self, view: RunView) -> Updates:
        live = view.status in _LIVE
        finished = view.status == "finished"
        states = _states(view)
        return {
            self.head: _head(view),
            self.state: gr.update(
                choices=states, value=states[-1][1] if states else None, visible=bool(states)
            ),
            self.use: gr.update(visible=bool(states), variant="primary" if finished else "secondary"),
            self.resume: gr.update(visible=not live and not finished, variant="primary"),
            self.stop: gr.update(visible=live, variant="primary"),
            self.preview: gr.update(visible=view.status == "running"),
            self.save: gr.update(visible=view.status == "running"),
            self.again: gr.update(visible=not live),
            self.remove: gr.update(visible=not live),
            self.no_previews: gr.update(visible=not view.previews, value=_NO_PREVIEWS[live]),
            self.previews: _pictures(view),
            self.loss: loss_curve(
                view.losses, steps=view.steps, marks=tuple(saved.step for saved in view.checkpoints)
            ),
        }

    def _choose(self, event: gr.EventData) -> Updates:
        return self.show(event.name)

    def _resume(self, chosen: str) -> Updates:
        self.studio.resume(chosen)
        return self.show(chosen)

    def _stop(self, chosen: str) -> None:
        self.studio.runs.command(chosen, "stop")
        gr.Info("It stops after the present step, and saves.")

    def _preview(self, chosen: str) -> None:
        self.studio.runs.command(chosen, "preview")
        gr.Info("Previews are drawn after the present step.")

    def _save(self, chosen: str) -> None:
        self.studio.runs.command(chosen, "checkpoint")
        gr.Info("A checkpoint is saved after the present step.")

    def _remove(self, listed: dict[str, Any]) -> Updates:  # Any: the widget's JSON
        if not listed["chosen"]:  # the person thought better of it
            return {self.seen: ""}
        self.studio.runs.remove(listed["chosen"])
        return self.show("")


_SURE = """(list) => [confirm(`Move the run “${list.chosen}” and its adapter to the trash folder?`)
    ? list : {...list, chosen: ""}]"""


def _states(view: RunView) -> list[tuple[str, str]]:
    """The adapters that the run has made so far, the newest last: (what it is called, file)."""
    states = [(f"Step {saved.step:,}", str(view.path / saved.file)) for saved in view.checkpoints]
    return [*states, ("The result", str(view.adapter))] if view.adapter else states


def _listed(view: RunView) -> dict[str, object]:
    percent = round(100 * view.step / view.steps) if view.steps else 0
    lines = {
        "starting": "Starting…",
        "running": f"{percent} %" + (f", {duration(view.seconds_left)} left" if view.seconds_left else ""),
        "finished": f"{view.steps:,} steps, {when(view.began)}",
    }
    line = lines.get(view.status, f"{percent} % done, {when(view.began)}")
    percent_shown = percent if view.status in _LIVE else None
    return {"name": view.name, "status": view.status, "line": line, "percent": percent_shown}


def _head(view: RunView) -> str:
    percent = 100 * view.step / view.steps if view.steps else 0
    bar = (
        f'<div class="bar" role="progressbar" aria-label="Training progress" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{percent:.0f}"><span style="width:{percent:.2f}%"></span></div>'
    )
    title = f'<h2>{escape(view.name)} <span class="badge {view.status}">{view.status}</span></h2>'
    link = ""
    if view.adapter:
        name = escape(view.adapter.name)
        link = f'<p><a href="{file_url(view.adapter)}" download="{name}">Download {name}</a></p>'
    return title + bar + _phase(view) + facts(_figures(view)) + _messages(view) + link


def _phase(view: RunView) -> str:
    if view.phase is not None:
        words = f"{view.phase.name.capitalize()}: {view.phase.done} of {view.phase.total}"
        return f'<p class="dim">{escape(words)}</p>'
    return '<p class="dim">Loading the base model…</p>' if view.status == "starting" else ""


def _figures(view: RunView) -> list[tuple[str, str]]:
    rows = [("Step", f"{view.step:,} of {view.steps:,}")]
    if view.seconds_left is not None:
        rows.append(("Time left", duration(view.seconds_left)))
    if view.seconds_per_step:
        rows.append(("Speed", f"{1 / view.seconds_per_step:.2f} steps/s"))
    if view.losses:
        rows.append(("Loss", f"{view.losses[-1][2]:.4f}"))
    if view.memory:
        rows.append(("Memory", size(view.memory)))
    if view.images:
        rows.append(("Pictures", f"{view.images}"))
    return rows + ([("Device", view.device)] if view.device else [])


def _messages(view: RunView) -> str:
    text = "".join(note(notice.text, kind="warn", hint=notice.hint) for notice in view.notices)
    if view.error:
        text += note(view.error, kind="bad", hint=view.hint)
    if view.status == "interrupted":
        text += note(
            "Its process ended without finishing.",
            kind="warn",
            hint="Resume goes on exactly from the last checkpoint.",
        )
    return text


def _pictures(view: RunView) -> dict[str, object]:
    prompts: dict[int, str] = {}
    for preview in view.previews:
        prompts[preview.index] = preview.prompt
    return {
        "run": view.name,
        "steps": sorted({preview.step for preview in view.previews}),
        "prompts": [prompts[index] for index in sorted(prompts)],
        "pictures": {f"{p.step}:{p.index}": file_url(view.path / p.file) for p in view.previews},
    }
