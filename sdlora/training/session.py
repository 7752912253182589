"""A run in its process: what was loaded for it, and how what it has learned reaches the disk."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sdlora.adapters import KINDS
from sdlora.base.stored import store
from sdlora.config import TrainConfig
from sdlora.contracts import Family
from sdlora.data.batches import NO_TRIGGER, lacks_trigger
from sdlora.data.folder import scan
from sdlora.data.items import Dataset
from sdlora.events import CheckpointSaved, Event, Notice, RunStarted
from sdlora.network import codec, sidecar, targets
from sdlora.network.attach import Network, create
from sdlora.runtime import Runtime
from sdlora.training import checkpoint
from sdlora.training.checkpoint import Checkpoint, Fixed
from sdlora.training.metadata import training_metadata
from sdlora.training.run import Run
from sdlora.training.step import TrainStep

Tell = Callable[[Event], None]

PROBLEMS_TOLD = 8
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Session:
    """A run's parts. `start` is how many steps were done before this process."""

    run: Run
    config: TrainConfig
    family: Family
    dataset: Dataset
    network: Network
    train_step: TrainStep
    fixed: Fixed
    start: int
    tell: Tell

    @classmethod
    def begin(
        cls, run: Run, machine: Runtime, *, family: Family, last: Checkpoint | None, tell: Tell
    ) -> "Session":
        """The run's parts around a loaded `family`, as new or as its `last` checkpoint holds them.

        Raises RunError when something that must stay the same has changed since.
        """
        config = run.config
        dataset = scan(Path(config.data.folder), repeats=config.data.repeats)
        fixed = Fixed.of(
            config,
            dataset,
            base=family.hash,
            precision=machine.precision,
            threads=torch.get_num_threads(),
            processes=machine.processes.count,
        )
        if last is not None:
            last.fixed.require_same(fixed)
        for text in _problems(dataset):
            tell(Notice(text=text))
        if lacks_trigger(config):
            tell(Notice(text=NO_TRIGGER, hint="Name one with data.captions.trigger."))
        _pack(family, config)
        network = create(family, taught(config), seed=config.loop.seed).to(family.device)
        train_step = TrainStep(family, network, config)
        if last is not None:
            train_step.restore(last.state())
        session = cls(
            run, config, family, dataset, network, train_step, fixed, last.step if last else 0, tell
        )
        tell(
            RunStarted(
                step=session.start,
                steps=config.loop.steps,
                images=len(dataset.items),
                parameters=sum(parameter.numel() for parameter in network.parameters()),
                device=machine.title,
            )
        )
        return session

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder is taught, so that what it says of a caption cannot be kept."""
        return bool(self.network.text_parameters)

    @contextlib.contextmanager
    def result(self) -> Iterator[None]:
        """Inside, the network is what would be saved now: the moving average where there is one."""
        average, working = self.train_step.ema, self.train_step.working
        working.eval()
        try:
            with average.applied() if average is not None else contextlib.nullcontext():
                self.train_step.refresh()
                yield
        finally:
            working.train()

    def write_result(self, *, step: int) -> None:
        """The run's adapter is that after `step` steps, with its last picture in its header and beside it."""
        path, config = self.run.adapter, self.config
        picture, texts = self._last_picture()
        self.write_adapter(path, step=step, texts=texts)
        trigger = config.data.captions.trigger.strip()
        card = sidecar.card(
            triggers=[trigger] if trigger else [],
            weight=1.0,
            description=config.output.description,
            family_name=self.family.name,
        )
        sidecar.accompany(path, card=card, picture=picture)

    def _last_picture(self) -> tuple[Path | None, Mapping[str, str]]:
        """The last preview of something learned, and the header's text that shows it."""
        drawn = sorted((self.run.path / "previews").glob("step-*-0.png"))
        if not drawn or drawn[-1].name.startswith("step-000000-"):
            return None, _NONE
        try:
            return drawn[-1], {"modelspec.thumbnail": sidecar.thumbnail(drawn[-1])}
        except OSError as error:
            self.tell(Notice(text=f"{drawn[-1].name} is not shown with the adapter: {error}."))
            return None, _NONE

    def write_adapter(self, path: Path, *, step: int, texts: Mapping[str, str] = _NONE) -> None:
        """`path` holds the adapter after `step` steps, verified; its header says `texts` too."""
        output = self.config.output
        told = training_metadata(
            self.config, self.family, self.dataset, step=step, processes=self.fixed.processes
        )
        with self.result():
            codec.save(
                path,
                self.network.adapters,
                family_name=self.family.name,
                metadata=told | dict(texts),
                dtype=output.dtype,
                format="peft" if output.format == "peft" else "kohya",
            )

    def save_checkpoint(self, step: int) -> None:
        """The run can go on from `step`; older checkpoints than wanted are gone."""
        if self.run.checkpoint(step).exists():
            return
        folder = checkpoint.save(
            self.run,
            step,
            self.fixed,
            state=self.train_step.state(),
            write_adapter=lambda path: self.write_adapter(path, step=step),
        )
        self.tell(CheckpointSaved(step=step, file=folder.relative_to(self.run.path).as_posix()))
        checkpoint.prune(self.run, keep=self.config.loop.keep)


def taught(config: TrainConfig) -> Any:  # Any: the option tree of the adapter's kind
    """The adapter's options, without the parts whose learning rate is zero."""
    adapter, rates = config.adapter, config.optimizer
    return replace(
        adapter, unet=adapter.unet and rates.lr > 0, text_encoder=adapter.text_encoder and rates.text_lr > 0
    )


def _pack(family: Family, config: TrainConfig) -> None:
    """The UNet, and every other network that is taught, keeps its weights as the options say."""
    if config.base.storage == "full":
        return
    spec = taught(config)
    layers = targets.resolve(family, spec, KINDS.get(spec.kind).layer_types)
    for name in {"unet", *(layer.component for layer in layers)}:
        store(family.networks[name], config.base.storage, device=family.device)


def _problems(dataset: Dataset) -> Iterator[str]:
    """What is wrong with the images and captions, the worst first, and how much of it is not told here."""
    found = sorted(dataset.problems, key=lambda problem: not problem.fatal)
    yield from (problem.text for problem in found[:PROBLEMS_TOLD])
    if len(found) > PROBLEMS_TOLD:
        yield f"There are {len(found) - PROBLEMS_TOLD} more remarks; the tab Datasets lists them all."
