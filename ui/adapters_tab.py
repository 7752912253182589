"""Adapters: the library, what each file is, new files, and several merged into one."""

import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.errors import SdloraError
from sdlora.service.jobs import Job
from sdlora.service.library import Adapter, AdapterInfo
from sdlora.service.studio import Studio
from ui import stack
from ui.handling import told
from ui.markup import chips, empty, facts, failure, file_url, note, size
from ui.widget import widget

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
_NOTHING = empty(
    "No adapters yet",
    "Train one, drop .safetensors files above, or put them into models/Lora. Any trainer's will do.",
)
_COMPONENTS = {
    "unet": "the UNet",
    "text_encoder": "the text encoder",
    "text_encoder_2": "the second text encoder",
}
_CHOOSE = empty("Choose an adapter", "Its base, rank, trigger words and origin are shown here.")


class AdaptersTab:
    """The tab. `chosen` holds the file that is shown; `use` takes it along."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._layout()
        self._connect()

    def _layout(self) -> None:
        self.chosen = gr.State("")
        self.job = gr.State(0)
        with gr.Row(elem_classes="split", equal_height=False):
            with gr.Column(scale=3, min_width=330, elem_classes="box"):
                gr.HTML("<h2>Library</h2>")
                self.drop = gr.File(
                    label="Drop adapters here (.safetensors)",
                    file_count="multiple",
                    height=110,
                    elem_id="add-files",
                    elem_classes="drop",
                )
                self.added = gr.HTML(elem_id="added")
                self.list = widget("library", {"chosen": "", "items": []}, elem_id="library")
                self.nothing = gr.HTML(_NOTHING, visible=False)
            with gr.Column(scale=2, min_width=330):
                with gr.Column(elem_classes="box"):
                    self.card = gr.HTML(_CHOOSE, elem_id="adapter-card")
                    with gr.Row(elem_classes="actions"):
                        self.use = gr.Button(
                            "Use in Generate", variant="primary", visible=False, elem_id="adapter-use"
                        )
                        self.remove = gr.Button("Move to trash", visible=False, elem_id="adapter-remove")
                    with gr.Accordion("All metadata", open=False, visible=False) as self.more:
                        self.metadata = gr.Code(
                            language="json",
                            interactive=False,
                            show_label=False,
                            label="Metadata",
                            max_lines=24,
                        )
                with gr.Column(elem_classes="box"):
                    self._merging()
        self.timer = gr.Timer(0.5, active=False)

    def _merging(self) -> None:
        gr.HTML(
            '<h2>Merge</h2><p class="dim">One file that does what the mix does. Exact: the ranks add up.</p>'
        )
        self.rows = stack.draw(varies=False, elem_id="merge-stack")
        self.pick = gr.Dropdown([], value=None, label="Add an adapter", elem_id="merge-add")
        self.name = gr.Textbox(
            label="Name of the new adapter", placeholder="ink-and-cat", elem_id="merge-name"
        )
        self.merge = gr.Button("Merge", elem_id="merge-go")
        self.merged = gr.HTML(elem_id="merged")

    @property
    def library(self) -> list[Any]:  # Any: gradio's components
        """Everything that shows which adapters there are."""
        return [self.list, self.nothing, self.pick]

    @property
    def inspector(self) -> list[Any]:  # Any: gradio's components
        """Everything that shows one adapter."""
        return [self.chosen, self.card, self.use, self.remove, self.more, self.metadata, *self.library]

    def _connect(self) -> None:
        merging = [self.job, self.timer, self.merged, self.merge, *self.library]
        self.list.select(told(self._choose), None, self.inspector, **_QUIET)
        self.drop.upload(told(self._add), self.drop, [self.added, self.drop, *self.inspector], **_QUIET)
        self.remove.click(told(self._remove), self.list, self.inspector, js=_SURE, **_QUIET)
        self.pick.select(told(self._pick), [self.pick, self.rows], [self.rows, self.pick], **_QUIET)
        self.merge.click(told(self._merge), [self.rows, self.name], merging, **_QUIET)
        self.timer.tick(told(self._poll), self.job, merging, concurrency_limit=None, **_QUIET)

    def show(self, file: str) -> Updates:
        """The tab with the adapter `file` shown, or none."""
        adapter = self.studio.library.adapter(Path(file)) if file and Path(file).exists() else None
        info = adapter.info if adapter else None
        return {
            self.chosen: str(adapter.path) if adapter else "",
            self.card: _card(adapter) if adapter else _CHOOSE,
            self.use: gr.update(visible=info is not None),
            self.remove: gr.update(visible=adapter is not None and not adapter.run),
            self.more: gr.update(visible=bool(info and info.metadata)),
            self.metadata: json.dumps(info.metadata, indent=1, ensure_ascii=False)[:200_000] if info else "",
            **self._listed(file),
        }

    def _listed(self, chosen: str) -> Updates:
        adapters = self.studio.library.adapters()
        return {
            self.list: {"chosen": chosen, "items": [_item(adapter) for adapter in adapters]},
            self.nothing: gr.update(visible=not adapters),
            self.pick: gr.update(choices=stack.choices(self.studio), value=None),
        }

    def _choose(self, event: gr.EventData) -> Updates:
        return self.show(event.file)

    def _add(self, files: list[str] | None) -> Updates:
        notes, last = [], ""
        for file in files or ():
            try:
                adapter = self.studio.library.add(Path(file))
            except SdloraError as error:
                notes.append(failure(error))
            else:
                family = adapter.info.family_title if adapter.info else "unknown"
                notes.append(note(f"{adapter.name} is in the library. Made for {family}.", kind="good"))
                last = str(adapter.path)
        return {self.added: "".join(notes), self.drop: None, **self.show(last)}

    def _remove(self, listed: dict[str, Any]) -> Updates:  # Any: the widget's JSON
        if not listed["chosen"]:  # the person thought better of it
            return {self.added: ""}
        self.studio.library.remove(Path(listed["chosen"]))
        return self.show("")

    def _pick(self, file: str | None, rows: stack.Value) -> Updates:
        return {self.rows: stack.add(self.studio, rows, file, base="") if file else rows, self.pick: None}

    def _merge(self, rows: stack.Value, name: str) -> Updates:
        return self._at(self.studio.merge(stack.entries(rows), name=name.strip()))

    def _poll(self, number: int) -> Updates:
        job = self.studio.jobs.view(number)
        return self._at(job) if job else {self.timer: gr.Timer(active=False)}

    def _at(self, job: Job) -> Updates:
        """The tab while the merging `job` goes on, or once it has ended."""
        words = {"failed": note(job.error, kind="bad", hint=job.hint), "cancelled": note("Cancelled.")}
        done = note(f"{job.files[0].name} is in the library.", kind="good") if job.files else ""
        updates: Updates = {
            self.job: job.number,
            self.timer: gr.Timer(active=not job.ended),
            self.merge: gr.update(interactive=job.ended),
            self.merged: words.get(job.state, done or note(f"{job.stage or 'Waiting'}…")),
        }
        return {**updates, **self._listed(str(job.files[0]))} if job.state == "done" else updates


_SURE = """(list) => [confirm(`Move “${list.chosen.split(/[\\\\/]/).pop()}” to the trash folder?`)
    ? list : {...list, chosen: ""}]"""


def _item(adapter: Adapter) -> dict[str, object]:
    info = adapter.info
    return {
        "file": str(adapter.path),
        "name": adapter.name,
        "family": info.family_title if info else "cannot be read",
        "detail": f"{_ranks(info)}{', made here' if adapter.run else ''}" if info else "",
        "triggers": list(info.triggers) if info else [],
        "picture": file_url(adapter.picture) if adapter.picture else "",
        "bad": (info.problem if info else adapter.error)[:160],
    }


def _card(adapter: Adapter) -> str:
    info = adapter.info
    title = f"<h2>{escape(info.title if info else adapter.name)}</h2>"
    if info is None:
        return title + note(adapter.error, kind="bad")
    picture = f'<img class="cover" src="{file_url(adapter.picture)}" alt="">' if adapter.picture else ""
    problem = note(info.problem, kind="bad") if info.problem else ""
    unread = (
        note(f"{len(info.unread)} of its keys are not understood, for example {info.unread[0]}.", kind="warn")
        if info.unread
        else ""
    )
    triggers = f'<p class="dim">Trigger words</p>{chips(info.triggers)}' if info.triggers else ""
    name = escape(adapter.path.name)
    link = f'<p><a href="{file_url(adapter.path)}" download="{name}">Download {name}</a></p>'
    return picture + title + problem + unread + facts(_facts(adapter, info)) + triggers + link


def _facts(adapter: Adapter, info: AdapterInfo) -> list[tuple[str, str]]:
    modules = ", ".join(f"{count} in {_COMPONENTS.get(name, name)}" for name, count in info.modules.items())
    rows = [
        ("Made for", info.family_title),
        ("Kind", " and ".join(info.kinds) or "unknown"),
        ("Rank", _ranks(info).removeprefix("rank ")),
        ("Alpha", _range(info.alphas)),
        ("Layers", modules or "none"),
        ("Size", size(info.bytes)),
        ("Hash", info.hash),
        ("How the base is known", info.evidence),
    ]
    if info.weight:
        rows.append(("Recommended weight", f"{info.weight:g}"))
    if adapter.run:
        rows.append(("Made by the run", adapter.run))
    return [(name, value) for name, value in rows if value]


def _ranks(info: AdapterInfo) -> str:
    return f"rank {_range(info.ranks)}" if info.ranks else ""


def _range(spread: tuple[float, float] | None) -> str:
    if spread is None:
        return ""
    low, high = spread
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
