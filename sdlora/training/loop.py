"""The training loop: `train` takes a run to its end, and leaves it in order whatever happens."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from sdlora import runtime
from sdlora.base.hub import OnBytes
from sdlora.config import TrainConfig
from sdlora.contracts import Family, Step
from sdlora.data.batches import Batches, prepare
from sdlora.data.items import Dataset
from sdlora.errors import Cancelled, SdloraError, StorageError, unforeseen
from sdlora.events import Event, Notice, Outcome, Phase, RunEnded, StepDone
from sdlora.home import Home
from sdlora.loading import load_family
from sdlora.network.info import inspect
from sdlora.residence import settle
from sdlora.runtime import ALONE, Processes, Runtime
from sdlora.training import lr, measured, preview
from sdlora.training.checkpoint import Checkpoint
from sdlora.training.offload import offload
from sdlora.training.results import Clock, Result, Results
from sdlora.training.run import Run, step_of
from sdlora.training.runner import Runner
from sdlora.training.session import Session, Tell
from sdlora.training.several import Crew, meet

logger = logging.getLogger(__name__)

PARTS = 10  # checkpoints and previews of a run whose intervals are not set
PATIENCE = 25  # steps in a row that may be left out


def train(
    run: Run,
    *,
    on_event: Callable[[Event], None] | None = None,
    processes: Processes = ALONE,
) -> RunEnded:
    """The run is finished, or stopped because it was told to; its adapter is in its folder.

    It begins where its last checkpoint is. Every event is in the run's file before `on_event` gets it. Raises
    what went wrong, after the run has recorded it. Of several `processes` all call this, each with the same
    run, and the first has the events.
    """
    first = processes.rank == 0

    def tell(event: Event) -> None:
        if not first:
            return
        run.report(event)
        if on_event is not None:
            on_event(event)

    with recorded(run, tell, alone=first) as told:
        try:
            ended = _in_its_place(run, processes, told)
        except Cancelled:
            ended = RunEnded(outcome="stopped", step=_reached(run))
        told(ended)
        return ended


@contextlib.contextmanager
def recorded(run: Run, tell: Tell, *, alone: bool = True) -> Iterator[Tell]:
    """Inside, until its end is told, the run is this process's `alone`; what goes wrong is its end."""
    ends: list[RunEnded] = []

    with contextlib.ExitStack() as held:
        if alone:
            held.enter_context(run.locked())
        held.enter_context(_logged_to(run))

        def told(event: Event) -> None:
            tell(event)
            if isinstance(event, RunEnded):
                ends.append(event)
                held.close()  # others may go on in this process

        try:
            yield told
        except SdloraError as error:
            if not ends:
                _tell_failure(tell, run, error.message, error.hint)
            raise
        except Exception as error:  # the edge of the process: a run always says how it ended
            logger.exception("unforeseen")
            text = unforeseen(error)
            if not ends:
                _tell_failure(tell, run, text, f"The details are in {run.path / 'log.txt'}.")
            raise


def _in_its_place(run: Run, processes: Processes, tell: Tell) -> RunEnded:
    """Trains on the right device, with kernels and threads that repeat what an earlier process did."""
    config, last = run.config, Checkpoint.latest(run)
    precision = last.fixed.precision if last and config.loop.precision == "auto" else config.loop.precision
    machine = Runtime.choose(config.loop.device, precision, processes=processes)
    repeats = config.loop.deterministic or machine.device.type == "cpu"
    with (
        runtime.lease(machine.device, f"the run {run.path.name}"),
        runtime.kernels(deterministic=repeats, threads=last.fixed.threads if last else 0),
        runtime.memory_told(advice(config)),
    ):
        family = loaded(run, machine, tell)
        session = Session.begin(run, machine, family=family, last=last, tell=tell)
        meet(processes, "the start")
        return Loop(session, machine).go()


def loaded(run: Run, machine: Runtime, tell: Tell) -> Family:
    """The run's base, on the machine's device."""
    base = run.config.base
    tell(Phase(name="loading the base", done=0, total=1))
    return load_family(
        base.model,
        device=machine.device,
        dtype=machine.dtype,
        family=base.family,
        prediction=base.prediction,
        zero_terminal=base.zero_terminal,
        roots=Home.default().model_folders,
        waiting=True,
        on_bytes=_downloading(run, tell),
    )


