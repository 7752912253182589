"""Several runs in one pass: one base, one batch made of all their samples, an adapter for each.

What the runs have in common is computed once. Each keeps its own data, optimizer, events, checkpoints,
commands and end, and learns what it would learn alone, up to rounding (and to other draws of dropout). Where
their samples are of several forms, such as tall and wide pictures, a step takes a batch for each of them.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from sdlora import runtime
from sdlora.contracts import Family, Step
from sdlora.events import Event, RunEnded
from sdlora.network.grouped import Group, grouped
from sdlora.runtime import Runtime
from sdlora.training.capture import form_of, parts_of
from sdlora.training.checkpoint import Checkpoint
from sdlora.training.loop import Loop, advice, loaded, recorded
from sdlora.training.results import Clock
from sdlora.training.run import Run
from sdlora.training.runner import Runner
from sdlora.training.session import Session, Tell
from sdlora.training.step import Slope, TrainStep
from sdlora.training.sweep import require_alike


def train_together(
    runs: Sequence[Run], *, on_event: Callable[[Run, Event], None] | None = None
) -> dict[Run, RunEnded]:
    """All runs are finished, or stopped because they were told to; their adapters are in their folders.

    Raises ConfigError when they differ in what they must share, and what went wrong, after all that were
    still going have recorded it.
    """
    require_alike([run.config for run in runs])
    with contextlib.ExitStack() as held:
        told = {run: held.enter_context(recorded(run, _teller(run, on_event))) for run in runs}
        return _in_one_place(told)


def _in_one_place(told: Mapping[Run, Tell]) -> dict[Run, RunEnded]:
    first, tell = next(iter(told.items()))
    config = first.config
    machine = Runtime.choose(config.loop.device, config.loop.precision)
    repeats = config.loop.deterministic or machine.device.type == "cpu"
    with (
        runtime.lease(machine.device, f"the runs {', '.join(run.path.name for run in told)}"),
        runtime.kernels(deterministic=repeats),
        runtime.memory_told(advice(config)),
    ):
        family = loaded(first, machine, tell)
        sessions = [
            Session.begin(run, machine, family=family, last=Checkpoint.latest(run), tell=tell)
            for run, tell in told.items()
        ]
        clock = Clock()
        return Team([Loop(session, machine, clock=clock) for session in sessions], machine).go()


class Team:
    """Loops whose steps are made together."""

    def __init__(self, loops: Sequence[Loop], machine: Runtime) -> None:
        self.loops = loops
        self.machine = machine
        self._ended: dict[Run, RunEnded] = {}
        self._courses: dict[Loop, Iterator[tuple[Step, ...]]] = {}
        self._asked: dict[Loop, tuple[Step, ...]] = {}

    def go(self) -> dict[Run, RunEnded]:
        """All loops are at their ends."""
        for loop in self.loops:
            if loop.begin():
                self._courses[loop] = loop.course()
            else:
                self._end(loop)
        while self._courses:
            self._until_one_ends()
        return self._ended

    def _until_one_ends(self) -> None:
        joint = Joint([loop.session for loop in self._courses])
        runner = Runner(joint, self.machine, whole=True)
        with runner.ready(forms=max(loop.forms for loop in self._courses)):
            while not (ended := self._ask(joint, runner)):
                step = next(iter(self._asked)).done
                runner.run(tuple(_joined(list(self._asked.values()))), step=step)
                self._asked.clear()
        for loop in ended:
            del self._courses[loop]
            self._end(loop)

    def _ask(self, joint: "Joint", runner: Runner) -> list[Loop]:
        """Every loop has said what its next step is of. Returns those that have none."""
        for number, (loop, course) in enumerate(self._courses.items()):
            loop.runner = runner
            if loop not in self._asked:
                with joint.train_step.only(number):  # what it draws now is its own
                    micro_batches = next(course, None)
                if micro_batches is not None:
                    self._asked[loop] = micro_batches
        return [loop for loop in self._courses if loop not in self._asked]

    def _end(self, loop: Loop) -> None:
        run = loop.session.run
        with loop.clock.stopped():
            self._ended[run] = loop.end()
        loop.session.tell(self._ended[run])


class Joint:
    """Sessions as one, for a Runner."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.sessions = sessions
        self.config = sessions[0].config
        self.family = sessions[0].family
        self.train_step = JointStep([session.train_step for session in sessions])

    def tell(self, event: Event) -> None:
        """All runs have the event."""
        for session in self.sessions:
            session.tell(event)


class JointStep:
    """The optimizer steps of several runs on one batch, which holds their samples one after another."""

    def __init__(self, members: Sequence[TrainStep]) -> None:
        self.members = members
        self.family: Family = members[0].family
        self.working = grouped([member.working for member in members])

    @contextlib.contextmanager
    def only(self, *numbers: int) -> Iterator[None]:
        """Inside, batches hold samples of these members, one after another."""
        groups = [adapter for adapter in self.working.adapters.values() if isinstance(adapter, Group)]
        before = [group.present for group in groups]
        for group in groups:
            group.present = numbers
        try:
            yield
        finally:
            for group, present in zip(groups, before, strict=True):
                group.present = present

    def accumulate(self, step: Step) -> None:
        """The gradient of the mean loss of each member that has samples in `step` is added to its step's."""
        numbers = step.members or range(len(self.members))
        with self.only(*numbers):
            self._accumulate(step, [self.members[number] for number in numbers])

    def _accumulate(self, step: Step, members: Sequence[TrainStep]) -> None:
        for member in members:
            member.refresh()
        aimed = members[0].aimed(step, self.working)
        parts = members[0].losses(aimed).chunk(len(members))
        losses = [member.counted(part) for member, part in zip(members, parts, strict=True)]
        scaled = [member.scaled(loss) for member, loss in zip(members, losses, strict=True)]
        leaves = [leaf for member in members for leaf in member.leaves]
        grads = iter(torch.autograd.grad(scaled, leaves, materialize_grads=True))
        for member, loss in zip(members, losses, strict=True):
            member.collect(Slope(loss.detach(), tuple(next(grads) for _ in member.leaves)))

    def exchange(self) -> None:
        """Nothing: these runs are in one process."""

    def update(self) -> None:
        """All adapters are moved."""
        for member in self.members:
            member.update()

    def forget(self) -> None:
        """No gradient is accumulated."""
        for member in self.members:
            member.forget()

    def tensors(self) -> list[Tensor]:
        """Everything that `accumulate` and `update` change."""
        return [tensor for member in self.members for tensor in member.tensors()]


def _joined(asked: Sequence[Sequence[Step]]) -> Iterator[Step]:
    """The micro-batches of all runs, as one for each of their forms."""
    for steps in zip_longest(*asked):  # those with a trigger word may have more than those without
        of_form: dict[object, list[int]] = {}
        for number, step in enumerate(steps):
            if step is not None:
                of_form.setdefault(form_of(step), []).append(number)
        for numbers in of_form.values():
            one = _one([steps[number] for number in numbers])
            yield one if len(numbers) == len(steps) else one._replace(members=tuple(numbers))


def _one(steps: Sequence[Step]) -> Step:
    columns = zip(*(parts_of(step) for step in steps), strict=True)

    def together(part: Tensor) -> Tensor:
        whole = torch.cat(next(columns))
        return whole.pin_memory() if part.is_pinned() else whole

    return steps[0].map(together)


def _teller(run: Run, on_event: Callable[[Run, Event], None] | None) -> Tell:
    def tell(event: Event) -> None:
        run.report(event)
        if on_event is not None:
            on_event(run, event)

    return tell
