"""Runs of one pass side by side: their pictures of one prompt and seed, and their losses. Part of Runs."""

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.config import TrainConfig
from sdlora.options import Value, walk
from sdlora.service.progress import RunView
from sdlora.service.runs import Siblings
from sdlora.service.studio import Studio
from ui.chart import loss_curves
from ui.handling import told
from ui.markup import duration, file_url
from ui.widget import widget

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
_LIVE = ("starting", "running")
_LABELS = {leaf.path: leaf.label for leaf in walk(TrainConfig)} | {"data.folder": "Dataset"}


class Compare:
    """The box. `shown` is all that changes in it, `grid` says which run is opened or used."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        with gr.Column(elem_classes="box", visible=False, elem_id="compare") as self.box:
            self.head = gr.HTML()
            with gr.Row(elem_classes="actions"):
                self.stop = gr.Button("Stop and save all", elem_id="stop-all", scale=0, min_width=150)
                self.resume = gr.Button("Resume all", elem_id="resume-all", scale=0, min_width=150)
            self.grid = widget("grid", None, elem_id="grid")
            self.loss = gr.HTML(elem_id="losses")
        self.shown = [self.box, self.head, self.stop, self.resume, self.grid, self.loss]

    def connect(self, chosen: gr.State) -> None:
        """The buttons do what they say to the runs of the `chosen` one's pass."""
        self.stop.click(told(self._stop), chosen, None, **_QUIET)
        self.resume.click(told(self._resume), chosen, None, **_QUIET)

    def show(self, siblings: Siblings | None, chosen: str) -> Updates:
        """The pass of the run called `chosen`, or nothing when it was trained alone."""
        if siblings is None:
            return {self.box: gr.update(visible=False)}
        views = siblings.views
        titles = {view.name: title(own) or view.name for view, own in zip(views, siblings.own, strict=True)}
        curves = {titles[view.name]: view.losses for view in views}
        return {
            self.box: gr.update(visible=True),
            self.head: _head(siblings),
            self.stop: gr.update(visible=sum(view.status in _LIVE for view in views) > 1),
            self.resume: gr.update(visible=len(_resumable(siblings)) > 1),
            self.grid: {
                "columns": columns(siblings),
                "chosen": chosen,
                "prompts": _prompts(views),
                "runs": [
                    _card(view, titles[view.name], best=view.name == _lowest(siblings)) for view in views
                ],
            },
            self.loss: loss_curves(curves, steps=max(view.steps for view in views)),
        }

    def _stop(self, chosen: str) -> None:
        siblings = self.studio.runs.siblings(chosen)
        for view in siblings.views if siblings else ():
            if view.status in _LIVE:
                self.studio.runs.command(view.name, "stop")
        gr.Info("They stop after the present step, and save.")

    def _resume(self, chosen: str) -> None:
        if siblings := self.studio.runs.siblings(chosen):
            self.studio.resume(*_resumable(siblings))


def title(own: Mapping[str, Value | None]) -> str:
    """What sets a run apart: "Learning rate 0.0001, rank 8"."""
    words = [
        f"{_LABELS.get(path, path)} {_text(path, value)}" for path, value in own.items() if value is not None
    ]
    return ", ".join([*words[:1], *(word[0].lower() + word[1:] for word in words[1:])])


def columns(siblings: Siblings) -> int:
    """How many runs stand side by side: those that share all but the last of two options, else all."""
    counts = [len({own[path] for own in siblings.own}) for path in siblings.own[0]]
    whole = len(counts) > 1 and math.prod(counts) == len(siblings.views)
    return counts[-1] if whole else len(siblings.views)


def _text(path: str, value: Value) -> str:
    if path == "data.folder":
        return Path(str(value)).name
    return f"{value:g}" if isinstance(value, float) else str(value)


def _head(siblings: Siblings) -> str:
    live = sum(view.status in _LIVE for view in siblings.views)
    count = len(siblings.views)
    words = f"{live} of {count} are being trained." if live else f"All {count} have ended."
    link = ""
    if siblings.picture and not live:
        name = f"{siblings.views[0].name}-comparison.png"
        link = (
            f' <a href="{file_url(siblings.picture)}" download="{escape(name)}">Download the comparison</a>'
        )
    return f'<h3>Trained in one pass</h3><p class="dim">{words}{link}</p>'


def _resumable(siblings: Siblings) -> list[str]:
    ended = (view for view in siblings.views if view.status not in _LIVE)
    return [view.name for view in ended if view.status != "finished"]


def _lowest(siblings: Siblings) -> str:
    """The run with the lowest loss at its end, where that says something: of one dataset and seed."""
    views = siblings.views
    unlike = {"data.folder", "loop.seed"} & siblings.own[0].keys()
    if unlike or not all(view.losses and view.status not in _LIVE for view in views):
        return ""
    return min(views, key=lambda view: view.losses[-1][2]).name


def _prompts(views: tuple[RunView, ...]) -> list[str]:
    """The prompts of the previews, by their numbers; where runs have their own, the first one's."""
    found = {preview.index: preview.prompt for view in reversed(views) for preview in view.previews}
    return [found[index] for index in sorted(found)]


def _card(view: RunView, words: str, *, best: bool) -> dict[str, object]:
    last = {preview.index: preview for preview in view.previews}
    states = [view.path / saved.file for saved in view.checkpoints]
    file = view.adapter or (states[-1] if states else None)
    left = f", {duration(view.seconds_left)} left" if view.seconds_left else ""
    return {
        "name": view.name,
        "title": words,
        "status": view.status,
        "line": f"Step {view.step:,} of {view.steps:,}{left}",
        "loss": f"{view.losses[-1][2]:.4f}" if view.losses else "",
        "best": best,
        "file": str(file) if file else "",
        "pictures": {str(i): {"url": file_url(view.path / p.file), "step": p.step} for i, p in last.items()},
    }
