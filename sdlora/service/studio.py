"""What the page asks for, in one place. It starts processes and reads folders; it computes nothing itself."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sdlora.config import TrainConfig
from sdlora.errors import AdapterError, ModelAbsent, SdloraError
from sdlora.files import within
from sdlora.generation.png import Restored, read_parameters, read_png
from sdlora.generation.prompt import extract_tags
from sdlora.generation.request import GenerateRequest, weights_told
from sdlora.home import Home
from sdlora.network.cache import CACHE_BYTES
from sdlora.network.stack import Entry
from sdlora.options import applying, build, flatten, from_toml
from sdlora.service.datasets import Datasets
from sdlora.service.drawing import DEVICE
from sdlora.service.history import History
from sdlora.service.jobs import Job, Jobs
from sdlora.service.library import Library
from sdlora.service.machine import Machine
from sdlora.service.mix import Masks
from sdlora.service.models import Models
from sdlora.service.process import Worker
from sdlora.service.runs import Runs
from sdlora.service.trash import Trash
from sdlora.training.estimate import TrainPlan, Verdict, plan_of, plan_together, verdict
from sdlora.training.sweep import asked, require_alike

__all__ = ["CACHE_BYTES", "Entry", "Studio", "TrainPlan", "Verdict"]


class Studio:
    """The working data of `home`: datasets, runs, adapters, models, pictures. `device` is the worker's.

    `adapter_bytes` of memory keep adapters at hand between pictures; it may be set at any time.
    """

    def __init__(self, home: Home, *, device: str = "auto", adapter_bytes: int = CACHE_BYTES) -> None:
        self.home = home
        self.device = device
        self.adapter_bytes = adapter_bytes
        self.trash = Trash(home.trash)
        self.machine = Machine()
        self.datasets = Datasets(home, self.trash)
        self.models = Models(home.model_folders)
        self.runs = Runs(home.runs, self.trash)
        kept = home.cache / "adapters.json"
        self.library = Library(home.adapter_folders, runs=home.runs, trash=self.trash, kept=kept)
        self.history = History(home.outputs)
        self.masks = Masks(home.cache / "masks")
        self.measures = home.cache / "measures"
        self.jobs = Jobs(Worker(home.cache / "worker.log", {DEVICE: device}))

    def readable(self) -> tuple[Path, ...]:
        """The folders whose files the browser may fetch."""
        own = (self.datasets.thumbnails, self.masks.folder, self.measures)
        return (*own, self.home.outputs, self.home.runs, *self.home.adapter_folders)

    def plan(self, config: TrainConfig) -> TrainPlan:
        """What the run would take. Raises SdloraError in words when it could not start."""
        return plan_of(config)

    def verdict(self, config: TrainConfig, plan: TrainPlan) -> Verdict | None:
        """How the memory that the run needs goes with its device; None where that is not known."""
        total, free = self.machine.room(config.loop.device)
        return verdict(config, plan.memory_bytes, total=total, free=free) if total else None

    def start(self, config: TrainConfig) -> str:
        """A new run trains in a process of its own; its name. Raises SdloraError when it could not start."""
        with suppress(ModelAbsent):  # the run downloads it
            self.plan(config)
        self._make_room()
        return self.runs.start(config)

    def rename_dataset(self, name: str, new: str) -> str:
        """The dataset has another name, and its runs know; the name. Raises UserError when it cannot be."""
        folder = self.datasets.folder(name)
        self.runs.require_none_on(folder)
        chosen = self.datasets.rename(name, new)
        if (moved := self.datasets.folder(chosen)) != folder:
            self.runs.follow(folder, moved)
        return chosen

    def remove_dataset(self, name: str) -> Path:
        """The dataset is in the trash; its place there. Raises RunError while a run is trained on it."""
        self.runs.require_none_on(self.datasets.folder(name))
        return self.datasets.remove_all(name)

    def several(
        self,
        config: TrainConfig,
        *,
        datasets: Sequence[Path],
        swept: Mapping[str, Sequence[str]],
        triggers: Sequence[str] = (),
    ) -> tuple[TrainConfig, ...]:
        """What `config` becomes for each of the datasets with each combination of the swept values.

        `triggers` are words of the datasets, one for each, else all have the one of `config`. Raises
        ConfigError when a value will not do, or names two runs the same.
        """
        own = asked(config.output.name, [str(folder) for folder in datasets], swept, triggers=triggers)
        told = flatten(config)
        return tuple(
            build(TrainConfig, {**applying(TrainConfig, told, {**told, **values}), **values})
            for values in own.values()
        )

    def plan_together(self, configs: Sequence[TrainConfig]) -> TrainPlan:
        """What the runs take in one pass. Raises SdloraError when they could not start."""
        return plan_together(configs)

    def start_together(self, configs: Sequence[TrainConfig]) -> tuple[str, ...]:
        """New runs train in one pass; their names. Raises SdloraError when they could not start."""
        require_alike(configs)
        with suppress(ModelAbsent):  # the runs download it
            self.plan_together(configs)
        self._make_room()
        return self.runs.start_together(configs)

    def resume(self, *names: str) -> None:
        """The runs go on where they stopped, in one pass."""
        self._make_room()
        self.runs.resume(*names)

    def generate(self, request: GenerateRequest) -> Job:
        """The request waits for the worker. Raises AdapterError when the prompt names an unknown adapter."""
        prompt, tags = extract_tags(request.prompt)
        typed = tuple(tag.entry(self.library.named(tag.name)) for tag in tags)
        for entry in request.stack:
            self.library.adapter(entry.file)
        self.masks.check(request.stack)
        whole = replace(request, prompt=prompt, stack=request.stack + typed)
        title = prompt.strip()[:60] or "A picture"
        told = {"request": whole.to_json(), "outputs": str(self.home.outputs)}
        return self._work("generate", title, {**told, "adapter_bytes": self.adapter_bytes})

    def kept(self) -> tuple[int, int]:
        """How many adapters are at hand in memory now, and their bytes."""
        job = self.jobs.last("generate")
        return (job.told["cache"]["files"], job.told["cache"]["bytes"]) if job else (0, 0)

    def restore(self, picture: Path) -> Restored:
        """The request that a picture says it was made with. Raises UserError when it says nothing."""
        folders = [*self.home.adapter_folders, self.home.runs]
        return read_png(picture, folders=folders, keep_mask=self.masks.keep)

    def restore_text(self, text: str) -> Restored:
        """The request that settings in A1111's words mean, other tools' included."""
        return read_parameters(text, folders=[*self.home.adapter_folders, self.home.runs])

    def drawn(self, picture: Path) -> Path:
        """`picture` when it is one of the history. Raises UserError otherwise."""
        return within(picture, [self.home.outputs])

    def merge(
        self,
        entries: Sequence[Entry],
        *,
        name: str,
        method: str = "concat",
        rank: int = 0,
        density: float = 0.5,
        base: str = "",
        format: str = "kohya",
    ) -> Job:
        """One adapter of several waits for the worker; `base` is for kinds other than LoRA.

        Raises AdapterError when the name is taken.
        """
        if len(entries) < 2:
            raise AdapterError("There is nothing to merge.", "Choose at least two adapters.")
        values = {"method": method, "rank": rank, "density": density, "base": base}
        told = self._stack(entries) | self._output(name, format) | values
        return self._work("merge", f"Merging {name}", told)

    def resize(self, file: Path, *, name: str, rank: int, energy: float, format: str = "kohya") -> Job:
        """The adapter with fewer ranks waits for the worker. Raises AdapterError when the name is taken."""
        values = {"file": str(self.library.adapter(file).path), "rank": rank, "energy": energy}
        return self._work("resize", f"Resizing {file.stem}", values | self._output(name, format))

    def extract(self, tuned: str, *, base: str, name: str, rank: int, format: str = "kohya") -> Job:
        """An adapter of what a model learned beyond its base waits for the worker."""
        if not tuned:
            raise AdapterError("No fine-tuned model is chosen.", "Put it into models/Stable-diffusion.")
        values = {"tuned": tuned, "base": base, "rank": rank}
        return self._work("extract", f"Extracting {name}", values | self._output(name, format))

    def bake(self, entries: Sequence[Entry], *, base: str, name: str) -> Job:
        """A model that carries the stack waits for the worker. Raises ModelError when the name is taken."""
        if not entries:
            raise AdapterError("There is nothing to bake.", "Choose an adapter.")
        values = {"base": base, "output": str(self.models.output(name))}
        return self._work("bake", f"Baking {name}", self._stack(entries) | values)

    def compare(self, entries: Sequence[Entry]) -> Job:
        """How the entries get along waits for the worker."""
        if len(entries) < 2:
            raise AdapterError("There is nothing to compare.", "Choose at least two adapters.")
        families = {info.family for e in entries if (info := self.library.adapter(e.file).info)}
        values = {"bases": self.models.of(families)}
        return self._work("compare", "Comparing", self._stack(entries) | self._pictures | values)

    def measure(self, file: Path) -> Job:
        """Where the adapter acts, and how many directions it needs, waits for the worker."""
        adapter = self.library.adapter(file)
        families = {adapter.info.family} if adapter.info else set[str]()
        values = {"file": str(adapter.path), "bases": self.models.of(families)}
        return self._work("measure", f"Measuring {file.stem}", values | self._pictures)

    def recipe(self, file: Path) -> TrainConfig:
        """The settings that made the adapter: of its run, else of the file itself.

        Raises AdapterError when neither tells them.
        """
        adapter = self.library.adapter(file)
        if adapter.run:
            return self.runs.config(adapter.run)
        told = adapter.info.metadata.get("sdlora.config", "") if adapter.info else ""
        if not told:
            raise AdapterError(f"{adapter.name} does not say how it was made.", "Only our own files do.")
        config = build(TrainConfig, from_toml(told, adapter.path.name))
        folder = self.datasets.folders().get(config.data.folder, Path(config.data.folder))
        return replace(config, data=replace(config.data, folder=str(folder)))

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

    def _work(self, kind: str, title: str, message: Mapping[str, object]) -> Job:
        models = [str(folder) for folder in self.home.model_folders]
        return self.jobs.submit(title, {"kind": kind, "models": models, **message})

    def _stack(self, entries: Sequence[Entry]) -> dict[str, object]:
        files = [self.library.adapter(entry.file).path for entry in entries]
        told = [{"file": str(f), **weights_told(e)} for f, e in zip(files, entries, strict=True)]
        return {"stack": told}

    def _output(self, name: str, format: str) -> dict[str, object]:
        if not name:
            raise AdapterError("The new adapter needs a name.", "For example ink-and-cat.")
        return {"output": str(self.library.output(name)), "format": format}

    @property
    def _pictures(self) -> dict[str, object]:
        return {"pictures": str(self.measures)}

    def _make_room(self) -> None:
        """A GPU's memory is given back before a run starts; on a processor both fit."""
        if self.device != "cpu" and self.machine.gpus():
            self.jobs.release()
