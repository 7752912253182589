"""What the page asks for, in one place. It starts processes and reads folders; it computes nothing itself."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdlora.config import TrainConfig
from sdlora.errors import AdapterError, SdloraError
from sdlora.files import within
from sdlora.generation.png import Restored, read_png
from sdlora.generation.prompt import extract_tags
from sdlora.generation.request import GenerateRequest
from sdlora.home import Home
from sdlora.network.stack import Entry
from sdlora.service.datasets import Datasets
from sdlora.service.drawing import DEVICE
from sdlora.service.history import History
from sdlora.service.jobs import Job, Jobs
from sdlora.service.library import Library
from sdlora.service.machine import Machine
from sdlora.service.models import Models
from sdlora.service.process import Worker
from sdlora.service.runs import Runs
from sdlora.service.trash import Trash
from sdlora.training.estimate import TrainPlan, plan_of

__all__ = ["Entry", "Studio", "TrainPlan"]


class Studio:
    """The working data of `home`: datasets, runs, adapters, models, pictures. `device` is the worker's."""

    def __init__(self, home: Home, *, device: str = "auto") -> None:
        self.home = home
        self.device = device
        self.trash = Trash(home.trash)
        self.machine = Machine()
        self.datasets = Datasets(home, self.trash)
        self.models = Models(home.models)
        self.runs = Runs(home.runs, self.trash)
        self.library = Library(home.adapters, runs=home.runs, trash=self.trash)
        self.history = History(home.outputs)
        self.jobs = Jobs(Worker(home.cache / "worker.log", {DEVICE: device}))

    def readable(self) -> tuple[Path, ...]:
        """The folders whose files the browser may fetch."""
        return (self.datasets.thumbnails, self.home.outputs, self.home.runs, self.home.adapters)

    def plan(self, config: TrainConfig) -> TrainPlan:
        """What the run would take. Raises SdloraError in words when it could not start."""
        return plan_of(config)

    def start(self, config: TrainConfig) -> str:
        """A new run trains in a process of its own; its name. Raises SdloraError when it could not start."""
        self.plan(config)
        self._make_room()
        return self.runs.start(config)

    def resume(self, name: str) -> None:
        """The run goes on where it stopped."""
        self._make_room()
        self.runs.resume(name)

    def generate(self, request: GenerateRequest) -> Job:
        """The request waits for the worker. Raises AdapterError when the prompt names an unknown adapter."""
        prompt, tags = extract_tags(request.prompt)
        typed = tuple(tag.entry(self.library.named(tag.name)) for tag in tags)
        for entry in request.stack:
            self.library.adapter(entry.file)
        whole = replace(request, prompt=prompt, stack=request.stack + typed)
        title = prompt.strip()[:60] or "A picture"
        places = {"outputs": str(self.home.outputs), "models": str(self.home.models)}
        return self.jobs.submit(title, {"kind": "generate", "request": whole.to_json(), **places})

    def restore(self, picture: Path) -> Restored:
        """The request that a picture says it was made with. Raises UserError when it says nothing."""
        return read_png(picture, folders=[self.home.adapters, self.home.runs])

    def drawn(self, picture: Path) -> Path:
        """`picture` when it is one of the history. Raises UserError otherwise."""
        return within(picture, [self.home.outputs])

    def merge(self, entries: Sequence[Entry], *, name: str) -> Job:
        """One adapter of several waits for the worker. Raises AdapterError when the name is taken."""
        if not name:
            raise AdapterError("The new adapter needs a name.", "For example ink-and-cat.")
        if len(entries) < 2:
            raise AdapterError("There is nothing to merge.", "Choose at least two adapters.")
        output = self.library.output(name)
        parts = [(str(self.library.adapter(e.file).path), e.weight, e.text_weight) for e in entries]
        return self.jobs.submit(f"Merging {name}", {"kind": "merge", "entries": parts, "output": str(output)})

    def mismatch(self, model: str, adapter: Path) -> str:
        """Why the adapter cannot go on the base `model`; "" when it can, or when that is not known."""
        if not model:
            return ""
        try:
            base, info = self.models.describe(model), self.library.adapter(adapter).info
        except SdloraError:
            return ""  # what is wrong with the base or the file is said where it is chosen
        if info is None or info.family in ("", base.family):
            return ""
        return f"Made for {info.family_title}; the base is {base.title}."

    def close(self) -> None:
        """The worker is gone; trainers go on."""
        self.jobs.close()

    def _make_room(self) -> None:
        """A GPU's memory is given back before a run starts; on a processor both fit."""
        if self.device != "cpu" and self.machine.gpus():
            self.jobs.release()