class Loop:
    """The steps of a session, and what is done between them.

    Runs that train together have one `clock`, and what they take together says nothing of one alone.
    """

    def __init__(self, session: Session, machine: Runtime, *, clock: Clock | None = None) -> None:
        self.session = session
        self.runner = Runner(session, machine)
        self.machine = machine
        self.config = session.config
        self.done = session.start
        self.crew = Crew(machine.processes)
        self.alone = clock is None
        self.clock = clock or Clock()
        self.results = Results(session.train_step.result, self.clock)
        self._skipped_in_a_row = 0
        self._seconds: deque[float] = deque(maxlen=200)

    def go(self) -> RunEnded:
        """All steps that remain are done, or those until the run is told to stop."""
        if self.begin():
            with self.runner.ready(forms=self.forms):
                for micro_batches in self.course():
                    self.runner.run(micro_batches, step=self.done)
        return self.end()

    def begin(self) -> bool:
        """Everything is ready for the first step. False when the run was told to stop before."""
        try:
            self._micro_batches = self._batches()
        except Cancelled:
            self.crew.stop()
            return False
        runtime.release(self.machine.device)
        self._settle(self._micro_batches)
        self.crew.begin(self.session.train_step, lambda: f"step {self.done + 1}")
        return True

    @property
    def forms(self) -> int:
        """In how many forms micro-batches come."""
        return self._micro_batches.forms

    def course(self) -> Iterator[tuple[Step, ...]]:
        """The micro-batches of step after step; before the next are asked for, a step was made of them.

        Between steps it obeys, saves and draws.
        """
        loop, train_step = self.config.loop, self.session.train_step
        if self.session.start >= loop.steps:
            text = f"All {self.session.start} steps of this run were done already."
            self.session.tell(Notice(text=text, hint="Give more of them with loop.steps."))
        self.results.restart()
        with contextlib.closing(self._micro_batches.stream(self.done)) as stream:
            if self.done == 0:
                self._obey()
                self._preview_when_due()
            while self.done < loop.steps and not self.crew.stopping:
                share = lr.factor(self.config.schedule, self.done, steps=loop.steps)
                rate = train_step.prepare(self.done, lr_factor=share)
                yield next(stream)
                self.done += 1
                self._tell_results(self.results.push(self.done, lr=rate))
                self._obey()
                self._save_when_due()
                self._preview_when_due()

    def end(self) -> RunEnded:
        """What was learned is saved."""
        session = self.session
        if self.done:
            self._tell_results(self.results.flush())
            if 2 * self._skipped_in_a_row > self.done - session.start:  # not a loss scale that settles
                raise self._broken(f"after {self._skipped_in_a_row} losses or gradients that were not finite")
            self.crew.require_same(session.train_step.parameters.values())
            if self.crew.first:
                session.save_checkpoint(self.done)
                self._finish()
        outcome: Outcome = "finished" if self.done >= self.config.loop.steps else "stopped"
        return RunEnded(outcome=outcome, step=self.done, file=session.run.adapter.name if self.done else "")

    def _settle(self, batches: Batches) -> None:
        """What the steps need lies on the device, or waits to be fetched."""
        family, device = self.session.family, self.machine.device
        if self.config.loop.offload and device.type == "cuda":
            offload(family.networks["unet"], device)
        elif self.config.loop.offload:
            self.session.tell(Notice(text="loop.offload is for NVIDIA GPUs, so the run goes on without."))
        settle(family, *batches.networks)

    def _batches(self) -> Batches:
        """The micro-batches of this process: its part of those that one process would make for all."""
        loop, dataset, processes = self.config.loop, self.session.dataset, self.machine.processes
        whole = replace(self.config, loop=replace(loop, batch_size=loop.batch_size * processes.count))

        def on_progress(name: str, done: int, total: int) -> None:
            self.session.tell(Phase(name=name, done=done, total=total))
            if self._told_to_stop():
                raise Cancelled("Stopped while encoding.")

        def prepared(dataset: Dataset) -> Batches:
            return prepare(
                dataset,
                whole,
                self.session.family,
                cache=Home.default().cache,
                train_text=self.session.trains_text,
                on_progress=on_progress,
            )

        if processes.count > 1:  # each encodes some images, then all find everything there
            some = replace(dataset, items=dataset.items[processes.rank :: processes.count])
            self.crew.all_do(lambda: some.items and prepared(some))
        return self.crew.all_do(lambda: prepared(dataset)).part(processes.rank, of=processes.count)

    def _tell_results(self, results: Iterator[Result]) -> None:
        for result in results:
            if result.skipped:
                self._tell_skipped(result)
                continue
            self._skipped_in_a_row = 0
            self._seconds.append(result.seconds)
            self.runner.took(result.seconds, remaining=self.config.loop.steps - self.done)
            self.session.tell(
                StepDone(
                    step=result.step,
                    loss=result.loss,
                    lr=result.lr,
                    grad_norm=result.grad_norm,
                    seconds=result.seconds,
                    memory=self.machine.peak_bytes(),
                )
            )

    def _tell_skipped(self, result: Result) -> None:
        self._skipped_in_a_row += 1
        text = f"Step {result.step} was left out: its loss or gradient was not finite."
        self.session.tell(Notice(text=text))
        if self._skipped_in_a_row >= PATIENCE:
            raise self._broken(
                f"at step {result.step}: {PATIENCE} losses or gradients in a row were not finite"
            )

    def _broken(self, words: str) -> SdloraError:
        hint = "Lower optimizer.lr, set loop.precision to fp32 or bf16, and begin a new run."
        return SdloraError(f"Training broke off {words}.", hint)

    def _finish(self) -> None:
        """The adapter is in the run's folder, and the next run like it knows how long it takes alone."""
        family, adapter = self.session.family, self.session.run.adapter
        self.session.write_result(step=self.done)
        if problem := inspect(adapter).problem:
            self.session.tell(Notice(text=problem, hint="Train longer, or with a higher learning rate."))
        if not self.alone:
            return
        measured.remember(
            Home.default().cache,
            self.config,
            tuple(self._seconds),
            model=str(family.source),
            resolution=self.config.data.resolution or family.native_size,
            memory=self.machine.peak_bytes(),
        )

    def _obey(self) -> None:
        """The commands that lie in the run's folder are carried out."""
        if not self.crew.first:
            return
        for command in self.session.run.take_commands():
            if command == "stop":
                self.crew.stop()
            elif command == "checkpoint":
                self._save()
            elif command == "preview":
                self._preview()

    def _save_when_due(self) -> None:
        if self.done % _every(self.config.loop.save_every, self.config) == 0:
            self.crew.require_same(self.session.train_step.parameters.values())
            self._save()

    def _save(self) -> None:
        if self.done and self.crew.first:
            self._tell_results(self.results.flush())
            with self.clock.stopped():
                self.session.save_checkpoint(self.done)

    def _preview_when_due(self) -> None:
        every = self.config.preview.every
        last = self.done == self.config.loop.steps
        if self.crew.first and every >= 0 and (last or self.done % _every(every, self.config) == 0):
            self._preview()

    def _preview(self) -> None:
        self._tell_results(self.results.flush())
        with self.clock.stopped(), contextlib.suppress(Cancelled):
            for event in preview.draw(self.session, self.done, cancelled=self._told_to_stop):
                self.session.tell(event)

    def _told_to_stop(self) -> bool:
        if self.session.run.told_to_stop():
            self.crew.stop()
        return self.crew.asked


