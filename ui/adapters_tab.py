"""Adapters: the library, what each file is and does, its texts, and what is made of it."""

import json
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.errors import AdapterError, SdloraError
from sdlora.service.jobs import Job
from sdlora.service.library import Adapter, AdapterInfo
from sdlora.service.studio import Studio
from ui.adapter_card import card, item, made, measured
from ui.handling import emptied, placeless, told
from ui.markup import code, empty, failure, note
from ui.task import Task
from ui.widget import widget
from ui.workbench import Workbench, written_for

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
_NOTHING = empty(
    "No adapters yet",
    "Train one, drop .safetensors files above, or put them into models/Lora. Any trainer's will do.",
)
_CHOOSE = empty("Choose an adapter", "Its base, rank, trigger words and origin are shown here.")
_NO_PARENT = ("nothing", "")


class AdaptersTab:
    """The tab. `chosen` holds the file that is shown; `use`, `run` and `again` lead on."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._layout()
        self._connect()

    def _layout(self) -> None:
        self.chosen = gr.State("")
        self.thrown = gr.State("")
        with gr.Row(elem_classes="split", equal_height=False):
            with gr.Column(scale=3, min_width=330, elem_classes="box"):
                self._shelf()
            with gr.Column(scale=2, min_width=330, elem_classes="box"):
                self._one()
        self.bench = Workbench(self.studio)

    def _shelf(self) -> None:
        gr.HTML("<h2>Library</h2>")
        self.drop = gr.File(
            label="Drop adapters here (.safetensors)", file_count="multiple", height=110,
            elem_id="add-files", elem_classes="drop",
        )  # fmt: skip
        self.added = gr.HTML(elem_id="added", elem_classes="at-need")
        self.undo = gr.Button("Undo", visible=False, size="sm", elem_id="undo-adapter")
        self.list = widget("library", {"chosen": "", "items": []}, elem_id="library")
        self.nothing = gr.HTML(_NOTHING, visible=False)
        with gr.Accordion("In the trash", open=False, visible=False) as self.trash:
            self.removed = gr.Dropdown([], value=None, label="Adapter", elem_id="trashed")
            self.restore = gr.Button("Bring it back", elem_id="bring-back")

    def _one(self) -> None:
        self.card = gr.HTML(_CHOOSE, elem_id="adapter-card")
        with gr.Row(elem_classes="actions"):
            self.use = gr.Button("Use in Generate", variant="primary", visible=False, elem_id="adapter-use")
            self.run = gr.Button("Show its run", visible=False, elem_id="adapter-run")
            self.again = gr.Button("Train again…", visible=False, elem_id="adapter-again")
            self.remove = gr.Button("Move to trash", visible=False, elem_id="adapter-remove")
        with gr.Column(visible=False) as self.details:
            with gr.Accordion("Name, words and picture", open=False):
                self._texts()
            with gr.Accordion("What is inside", open=False):
                gr.HTML('<p class="dim">Where it acts, and how many ranks it needs.</p>')
                with gr.Row(elem_classes="actions"):
                    self.measure = gr.Button("Measure", size="sm", elem_id="measure-go", scale=0)
                self.measuring = Task(self.studio, elem_id="measured")
            with gr.Accordion("Make a smaller copy", open=False) as self.smaller:
                self._smaller()
            with gr.Accordion("All metadata", open=False):
                self.metadata = gr.HTML(elem_id="adapter-metadata")

    def _texts(self) -> None:
        self.picture = gr.File(
            label="Drop a picture for its card", file_types=[".png", ".jpg", ".jpeg", ".webp"], height=96,
            elem_id="adapter-picture", elem_classes="drop",
        )  # fmt: skip
        self.name = gr.Textbox(label="Name", info="Of the file", elem_id="adapter-name")
        self.triggers = gr.Textbox(label="Trigger words", info="Commas between", elem_id="adapter-triggers")
        self.weight = gr.Number(
            0, label="Recommended weight", info="0 recommends none", elem_id="adapter-weight"
        )
        self.notes = gr.Textbox(label="Notes", lines=3, elem_id="adapter-notes")
        self.parent = gr.Dropdown(
            [_NO_PARENT], value="", label="Builds on", elem_id="adapter-parent",
            info="Choosing this adapter then brings that one along",
        )  # fmt: skip
        self.save = gr.Button("Save", elem_id="adapter-save")
        self.saved = gr.HTML(elem_id="adapter-saved", elem_classes="at-need")

    def _smaller(self) -> None:
        with gr.Row(elem_classes="actions"):
            self.rank = gr.Number(8, label="Rank at most", precision=0, minimum=0, elem_id="resize-rank")
            self.energy = gr.Slider(
                50, 100, 100, step=0.5, label="Energy to keep, %", elem_id="resize-energy"
            )
        self.small_name = gr.Textbox(label="Name of the copy", placeholder="ink-small", elem_id="resize-name")
        self.small_format = written_for("resize-format")
        self.resize = gr.Button("Make the copy", elem_id="resize-go")
        self.resizing = Task(self.studio, elem_id="resized")

    @property
    def library(self) -> list[Any]:  # Any: gradio's components
        """Everything that shows which adapters there are."""
        return [self.list, self.nothing, self.trash, self.removed, *self.bench.refreshed]

    @property
    def inspector(self) -> list[Any]:  # Any: gradio's components
        """Everything that shows one adapter."""
        shown = [
            self.chosen,
            self.card,
            self.use,
            self.run,
            self.again,
            self.remove,
            self.details,
            self.smaller,
        ]
        texts = [self.name, self.triggers, self.weight, self.notes, self.parent, self.picture, self.metadata]
        said = [self.measuring.said, self.resizing.said, self.added, self.undo, self.saved]
        return [*shown, *texts, *said, *self.library]

    def _connect(self) -> None:
        shown, bench = self.inspector, self.bench
        bench.connect(self.show, shown)
        self.measuring.connect(lambda job: (measured(job), {}), [])
        self.resizing.connect(self._resized, shown)
        self.list.select(told(self._choose), None, shown, **_QUIET)
        self.drop.upload(told(self._add), self.drop, [self.drop, *shown], **_QUIET)
        self.remove.click(told(self._remove), self.chosen, [self.thrown, *shown], **_QUIET)
        self.undo.click(told(self._bring_back), self.thrown, shown, **_QUIET)
        self.restore.click(told(self._bring_back), self.removed, shown, **_QUIET)
        painting = self.picture.upload(told(self._paint), [self.chosen, self.picture], shown, **_QUIET)
        painting.failure(emptied, None, self.picture, **_QUIET)
        texts = [self.name, self.triggers, self.weight, self.notes, self.parent]
        self.save.click(told(self._save), [self.chosen, *texts], shown, **_QUIET)
        self.measure.click(told(self._measure), self.chosen, self.measuring.parts, **_QUIET)
        resizing = [self.chosen, self.small_name, self.rank, self.energy, self.small_format]
        self.resize.click(told(self._resize), resizing, self.resizing.parts, **_QUIET)

    def show(self, file: str) -> Updates:
        """The tab with the adapter `file` shown, or none."""
        library = self.studio.library
        adapter = library.adapter(Path(file)) if file and Path(file).exists() else None
        info = adapter.info if adapter else None
        own = bool(adapter and not adapter.fixed)
        recipe = bool(adapter and (adapter.run or (info and "sdlora.config" in info.metadata)))
        return {
            self.chosen: str(adapter.path) if adapter else "",
            self.use: gr.update(visible=bool(info and not info.problem)),
            self.smaller: gr.update(visible=bool(info and info.kinds == ("lora",))),
            self.run: gr.update(visible=bool(adapter and adapter.run)),
            self.again: gr.update(visible=recipe),
            self.remove: gr.update(visible=own),
            self.details: gr.update(visible=info is not None),
            self.metadata: code(_metadata(info), name="metadata.json") if info else "",
            **dict.fromkeys((self.added, self.saved, self.measuring.said, self.resizing.said), ""),
            self.undo: gr.update(visible=False),
            self.card: self._card(adapter) if adapter else _CHOOSE,
            **(self._written(adapter) if adapter else {}),
            **self._listed(file),
        }

    def _card(self, adapter: Adapter) -> str:
        library = self.studio.library
        try:
            chain = tuple(path.stem for path in reversed(library.lineage(adapter.path)[:-1]))
        except AdapterError as error:
            return failure(error) + card(adapter, twins=(), chain=(), children=())
        own = adapter.info.hash if adapter.info else "-"
        children = tuple(other.name for other in library.adapters() if other.parent == own)
        twins = library.twins().get(adapter.path, ())
        return card(adapter, twins=twins, chain=chain, children=children)

    def _written(self, adapter: Adapter) -> Updates:
        """The fields that can be changed."""
        info = adapter.info
        others = [other for other in self.studio.library.adapters() if other.info and other != adapter]
        fitting = [other for other in others if info and other.info and other.info.family == info.family]
        parents = [_NO_PARENT, *((other.name, other.info.hash) for other in fitting if other.info)]
        if all(adapter.parent != value for _, value in parents):
            parents.append((f"{adapter.parent}, which is not here", adapter.parent))
        return {
            self.name: gr.update(value=adapter.name, interactive=not adapter.fixed),
            self.triggers: ", ".join(info.triggers) if info else "",
            self.weight: (info.weight if info else None) or 0,
            self.notes: adapter.notes,
            self.parent: gr.update(choices=parents, value=adapter.parent),
            self.picture: None,
        }

    def _listed(self, chosen: str) -> Updates:
        library = self.studio.library
        adapters, twins = library.adapters(), library.twins()
        removed = [(name, str(place)) for name, place in library.removed()]
        items = [item(each, folder=library.place(each), twins=twins.get(each.path, ())) for each in adapters]
        return {
            self.list: {"chosen": chosen, "items": items},
            self.nothing: gr.update(visible=not adapters),
            self.trash: gr.update(visible=bool(removed), label=f"In the trash ({len(removed)})"),
            self.removed: gr.update(choices=removed, value=None),
            **self.bench.refresh(),
        }

    def _choose(self, event: gr.EventData) -> Updates:
        return self.show(event.file)

    def _add(self, files: list[str] | None) -> Updates:
        notes, last = [], ""
        for file in files or ():
            try:
                adapter = self.studio.library.add(Path(file))
            except SdloraError as error:
                notes.append(failure(placeless(error)))
            else:
                notes.append(_arrived(adapter))
                last = str(adapter.path)
        return {self.drop: None, **self.show(last), self.added: "".join(notes)}

    def _remove(self, file: str) -> Updates:
        run = self.studio.library.adapter(Path(file)).run
        place = self.studio.library.remove(Path(file))
        rest = f"The run {run}, which made it, still holds it." if run else ""
        said = note(f"{Path(file).stem} is in the trash.", hint=rest)
        return {
            **self.show(""),
            self.added: said,
            self.thrown: str(place),
            self.undo: gr.update(visible=True),
        }

    def _bring_back(self, place: str | None) -> Updates:
        if not place:
            raise gr.Error("Choose an adapter of the trash.", duration=None, print_exception=False)
        return self.show(str(self.studio.library.bring_back(Path(place)).path))

    def _save(
        self, file: str, name: str, triggers: str, weight: float | None, notes: str, parent: str
    ) -> Updates:
        library, path = self.studio.library, Path(file)
        if parent != library.adapter(path).parent:
            library.set_parent(path, library.with_hash(parent) if parent else None)
        words = [word.strip() for word in triggers.split(",") if word.strip()]
        library.describe(path, triggers=words, weight=weight or 0, notes=notes.strip())
        if not library.adapter(path).fixed:
            path = library.rename(path, name).path
        return {**self.show(str(path)), self.saved: note("Saved.", kind="good")}

    def _paint(self, file: str, picture: str) -> Updates:
        self.studio.library.set_picture(Path(file), Path(picture))
        return self.show(file)

    def _measure(self, file: str) -> Updates:
        return self.measuring.begin(self.studio.measure(Path(file)))

    def _resize(self, file: str, name: str, rank: float, energy: float, format: str) -> Updates:
        job = self.studio.resize(
            Path(file), name=name.strip(), rank=round(rank or 0), energy=energy / 100, format=format
        )
        return self.resizing.begin(job)

    def _resized(self, job: Job) -> tuple[str, Updates]:
        return made(job), self.show(str(job.files[0]))


def _arrived(adapter: Adapter) -> str:
    info = adapter.info
    family = info.family_title if info else "an unknown base"
    problem = info.problem if info else ""
    words = f"{adapter.name} is in the library. Made for {family}."
    return note(words, kind="warn" if problem else "good", hint=problem)


def _metadata(info: AdapterInfo) -> str:
    return json.dumps(info.metadata, indent=1, ensure_ascii=False)[:200_000]
