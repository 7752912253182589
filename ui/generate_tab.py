"""Generate: a prompt, a mix of adapters, and pictures that say how they were made."""

import functools
import random
from collections.abc import Mapping
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr

from sdlora.files import within
from sdlora.generation.png import Restored
from sdlora.generation.request import GenerateRequest
from sdlora.service.jobs import Job
from sdlora.service.studio import Studio
from ui import adapter_card, stack
from ui.form import Form
from ui.handling import emptied, told, uploads
from ui.markup import duration, empty, file_url, note, progress
from ui.meter import Meter
from ui.widget import widget

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
_NOTHING = empty("Nothing drawn yet", "Write a prompt, add an adapter or two, and press Generate.")
_HISTORY = 24
SHAPES: Mapping[str, float] = MappingProxyType({"Square": 1.0, "Portrait": 2 / 3, "Landscape": 3 / 2})


class GenerateTab:
    """The tab. `rows` is the mix; `start_over` brings a reloaded page up to date."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._layout()
        self._connect()

    def _layout(self) -> None:
        studio = self.studio
        self.form = Form(
            GenerateRequest, sources={"base": studio.models.names()}, lines={"prompt": 3, "negative": 2}
        )
        self.job = gr.State(0)
        with gr.Row(elem_classes="split", equal_height=False):
            with gr.Column(scale=6, min_width=330):
                self._ask()
            with gr.Column(scale=5, min_width=330):
                self._answer()
        self.timer = gr.Timer(0.4, active=False)

    def _ask(self) -> None:
        with gr.Column(elem_classes="box"):
            self.form.draw("prompt", "negative")
            with gr.Row(elem_classes="actions"):
                self.go = gr.Button("Generate", variant="primary", elem_id="generate-go", min_width=200)
                self.cancel = gr.Button("Cancel", visible=False, elem_id="generate-cancel", min_width=120)
                gr.HTML('<p class="dim keys">or Ctrl+Enter</p>')
            self.rows = stack.draw(varies=True, elem_id="stack")
            with gr.Column(elem_classes="for-several"):
                Meter(self.studio, self.rows, elem_id="meter")
            self.pick = gr.Dropdown(
                stack.choices(self.studio), value=None, label="Add an adapter", elem_id="add-adapter",
                info="Or write <lora:name:0.8> into the prompt",
            )  # fmt: skip
            with gr.Column(elem_classes="fields narrow"):
                self.form.draw("base", "count", "steps", "guidance", "seed")
                self.fresh = gr.Checkbox(
                    True, label="New seed each time", info="Off: the same seed is used again",
                    elem_id="fresh-seed",
                )  # fmt: skip
                self.form.draw("width", "height")
            with gr.Row(elem_classes="actions shapes"):
                self.shapes = [
                    gr.Button(name, size="sm", scale=0, elem_id=f"shape-{name.lower()}") for name in SHAPES
                ]
            with gr.Accordion("More", open=False), gr.Column(elem_classes="fields"):
                self.form.draw()

    def _answer(self) -> None:
        with gr.Column(elem_classes="box"):
            self.message = gr.HTML(elem_id="generate-message", elem_classes="at-need")
            self.stage = gr.HTML(_NOTHING, elem_id="stage", elem_classes="at-need")
            self.results = widget("gallery", {"items": []}, elem_id="results")
            self.applied = gr.HTML(elem_id="applied", elem_classes="at-need")
        with gr.Column(elem_classes="box"):
            self.drop = gr.File(
                label="Drop a PNG here to use its settings",
                file_types=[".png"],
                height=96,
                elem_id="restore",
                elem_classes="drop",
            )
            with gr.Accordion("Paste settings as text", open=False):
                self.text = gr.Textbox(
                    lines=4, label="Settings", elem_id="paste",
                    info="As A1111, Forge and picture sites write them",
                )  # fmt: skip
                self.read = gr.Button("Use these settings", elem_id="read-pasted")
            self.history = widget("gallery", self._earlier(), elem_id="history")

    def _connect(self) -> None:
        form, job = self.form, self.job
        base, prompt = form.components["base"], form.components["prompt"]
        self.go.click(
            told(self._start), [self.fresh, self.rows], [*self.progress, form.components["seed"]],
            inputs_kwargs=form.components, **_QUIET,
        )  # fmt: skip
        self.timer.tick(told(self._poll), job, self.progress, concurrency_limit=None, **_QUIET)
        self.cancel.click(told(self.studio.jobs.cancel), job, None, **_QUIET)
        taking = self.drop.upload(
            told(self._restore), [self.drop, self.rows], [self.drop, *self.restored], **_QUIET
        )
        taking.failure(emptied, None, self.drop, **_QUIET)
        self.read.click(told(self._read), [self.text, self.rows], [self.text, *self.restored], **_QUIET)
        self.results.select(told(self._reuse), self.rows, self.restored, **_QUIET)
        self.history.select(told(self._reuse), self.rows, self.restored, **_QUIET)
        self.pick.select(told(self.add), [self.pick, self.rows, base], [self.rows, self.pick], **_QUIET)
        self.rows.select(told(self._trigger), prompt, prompt, **_QUIET)
        self.rows.apply(told(self._arrange), self.rows, self.rows, **_QUIET)
        self.rows.edit(told(self._mask), self.rows, self.rows, **_QUIET)
        for button, name in zip(self.shapes, SHAPES, strict=True):
            sides = [form.components["width"], form.components["height"]]
            button.click(told(functools.partial(self._shape, name)), base, sides, **_QUIET)
        base.change(told(self._refit), [self.rows, base], self.rows, **_QUIET)

    @property
    def restored(self) -> list[Any]:  # Any: gradio's components
        """Everything that a restored picture changes."""
        return [*self.form.components.values(), self.rows, self.message, self.fresh]

    @property
    def progress(self) -> list[Any]:  # Any: gradio's components
        """Everything that changes while pictures are drawn."""
        return [
            self.job,
            self.timer,
            self.go,
            self.cancel,
            self.stage,
            self.results,
            self.applied,
            self.history,
            self.message,
        ]

    @property
    def refreshed(self) -> list[Any]:  # Any: gradio's components
        """Everything that `start_over` sets."""
        return [self.pick, self.form.components["base"], *self.progress]

    def start_over(self) -> Updates:
        """After a reload: the job that is still going on, and what the folders hold now."""
        job = self.studio.jobs.current()
        return {
            self.pick: gr.update(choices=stack.choices(self.studio), value=None),
            self.form.components["base"]: gr.update(choices=list(self.studio.models.names())),
            self.history: self._earlier(),
            **(self._at(job) if job else {}),
        }

    @property
    def draft(self) -> dict[str, Any]:  # Any: gradio's components
        """Everything that a person fills in, by name."""
        return {**self.form.components, "rows": self.rows, "fresh": self.fresh}

    def resume(self, kept: Mapping[str, Any]) -> Updates:  # Any: whatever a browser has kept
        """The request that was filled in and not sent."""
        held = self.form.sound(kept)
        base = str(held.get("base", "builtin"))
        return {
            **{self.form.components[key]: gr.update(value=value) for key, value in held.items()},
            self.rows: stack.resumed(self.studio, kept.get("rows"), base=base),
            self.fresh: kept.get("fresh") is not False,
        }

    def add(self, file: str | None, rows: stack.Value, model: str) -> Updates:
        """The mix with one more adapter."""
        chosen = stack.add(self.studio, rows, file, base=model) if file else rows
        return {self.rows: chosen, self.pick: gr.update(value=None, choices=stack.choices(self.studio))}

    def _start(self, fresh: bool, rows: stack.Value, **raw: object) -> Updates:
        seed = {"seed": random.randrange(2**32)} if fresh else {}
        request = GenerateRequest.of({**self.form.values(raw), **seed}, stack.entries(rows))
        return {**self.form.show(seed), **self._at(self.studio.generate(request))}

    def _poll(self, number: int) -> Updates:
        job = self.studio.jobs.view(number)
        return self._at(job) if job else {self.timer: gr.Timer(active=False)}

    def _restore(self, file: str, rows: stack.Value) -> Updates:
        return {self.drop: None, **self._shown(self.studio.restore(Path(file)), rows)}

    def _read(self, text: str, rows: stack.Value) -> Updates:
        if not text.strip():
            raise gr.Error("Paste the settings first.", duration=None, print_exception=False)
        return {self.text: "", **self._shown(self.studio.restore_text(text), rows)}

    def _reuse(self, rows: stack.Value, event: gr.EventData) -> Updates:
        return self._shown(self.studio.restore(self.studio.drawn(Path(event.file))), rows)

    def _arrange(self, rows: stack.Value, event: gr.EventData) -> stack.Value:
        return stack.arranged(rows, event.arrangement)

    def _mask(self, rows: stack.Value, event: gr.EventData) -> stack.Value:
        upload = within(Path(event.mask), [uploads()])
        return stack.masked(self.studio, rows, row=event.row, mask=upload)

    def _trigger(self, prompt: str, event: gr.EventData) -> str:
        word: str = event.trigger
        return prompt if word in prompt else ", ".join(filter(None, [prompt.strip(), word]))

    def _refit(self, rows: stack.Value, model: str) -> stack.Value:
        return stack.noted(self.studio, rows, base=model)

    def _shape(self, name: str, model: str) -> Updates:
        width, height = sides(self.studio.models.size(model), SHAPES[name])
        return self.form.show({"width": width, "height": height})

    def _shown(self, restored: Restored, rows: stack.Value) -> Updates:
        request = restored.request
        notes = "".join(note(text, kind="warn") for text in restored.notes)
        done = note("The form now holds these settings, the seed included.", kind="good")
        return {
            **self.form.show_config(request),
            self.rows: stack.show(self.studio, rows, request.stack, base=request.base),
            self.fresh: False,
            self.message: done + notes,
        }

    def _at(self, job: Job) -> Updates:
        """The tab while `job` goes on, or once it has ended."""
        updates: Updates = {
            self.job: job.number,
            self.timer: gr.Timer(active=not job.ended),
            self.go: gr.update(interactive=job.ended, value="Generate" if job.ended else "Drawing…"),
            self.cancel: gr.update(visible=not job.ended),
            self.stage: "" if job.ended else _stage(job, ahead=self.studio.jobs.ahead(job.number)),
            self.message: _outcome(job),
        }
        if job.files or not job.ended:
            updates[self.results] = _sheet(job.files, seeds=True)
            updates[self.applied] = adapter_card.applied(job.told["applied"]) if job.told else ""
        if job.ended:
            updates[self.history] = self._earlier()
        return updates

    def _earlier(self) -> dict[str, object]:
        return {**_sheet(self.studio.history.pictures(_HISTORY)), "title": "Earlier pictures"}


def sides(side: int, aspect: float) -> tuple[int, int]:
    """Width and height in pixels, of about the area that a base of `side` pixels knows, `aspect` to one."""
    step = min(64, side // 8)
    width, height = ((side * aspect**power) // step for power in (0.5, -0.5))
    return int(width) * step, int(height) * step


def _stage(job: Job, *, ahead: int) -> str:
    words = f"{job.stage}, step {job.step} of {job.steps}" if job.steps else f"{job.stage or 'Starting'}…"
    if job.state == "waiting" and ahead:
        words = f"Waiting for {ahead} other {'request' if ahead == 1 else 'requests'}…"
    picture = f'<img src="{escape(job.preview)}" alt="The picture so far">' if job.preview else ""
    return f'<div class="stage">{picture}{progress(words, done=job.step, total=job.steps)}</div>'


def _outcome(job: Job) -> str:
    if job.state == "failed":
        return note(job.error, kind="bad", hint=job.hint)
    if job.state == "cancelled":
        return note(job.error or "Cancelled.", hint=job.hint or "Nothing was saved.")
    if job.state == "done":
        count = "One picture" if len(job.files) == 1 else f"{len(job.files)} pictures"
        return f'<p class="dim">{count} in {duration(job.seconds)}. Each file holds its settings.</p>'
    return ""


def _sheet(pictures: tuple[Path, ...], *, seeds: bool = False) -> dict[str, object]:
    return {
        "items": [
            {
                "url": file_url(path),
                "file": str(path),
                "name": path.name,
                "alt": f"Picture {path.stem}",
                "seed": path.stem.rpartition("-")[2] if seeds else "",
            }
            for path in pictures
        ]
    }
