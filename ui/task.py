"""A job of the worker as the page follows it: how far it is, a button that ends it, what came of it."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from sdlora.service.jobs import Job
from sdlora.service.studio import Studio
from ui.handling import told
from ui.markup import note, progress

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments


class Task:
    """One job at a time. `parts` is what `begin` and the ticks after it update."""

    def __init__(self, studio: Studio, *, elem_id: str) -> None:
        self.studio = studio
        self.job = gr.State(0)
        self.said = gr.HTML(elem_id=elem_id, elem_classes="at-need")
        self.cancel = gr.Button("Cancel", visible=False, size="sm", elem_id=f"{elem_id}-cancel")
        self.timer = gr.Timer(0.5, active=False)
        self._shown: set[int] = set()  # numbers of jobs whose result is on a page
        self.parts = [self.job, self.said, self.cancel, self.timer]

    def connect(self, done: Callable[[Job], tuple[str, Updates]], outputs: Sequence[Any]) -> None:
        """`done` says in HTML what came of a finished job, and what else changes among `outputs`."""

        def tick(number: int) -> Updates:
            job = self.studio.jobs.view(number)
            if job is None or number in self._shown:
                return {self.timer: gr.Timer(active=False)}
            if job.state != "done":
                return self.begin(job)
            # once: ticks that were under way already would undo what a person has typed since
            self._shown.add(number)
            words, updates = done(job)
            return {**updates, **self.begin(job), self.said: words}

        changed = [*self.parts, *outputs]
        self.timer.tick(told(tick), self.job, changed, concurrency_limit=None, **_QUIET)
        self.cancel.click(told(self.studio.jobs.cancel), self.job, None, **_QUIET)

    def begin(self, job: Job) -> Updates:
        """The parts while `job` goes on, or once it has ended without a result."""
        return {
            self.job: job.number,
            self.said: _said(job, ahead=self.studio.jobs.ahead(job.number)),
            self.cancel: gr.update(visible=not job.ended),
            self.timer: gr.Timer(active=not job.ended),
        }


def _said(job: Job, *, ahead: int) -> str:
    if job.state == "failed":
        return note(job.error, kind="bad", hint=job.hint)
    if job.state == "cancelled":
        return note("Cancelled.", hint="Nothing was written.")
    waiting = job.state == "waiting" and ahead > 0
    words = f"{job.title}: waiting for what is drawn now…" if waiting else f"{job.title}…"
    return progress(words, done=job.step, total=job.steps)
