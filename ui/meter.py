"""How the adapters of a mix get along: a meter for each pair, pictures, and weights that burn nothing."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.service.jobs import Job
from sdlora.service.studio import Studio
from ui import stack
from ui.handling import told
from ui.markup import facts, file_url, note
from ui.task import Task

Updates = dict[Any, Any]  # Any: gradio's components and their updates
Pair = Mapping[str, Any]  # Any: the worker's JSON

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
LOUD, FAINT = 1.2, 0.8  # energy of a sum over that of its parts, from where on it is told


class Meter:
    """The button, what it finds, and the button that balances the rows of `rows`."""

    def __init__(self, studio: Studio, rows: Any, *, elem_id: str) -> None:  # Any: the stack's component
        self.studio, self.rows = studio, rows
        self.asked = gr.State(())
        self.weights = gr.State(())
        with gr.Row(elem_classes="actions"):
            self.ask = gr.Button("How do they get along?", size="sm", elem_id=f"{elem_id}-ask", scale=0)
            self.balance = gr.Button(
                "Balance the weights", visible=False, size="sm", elem_id=f"{elem_id}-balance", scale=0
            )
        self.task = Task(studio, elem_id=elem_id)
        self.task.connect(self._done, [self.balance, self.weights])
        asking = [*self.task.parts, self.asked, self.balance]
        self.ask.click(told(self._ask), rows, asking, **_QUIET)
        self.balance.click(
            told(self._balance), [rows, self.weights, self.asked], [rows, self.balance, self.task.said],
            **_QUIET,
        )  # fmt: skip

    def _ask(self, rows: stack.Value) -> Updates:
        job = self.studio.compare(stack.entries(rows))
        return {
            **self.task.begin(job),
            self.asked: [row["file"] for row in rows["rows"] if row["on"]],
            self.balance: gr.update(visible=False),
        }

    def _done(self, job: Job) -> tuple[str, Updates]:
        weights = job.told["balanced"]
        scale = job.told["scale"]
        return meter(job), {self.balance: gr.update(visible=scale < 0.995), self.weights: weights}

    def _balance(
        self, rows: stack.Value, weights: Sequence[tuple[float, float | None]], asked: Sequence[str]
    ) -> Updates:
        if [row["file"] for row in rows["rows"] if row["on"]] != list(asked):
            raise gr.Error("The mix has changed. Ask again.", duration=None, print_exception=False)
        done = note("The weights are balanced.", kind="good", hint="All keep their share of the mix.")
        return {
            self.rows: stack.balanced(rows, weights),
            self.balance: gr.update(visible=False),
            self.task.said: done,
        }


def meter(job: Job) -> str:
    """What a finished comparison found."""
    names: Sequence[str] = job.told["names"]
    files = {stem: list(found) for stem, found in groupby(job.files, key=lambda path: path.stem)}
    parts = [_pair(pair, names, files) for pair in job.told["pairs"]]
    scale: float = job.told["scale"]
    base = f'<p class="dim">Measured on {escape(job.told["base"])}.</p>' if job.told["base"] else ""
    words = (
        note(f"Together they are {1 / scale:.2g} times as strong as the strongest alone.", kind="warn",
             hint="That may burn the picture. Balancing brings them down to the strongest alone.")
        if scale < 0.995 else note("Together they are no stronger than the strongest alone.", kind="good")
    )  # fmt: skip
    return words + "".join(parts) + base


def _pair(pair: Pair, names: Sequence[str], files: Mapping[str, list[Path]]) -> str:
    energy, title = pair["energy"], f"{names[pair['first']]} and {names[pair['second']]}"
    verdict = (
        "pull the same way: what they share comes twice"
        if energy > LOUD
        else "work against each other: part of both is lost"
        if energy < FAINT
        else "hardly meet: both keep what they do"
    )
    bar = (
        f'<div class="balance" role="meter" aria-label="{escape(title)}" aria-valuemin="0" aria-valuemax="2"'
        f' aria-valuenow="{energy:.2f}"><i style="left:{50 * min(max(energy, 0), 2):.1f}%"></i></div>'
        '<p class="dim ends"><span>cancel</span><span>do not meet</span><span>the same</span></p>'
    )
    rows = [("Energy", f"{energy:.2f}"), ("Cosine", f"{pair['cosine']:+.2f}")]
    rows.append(("Shared directions", f"{pair['overlap']:.0%}"))
    rows += [(f"Cosine in {block}", f"{cosine:+.2f}") for block, cosine in pair["blocks"].items()]
    shown = _pictures(files.get(pair["pictures"], []), alt=f"Similarity of the directions of {title}")
    more = f'<details class="plain"><summary>In figures</summary>{facts(rows)}{shown}</details>'
    return f"<p><strong>{escape(title)}</strong> {verdict}.</p>{bar}{more}"


def _pictures(files: Sequence[Path], *, alt: str) -> str:
    shown = "".join(
        f'<img src="{file_url(path)}" alt="{escape(alt)}">' for path in files if path.suffix == ".png"
    )
    told = '<p class="dim">How much of the first i directions of one lies in the first j of the other</p>'
    return f"{told}{shown}{links(files)}" if files else ""


def links(files: Sequence[Path]) -> str:
    """The files to take along."""
    words = (
        f'<a href="{file_url(path)}" download="{escape(path.name)}">{escape(path.name)}</a>' for path in files
    )
    return f'<p class="dim">{" · ".join(words)}</p>'