def _every(interval: int, config: TrainConfig) -> int:
    return interval or max(1, config.loop.steps // PARTS)


def advice(config: TrainConfig) -> str:
    """How a run could do with less memory, in words."""
    loop = config.loop
    ways = [
        f"lower loop.batch_size (it is {loop.batch_size}; loop.accumulate keeps the effective batch)"
        if loop.batch_size > 1
        else "",
        "" if loop.checkpointing else "switch loop.checkpointing on",
        "set base.storage to fp8 or nf4" if config.base.storage == "full" else "",
        "" if loop.offload else "switch loop.offload on",
        "lower data.resolution",
    ]
    return f"To need less, {', or '.join(way for way in ways if way)}."


def _tell_failure(tell: Tell, run: Run, message: str, hint: str) -> None:
    """The run's last event tells what went wrong, if it can be written at all."""
    with contextlib.suppress(StorageError):
        tell(RunEnded(outcome="failed", step=_reached(run), error=message, hint=hint))


def _reached(run: Run) -> int:
    """The step of the last checkpoint."""
    checkpoints = run.checkpoints()
    return step_of(checkpoints[-1]) if checkpoints else 0


def _downloading(run: Run, tell: Tell) -> OnBytes:
    """Tells how far the base has come from the Hub. Raises Cancelled when the run is told to stop."""

    def on_bytes(done: int, total: int) -> None:
        tell(Phase(name="downloading the base, in MB", done=done // 10**6, total=total // 10**6))
        if run.told_to_stop():
            raise Cancelled("Stopped while the base was downloaded.")

    return on_bytes


@contextlib.contextmanager
def _logged_to(run: Run) -> Iterator[None]:
    """Inside, what libraries log stands in the run's log.txt."""
    handler = logging.FileHandler(run.path / "log.txt", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
