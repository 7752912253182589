"""What is drawn, merged and measured: a queue of requests for the one worker, and how each of them stands.

A request that fails or takes the worker with it is its own failure only; the next one starts a new worker.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sdlora.errors import DeviceBusy, SdloraError, unforeseen
from sdlora.service.process import Message, Worker

State = Literal["waiting", "working", "done", "failed", "cancelled"]
logger = logging.getLogger(__name__)
KEPT = 50  # ended jobs that are remembered


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request and how it stands. `preview` is a data URL; `step` of `steps` counts over all pictures.

    `files` grow while it goes on; `told` is what the worker has found besides them, as JSON.
    """

    number: int
    kind: str
    title: str
    state: State = "waiting"
    stage: str = ""
    step: int = 0
    steps: int = 0
    preview: str = ""
    files: tuple[Path, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)  # Any: parsed JSON
    error: str = ""
    hint: str = ""
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("done", "failed", "cancelled")


class Jobs:
    """The requests of this home's worker, done one after another in the order they came."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._jobs: dict[int, Job] = {}
        self._waiting: deque[tuple[int, Message]] = deque()
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, title: str, message: Mapping[str, object]) -> Job:
        """The request waits for the worker; what it is known by."""
        with self._changed:
            job = Job(number=next(self._numbers), kind=str(message["kind"]), title=title)
            self._jobs[job.number] = job
            self._waiting.append((job.number, {**message, "id": job.number}))
            for number in [n for n, old in self._jobs.items() if old.ended][:-KEPT]:
                del self._jobs[number]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sdlora-jobs", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job

    def view(self, number: int) -> Job | None:
        """The job as it stands, while it is remembered."""
        with self._changed:
            return self._jobs.get(number)

    def current(self) -> Job | None:
        """The job that the worker is at, else the first that waits."""
        with self._changed:
            return next((job for job in self._jobs.values() if not job.ended), None)

    def last(self, kind: str) -> Job | None:
        """The last job of the kind that is done, while it is remembered and there is a worker."""
        with self._changed:
            jobs = reversed(self._jobs.values()) if self._worker.alive else ()
            return next((job for job in jobs if job.kind == kind and job.state == "done"), None)

    def ahead(self, number: int) -> int:
        """How many jobs come before it."""
        with self._changed:
            return sum(1 for other, job in self._jobs.items() if other < number and not job.ended)

    def cancel(self, number: int) -> None:
        """The job ends soon without a result; one that has ended stays as it is."""
        with self._changed:
            job = self._jobs.get(number)
            if job is None or job.ended:
                return
            if job.state == "waiting":
                self._waiting = deque((n, message) for n, message in self._waiting if n != number)
                self._jobs[number] = replace(job, state="cancelled")
                self._changed.notify_all()
            elif self._worker.alive:
                self._worker.send({"kind": "cancel", "id": number})

    def wait(self, number: int, timeout: float | None = None) -> Job:
        """The job once it has ended, or as it stands after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs[number].ended, timeout)
            return self._jobs[number]

    def release(self) -> None:
        """The worker is gone and the device's memory free. Raises DeviceBusy while it works."""
        with self._changed:
            busy = next((job for job in self._jobs.values() if job.state == "working"), None)
            if busy is not None:
                raise DeviceBusy(
                    f'"{busy.title}" is not done yet.', "Wait until it is, or cancel it, then start."
                )
            self._worker.stop()

    def close(self) -> None:
        """The worker is gone, whatever it did."""
        self._worker.stop()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                number, message = self._waiting.popleft()
                self._jobs[number] = replace(self._jobs[number], state="working", stage="Starting")
            try:
                self._worker.send(message)
                while not self._take(number, self._worker.receive()):
                    pass
            except SdloraError as error:
                self._change(number, state="failed", error=error.message, hint=error.hint)
            except Exception as error:  # the edge: this thread serves all requests to come
                logger.exception("A request failed")
                self._worker.stop()
                self._change(
                    number, state="failed", error=unforeseen(error), hint="The terminal shows the details."
                )

    def _take(self, number: int, told: Message) -> bool:
        """Whether what the worker `told` is the end of the job."""
        if told.get("id") != number:
            return False
        kind = told["type"]
        if kind == "stage":
            self._change(number, stage=told["stage"])
        elif kind == "step":
            shown = {"preview": told["preview"]} if told["preview"] else {}
            self._change(number, step=told["step"], steps=told["steps"], **shown)
        elif kind == "file":
            self._change(number, files=(*self._jobs[number].files, Path(told["file"])))
        elif kind == "done":
            files = tuple(Path(file) for file in told["files"])
            self._change(number, state="done", files=files, told=told["told"], seconds=told["seconds"])
        else:
            state = "cancelled" if told["cancelled"] else "failed"
            self._change(number, state=state, error=told["error"], hint=told["hint"])
        return kind in ("done", "error")

    def _change(self, number: int, **parts: object) -> None:
        with self._changed:
            self._jobs[number] = replace(self._jobs[number], **parts)  # type: ignore[arg-type]  # the fields of Job
            self._changed.notify_all()
