"""Datasets: bring pictures, see what is wrong with them, write their captions."""

from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.service.datasets import Change, Overview, Report
from sdlora.service.studio import Studio
from ui.handling import emptied, told
from ui.markup import chips, empty, facts, file_url, note
from ui.widget import widget

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
Removed = tuple[str, str]  # the picture's name, "" for the whole dataset, and the place in the trash

_NONE = empty(
    "No pictures yet",
    "Drop some above: ten to thirty varied pictures of one thing or one style work well. Captions come as "
    ".txt files of the same name, or you write them here.",
)
_KINDS = ["image", ".txt", ".caption", ".zip", ".jsonl"]


class DatasetsTab:
    """The tab. `chosen` is the dropdown with the dataset's name; `train` leads on."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._layout()
        self.shown = [
            self.chosen, self.health, self.grid, self.nothing, self.tools, self.train, self.message,
            self.undo, self.removed, self.base, self.preview, self.apply, self.changes, self.whole, self.name,
            *self.samples.values(),
        ]  # fmt: skip
        self._connect()

    def _layout(self) -> None:
        self.removed = gr.State(("", ""))
        self.changes = gr.State(())
        with gr.Row(elem_classes="split", equal_height=False):
            with gr.Column(scale=2, min_width=300, elem_classes="box"):
                self._bring()
            with gr.Column(scale=3, min_width=320, elem_classes="box"):
                self.health = gr.HTML(elem_id="health")
                self.base = gr.Dropdown(
                    list(self.studio.models.names()),
                    value=self.studio.models.names()[0][1],
                    label="Check for this base",
                    elem_id="check-base",
                )
                self.train = gr.Button(
                    "Train with this dataset", variant="primary", visible=False, elem_id="to-train"
                )
                with gr.Accordion("Rename or remove", open=False, visible=False) as self.whole:
                    self.name = gr.Textbox(label="Name", elem_id="dataset-name")
                    with gr.Row(elem_classes="actions"):
                        self.rename = gr.Button("Rename", elem_id="dataset-rename", scale=0, min_width=120)
                        self.throw = gr.Button(
                            "Move to trash", elem_id="dataset-remove", scale=0, min_width=120
                        )
        with gr.Column(elem_classes="box"):
            self.message = gr.HTML(elem_id="datasets-message", elem_classes="at-need")
            self.undo = gr.Button("Undo", visible=False, size="sm", elem_id="undo-remove")
            self.nothing = gr.HTML(_NONE)
            with gr.Row(elem_classes="actions middle"):
                self.samples = {
                    name: gr.Button(
                        f"Try with the sample set “{name}”", visible=False, min_width=200, scale=0
                    )
                    for name in self.studio.datasets.samples()
                }
            with gr.Accordion("Change many captions at once", open=False, visible=False) as self.tools:
                self._bulk()
            self.grid = widget("captions", None, elem_id="captions")

    def _bring(self) -> None:
        with gr.Row(elem_classes="actions"):
            self.chosen = gr.Dropdown(
                self._choices(), value=None, label="Dataset", elem_id="dataset", scale=1, min_width=180
            )
            self.new = gr.Textbox(
                label="New dataset", placeholder="my-cat", elem_id="new-dataset", scale=1, min_width=120
            )
            self.create = gr.Button("Create", elem_id="create-dataset", scale=0, min_width=80)
        self.drop = gr.File(
            label="Drop pictures, captions (.txt) or a .zip here", file_count="multiple", file_types=_KINDS,
            height=150, elem_id="upload", elem_classes="drop",
        )  # fmt: skip
        with gr.Accordion("Use a folder on this machine", open=False):
            self.path = gr.Textbox(
                label="Folder", placeholder="/home/me/pictures/my-cat", elem_id="folder-path",
                info="Its files stay where they are. 10_name folders and metadata.jsonl are read.",
            )  # fmt: skip
            self.register = gr.Button("Use this folder", elem_id="register-folder")

    def _bulk(self) -> None:
        with gr.Row(elem_classes="actions"):
            self.trigger = gr.Textbox(
                label="Trigger word", placeholder="ohwx cat", elem_id="trigger",
                info="Put before every caption that lacks it",
            )  # fmt: skip
            self.add_trigger = gr.Button("Add to all captions", elem_id="add-trigger", scale=0, min_width=160)
        with gr.Row(elem_classes="actions"):
            self.search = gr.Textbox(label="Find", elem_id="find", info="As typed; capitals matter")
            self.replacement = gr.Textbox(label="Replace with", elem_id="replace", info="Empty takes it out")
            self.look = gr.Button("Show what would change", elem_id="preview-replace", scale=0, min_width=190)
        self.preview = gr.HTML(elem_id="replace-preview", elem_classes="at-need")
        self.apply = gr.Button("Apply", visible=False, elem_id="apply-replace")

    def _connect(self) -> None:
        at = [self.chosen, self.base]
        self.create.click(told(self._create), [self.new, self.base], [self.new, *self.shown], **_QUIET)
        self.new.submit(told(self._create), [self.new, self.base], [self.new, *self.shown], **_QUIET)
        self.register.click(told(self._register), [self.path, self.base], self.shown, **_QUIET)
        gr.on([self.chosen.select, self.base.select], told(self.show), at, self.shown, **_QUIET)
        taking = self.drop.upload(
            told(self._add), [*at, self.drop], [self.drop, *self.shown], api_visibility="private"
        )
        taking.failure(emptied, None, self.drop, **_QUIET)
        for name, button in self.samples.items():
            button.click(told(partial(self._sample, name)), self.base, self.shown, **_QUIET)
        self.grid.edit(told(self._edit), at, [self.health, self.grid], **_QUIET)
        self.grid.delete(told(self._remove), at, self.shown, **_QUIET)
        self.undo.click(told(self._bring_back), [*at, self.removed], self.shown, **_QUIET)
        self.rename.click(told(self._rename), [*at, self.name], self.shown, **_QUIET)
        self.throw.click(told(self._throw), at, self.shown, **_QUIET)
        bulk = [self.preview, self.apply, self.changes]
        self.add_trigger.click(told(self._look_trigger), [self.chosen, self.trigger], bulk, **_QUIET)
        self.look.click(
            told(self._look_replace), [self.chosen, self.search, self.replacement], bulk, **_QUIET
        )
        self.apply.click(told(self._apply), [*at, self.changes], self.shown, **_QUIET)

    def show(self, name: str | None, base: str, *, message: str = "", undo: Removed = ("", "")) -> Updates:
        """The tab with the dataset `name`, looked at with the eyes of `base`."""
        view = self._view(name, base) if name else None
        there = bool(view and view.pictures)
        return {
            self.chosen: gr.update(choices=self._choices(), value=name),
            self.health: self._health(view, base) if view else _first_words(bool(self._choices())),
            self.grid: _grid(view) if view else None,
            self.nothing: gr.update(visible=not there),
            self.tools: gr.update(visible=there),
            self.base: gr.update(visible=there, choices=list(self.studio.models.names())),
            self.train: gr.update(visible=there),
            self.whole: gr.update(visible=bool(view)),
            self.name: name or "",
            self.message: message,
            **{b: gr.update(visible=sample not in self._choices()) for sample, b in self.samples.items()},
            self.preview: "",
            self.apply: gr.update(visible=False),
            self.changes: (),
            self.undo: gr.update(visible=bool(undo[1])),
            self.removed: undo,
        }

    def refresh(self, name: str | None, base: str) -> Updates:
        """The tab as it must look now: a dataset that is gone is not shown any more."""
        known = self._choices()
        return self.show(name if name in known else (known[0] if known else None), base)

    def _choices(self) -> list[str]:
        return list(self.studio.datasets.folders())

    def _view(self, name: str, base: str) -> Overview:
        return self.studio.datasets.overview(name, resolution=self.studio.models.size(base))

    def _health(self, view: Overview, base: str) -> str:
        return _health(view, self.studio.models.size(base))

    def _create(self, name: str, base: str) -> Updates:
        made = self.studio.datasets.create(name)
        message = note(f"{made} is there. Drop its pictures above.", kind="good")
        return {self.new: "", **self.show(made, base, message=message)}

    def _sample(self, name: str, base: str) -> Updates:
        return self.show(self.studio.datasets.take_sample(name), base)

    def _register(self, folder: str, base: str) -> Updates:
        return self.show(self.studio.datasets.register(folder), base)

    def _add(self, name: str | None, base: str, uploads: list[str] | None) -> Updates:
        chosen = name or self.studio.datasets.create(_free(self._choices()))
        added = self.studio.datasets.add(chosen, [Path(upload) for upload in uploads or ()])
        count = len(added.files)
        text = note(f"{count} {'file' if count == 1 else 'files'} added.", kind="good") if count else ""
        text += "".join(note(each, kind="warn") for each in added.notes[:20])
        return {self.drop: None, **self.show(chosen, base, message=text)}

    def _edit(self, name: str, base: str, event: gr.EventData) -> Updates:
        self.studio.datasets.set_caption(name, event.name, event.caption)
        view = self._view(name, base)
        return {self.health: self._health(view, base), self.grid: _grid(view)}

    def _remove(self, name: str, base: str, event: gr.EventData) -> Updates:
        place = self.studio.datasets.remove(name, event.name)
        message = note(f"{event.name} is in the trash.")
        return self.show(name, base, message=message, undo=(event.name, str(place)))

    def _rename(self, name: str, base: str, new: str) -> Updates:
        return self.show(self.studio.rename_dataset(name, new), base)

    def _throw(self, name: str, base: str) -> Updates:
        linked = self.studio.datasets.is_elsewhere(name)
        place = self.studio.remove_dataset(name)
        rest = "Its folder stays where it is." if linked else ""
        message = note(f"{name} is {'off the list' if linked else 'in the trash'}.", hint=rest)
        return self.show(None, base, message=message, undo=("", str(place)))

    def _bring_back(self, name: str | None, base: str, removed: Removed) -> Updates:
        image, place = removed
        if name and image:
            self.studio.datasets.bring_back(name, image, Path(place))
            return self.show(name, base)
        return self.show(self.studio.datasets.bring_all_back(Path(place)), base)

    def _look_trigger(self, name: str, trigger: str) -> Updates:
        if not trigger.strip():
            raise gr.Error("Write the trigger word first.", duration=None, print_exception=False)
        return self._looked(self.studio.datasets.with_trigger(name, trigger))

    def _look_replace(self, name: str, search: str, replacement: str) -> Updates:
        return self._looked(self.studio.datasets.replaced(name, search, replacement))

    def _looked(self, changes: tuple[Change, ...]) -> Updates:
        count = len(changes)
        label = f"Change {count} {'caption' if count == 1 else 'captions'}"
        return {
            self.preview: _changes(changes),
            self.apply: gr.update(visible=bool(changes), value=label),
            self.changes: changes,
        }

    def _apply(self, name: str, base: str, changes: tuple[Change, ...]) -> Updates:
        self.studio.datasets.apply(name, changes)
        done = note(f"{len(changes)} {'caption' if len(changes) == 1 else 'captions'} changed.", kind="good")
        return {**self.show(name, base), self.preview: done}


def _free(taken: list[str]) -> str:
    number = 1
    while f"dataset-{number}" in taken:
        number += 1
    return f"dataset-{number}"


def _first_words(any_there: bool) -> str:
    if any_there:
        return empty("Choose a dataset", "Or drop pictures on the left, and a new one is made.")
    return empty(
        "Start with pictures",
        "A dataset is a folder of pictures, each with a caption that says what is on it.",
    )


def _health(view: Overview, resolution: int) -> str:
    title = f"<h2>{escape(view.name)}</h2>"
    if view.report is None:
        return title + note(view.problem, kind="info")
    report = view.report
    missing = report.images - report.captioned
    rows = [
        ("Pictures", f"{report.images:,}"),
        ("With caption", f"{report.captioned:,}"),
        ("Samples a pass", f"{report.samples:,}"),
        ("Cut off to fit", f"{report.cropped:.0%}"),
    ]
    state = (
        note(f"{missing} {'picture has' if missing == 1 else 'pictures have'} no caption.", kind="warn",
             hint="The run's trigger word stands for one, where there is one.")
        if missing else ""
    )  # fmt: skip
    drawn = (
        note(f"{report.varied} {'caption has' if report.varied == 1 else 'captions have'} {{these|those}}.",
             kind="info", hint="One of the parts is drawn at every step.")
        if report.varied else ""
    )  # fmt: skip
    good = note("Ready to train.", kind="good") if not missing and not report.problems else ""
    return title + facts(rows) + good + state + drawn + _problems(report) + _sizes(report, resolution)


def _problems(report: Report) -> str:
    if not report.problems:
        return ""
    items = "".join(f"<li>{escape(problem.text)}</li>" for problem in report.problems[:100])
    fatal = sum(problem.fatal for problem in report.problems)
    words = f"{len(report.problems)} {'remark' if len(report.problems) == 1 else 'remarks'}"
    words += f", {fatal} {'file is' if fatal == 1 else 'files are'} not used" if fatal else ""
    opened = " open" if fatal else ""
    return f'<details class="plain"{opened}><summary>{words}</summary><ul>{items}</ul></details>'


def _sizes(report: Report, resolution: int) -> str:
    words = (f"{row.width} × {row.height}: {row.images}" for row in report.buckets)
    title = f"Training sizes at {resolution} pixels"
    return f'<details class="plain"><summary>{title}</summary>{chips(words)}</details>'


def _changes(changes: tuple[Change, ...]) -> str:
    if not changes:
        return note("No caption would change.")
    rows = "".join(
        f"<tr><th scope=row>{escape(c.image.name)}</th><td><del>{escape(c.before) or 'no caption'}</del><br>"
        f"<ins>{escape(c.after)}</ins></td></tr>"
        for c in changes[:50]
    )
    more = f'<p class="dim">and {len(changes) - 50} more</p>' if len(changes) > 50 else ""
    return f'<div class="scroll"><table class="plain">{rows}</table>{more}</div>'


def _grid(view: Overview) -> dict[str, object]:
    return {
        "dataset": view.name,
        "items": [
            {
                "name": picture.item.name,
                "caption": picture.item.caption,
                "thumb": file_url(picture.thumbnail) if picture.thumbnail else "",
                "size": f"{picture.item.width} × {picture.item.height}",
                "notes": [_without_name(text, picture.item.name) for text in picture.notes],
            }
            for picture in view.pictures
        ],
    }


def _without_name(text: str, name: str) -> str:
    """A remark as it reads beside the picture itself."""
    rest = text.removeprefix(f"{name} is ").removeprefix(f"{name} ")
    return rest[:1].upper() + rest[1:]
