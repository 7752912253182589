"""The workbench of the tab Adapters: several adapters compared, merged or baked; one taken out of a model."""

from typing import Any

import gradio as gr

from sdlora.service.jobs import Job
from sdlora.service.studio import Studio
from ui import stack
from ui.adapter_card import made
from ui.handling import told
from ui.meter import Meter
from ui.task import Task

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
_METHODS = [
    ("Exact: the stack itself, the ranks add up", "concat"),
    ("Smaller: the closest one of a given rank", "svd"),
    ("TIES: the largest changes, the majority decides", "ties"),
    ("DARE: changes left out at random", "dare"),
]
_FORMATS = [("Every tool (kohya's keys)", "kohya"), ("Code that uses diffusers (PEFT's keys)", "peft")]
_TITLE = """<h2>Workbench</h2>
<p class="dim">Put several together, see how they get along, and make new files of them.</p>"""
_LEFT_OUT = "Curves, turns and regions are left out: no file can carry them."


class Workbench:
    """The boxes for several adapters and for models. `rows` is the mix that is worked on."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        with gr.Row(elem_classes="split", equal_height=False):
            with gr.Column(scale=3, min_width=330, elem_classes="box"):
                self._mixing()
            with gr.Column(scale=2, min_width=330, elem_classes="box"):
                self._making()

    def _mixing(self) -> None:
        gr.HTML(_TITLE)
        self.rows = stack.draw(varies=False, elem_id="merge-stack")
        self.pick = gr.Dropdown([], value=None, label="Add an adapter", elem_id="merge-add")
        with gr.Row(elem_classes="actions"):
            self.take = gr.Button("Take the mix of Generate", size="sm", elem_id="merge-take", scale=0)
        with gr.Column(elem_classes="for-several"):
            self.meter = Meter(self.studio, self.rows, elem_id="merge-meter")

    def _making(self) -> None:
        gr.HTML("<h2>New files</h2>")
        with gr.Accordion("Merge the mix into one adapter", open=False):
            self._merging()
        with gr.Accordion("Bake the mix into a base model", open=False):
            self._baking()
        with gr.Accordion("Take an adapter out of a fine-tuned model", open=False):
            self._extracting()
        self.task = Task(self.studio, elem_id="merged")

    def _merging(self) -> None:
        self.method = gr.Dropdown(_METHODS, value="concat", label="How", elem_id="merge-method")
        with gr.Row(visible=False, elem_classes="actions") as self.details:
            self.rank = gr.Number(
                0,
                label="Rank",
                info="0 is the largest of the parts",
                precision=0,
                minimum=0,
                elem_id="merge-rank",
            )
            self.density = gr.Slider(
                0.05,
                1,
                0.5,
                step=0.05,
                label="Part of the values to keep",
                visible=False,
                elem_id="merge-density",
            )
        self.base = gr.Dropdown(
            _bases(self.studio, none="LoRA only, which needs none"), value="", label="Base model",
            info="Other kinds than LoRA need the model they were made for", elem_id="merge-base",
        )  # fmt: skip
        self.name = gr.Textbox(
            label="Name of the new adapter", placeholder="ink-and-cat", elem_id="merge-name"
        )
        self.merge_format = written_for("merge-format")
        self.merge = gr.Button("Merge", elem_id="merge-go")

    def _baking(self) -> None:
        self.into = gr.Dropdown(
            _bases(self.studio), value="builtin", label="Base model", elem_id="bake-base",
            info="A copy of it carries the mix, for tools that know no adapters",
        )  # fmt: skip
        self.model = gr.Textbox(
            label="Name of the new model", placeholder="base-with-ink", elem_id="bake-name"
        )
        self.bake = gr.Button("Bake", elem_id="bake-go")

    def _extracting(self) -> None:
        self.tuned = gr.Dropdown(
            _bases(self.studio), value=None, label="Fine-tuned model", elem_id="extract-tuned",
            info="One of models/Stable-diffusion",
        )  # fmt: skip
        self.untuned = gr.Dropdown(
            _bases(self.studio), value="builtin", label="The base it was tuned from", elem_id="extract-base"
        )
        self.extract_rank = gr.Number(
            32, label="Rank", info="More keeps more of the difference", precision=0, minimum=1,
            elem_id="extract-rank",
        )  # fmt: skip
        self.extract_name = gr.Textbox(
            label="Name of the new adapter", placeholder="tuned-style", elem_id="extract-name"
        )
        self.extract_format = written_for("extract-format")
        self.extract = gr.Button("Extract", elem_id="extract-go")

    def connect(self, listed: Any, outputs: list[Any]) -> None:  # Any: a handler, gradio's components
        """After a job, `listed(file)` says what the tab shows."""

        def done(job: Job) -> tuple[str, Updates]:
            return made(job), listed(str(job.files[0])) if job.kind != "bake" else self.refresh()

        self.task.connect(done, outputs)
        self.pick.select(told(self._pick), [self.pick, self.rows], [self.rows, self.pick], **_QUIET)
        self.method.change(told(self._detail), self.method, [self.details, self.density], **_QUIET)
        merging = {
            "rows": self.rows, "name": self.name, "method": self.method, "rank": self.rank,
            "density": self.density, "base": self.base, "format": self.merge_format,
        }  # fmt: skip
        self.merge.click(told(self._merge), None, self.task.parts, inputs_kwargs=merging, **_QUIET)
        self.bake.click(told(self._bake), [self.rows, self.into, self.model], self.task.parts, **_QUIET)
        extracting = [self.tuned, self.untuned, self.extract_name, self.extract_rank, self.extract_format]
        self.extract.click(told(self._extract), extracting, self.task.parts, **_QUIET)

    @property
    def refreshed(self) -> list[Any]:  # Any: gradio's components
        """Everything that `refresh` sets."""
        return [self.pick, self.base, self.into, self.tuned, self.untuned]

    def refresh(self) -> Updates:
        """The choices as they are now."""
        bases = gr.update(choices=_bases(self.studio))
        return {
            self.pick: gr.update(choices=stack.choices(self.studio), value=None),
            self.base: gr.update(choices=_bases(self.studio, none="LoRA only, which needs none")),
            **dict.fromkeys((self.into, self.tuned, self.untuned), bases),
        }

    def taken(self, rows: stack.Value) -> stack.Value:
        """The rows of the tab Generate as a file can carry them."""
        if any(row["change"].keys() - {"lbw"} for row in rows["rows"]):
            gr.Info(_LEFT_OUT)
        return stack.fixed(rows)

    def _pick(self, file: str | None, rows: stack.Value) -> Updates:
        return {self.rows: stack.add(self.studio, rows, file, base="") if file else rows, self.pick: None}

    def _detail(self, method: str) -> Updates:
        return {
            self.details: gr.update(visible=method != "concat"),
            self.density: gr.update(visible=method in ("ties", "dare")),
        }

    def _merge(
        self,
        *,
        rows: stack.Value,
        name: str,
        method: str,
        rank: float,
        density: float,
        base: str,
        format: str,
    ) -> Updates:
        job = self.studio.merge(
            stack.entries(rows), name=name.strip(), method=method, rank=round(rank or 0), density=density,
            base=base or "", format=format,
        )  # fmt: skip
        return self.task.begin(job)

    def _bake(self, rows: stack.Value, base: str, name: str) -> Updates:
        return self.task.begin(self.studio.bake(stack.entries(rows), base=base, name=name.strip()))

    def _extract(self, tuned: str | None, base: str, name: str, rank: float, format: str) -> Updates:
        job = self.studio.extract(
            tuned or "", base=base, name=name.strip(), rank=round(rank or 0), format=format
        )
        return self.task.begin(job)


def written_for(elem_id: str) -> gr.Radio:
    """The choice of the keys that a new adapter is written with."""
    return gr.Radio(
        _FORMATS, value="kohya", label="Written for", elem_id=elem_id,
        info="The same weights. diffusers reads kohya's keys too; many tools do not read PEFT's.",
    )  # fmt: skip


def _bases(studio: Studio, *, none: str = "") -> list[tuple[str, str]]:
    return [*([(none, "")] if none else []), *studio.models.names()]
