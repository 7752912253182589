"""How fast training is, measured in one go: ours captured and uncaptured, a plain loop, and the ceiling.

    python benchmarks/speed/run.py                  the built-in base on the CPU
    python benchmarks/speed/run.py sd1 sdxl         the true sizes with random weights, on the GPU

Ours is the whole run: data, events, results read back; previews and checkpoints are off. Prints a table and
writes `speed.json` to the folder given by --output.
"""

import argparse
import gc
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed import families, reference  # the path above comes first
from sdlora import cli, options, runtime
from sdlora.config import TrainConfig
from sdlora.contracts import Family
from sdlora.events import Event, Notice, StepDone
from sdlora.loading import load_family
from sdlora.residence import present
from sdlora.runtime import Runtime
from sdlora.training.loop import Loop
from sdlora.training.results import Clock
from sdlora.training.run import Run
from sdlora.training.session import Session
from sdlora.training.together import Team
from tests.pictures import draw

WARM_UP = 20


@dataclass(frozen=True)
class Row:
    """One measurement. `memory` in GiB reserved on a GPU; `first_step` in seconds from the loaded base."""

    what: str
    steps_per_second: float
    images_per_second: float
    memory: float = 0.0
    first_step: float = 0.0
    notice: str = ""


def ours(
    family: Family,
    machine: Runtime,
    folder: Path,
    what: str,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    **changes: object,
) -> Row:
    """A whole run of ours on the loaded family."""
    run = new_run(family, machine, folder, **changes)
    watch = Watch(run, on_event)
    forget_peaks(machine.device)
    begin = time.time()
    with run.locked(), runtime.kernels(deterministic=run.config.loop.deterministic):
        session = Session.begin(run, machine, family=family, last=None, tell=watch.tell)
        Loop(session, machine).go()
    return watch.row(what, machine, begin)


def together(
    family: Family, machine: Runtime, folder: Path, what: str, *, count: int, **changes: object
) -> Row:
    """So many whole runs of ours in one pass, each with a seed of its own. `images_per_second` is of all."""
    runs = [new_run(family, machine, folder, loop__seed=seed, **changes) for seed in range(count)]
    watches = [Watch(run) for run in runs]
    forget_peaks(machine.device)
    begin = time.time()
    with runtime.kernels(deterministic=runs[0].config.loop.deterministic):
        sessions = [
            Session.begin(run, machine, family=family, last=None, tell=watch.tell)
            for run, watch in zip(runs, watches, strict=True)
        ]
        clock = Clock()
        Team([Loop(session, machine, clock=clock) for session in sessions], machine).go()
    row = watches[0].row(what, machine, begin)
    return replace(row, images_per_second=row.images_per_second * count)


class Watch:
    """What became of a run: it is recorded as always, and looked at."""

    def __init__(self, run: Run, on_event: Callable[[Event], None] = lambda event: None) -> None:
        self.run = run
        self._on_event = on_event
        self._done: list[StepDone] = []
        self._notices: list[str] = []

    def tell(self, event: Event) -> None:
        self.run.report(event)
        self._on_event(event)
        if isinstance(event, StepDone):
            self._done.append(event)
        elif isinstance(event, Notice):
            self._notices.append(event.text)

    def row(self, what: str, machine: Runtime, begin: float) -> Row:
        """The run, which began at that time."""
        loop = self.run.config.loop
        rate = rate_of([event.seconds for event in self._done])
        images = rate * loop.batch_size * loop.accumulate
        memory = machine.peak_bytes() / 2**30
        return Row(what, rate, images, memory, self._done[0].time - begin, "; ".join(self._notices))


def new_run(family: Family, machine: Runtime, folder: Path, **changes: object) -> Run:
    """A run on the family's pictures; `changes` win."""
    values = {
        "data.folder": str(folder / f"pictures-{family.native_size}"),
        "data.captions.dropout": 0.0,
        "adapter.text_encoder": False,
        "adapter.rank": 16,
        "adapter.alpha": 16.0,
        "preview.every": -1,
        "loop.save_every": 1_000_000,
        "loop.batch_size": 1,
        "loop.device": str(machine.device),
        "loop.precision": machine.precision,
    }
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return Run.create(options.build(TrainConfig, values), folder / "runs")


def theirs(family: Family, what: str, *, batch: int, steps: int) -> Row:
    """The plain loop on the same family."""
    forget_peaks(family.device)
    with present(family, *family.networks):
        rate = rate_of(reference.step_seconds(family, batch=batch, steps=steps))
    memory = torch.cuda.max_memory_reserved() / 2**30 if family.device.type == "cuda" else 0.0
    return Row(what, rate, rate * batch, memory)


def forget_peaks(device: torch.device) -> None:
    """The peak of memory is what is held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def rate_of(seconds: list[float]) -> float:
    """Steps a second: of the median step after the warm-up."""
    return 1 / statistics.median(seconds[min(WARM_UP, len(seconds) // 2) :])


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of large matrix products on random numbers."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    for _ in range(3):
        left @ right
    runtime.synchronize(device)
    begin = time.perf_counter()
    for _ in range(10):
        left @ right
    runtime.synchronize(device)
    return 10 * 2 * size**3 / (time.perf_counter() - begin) / 1e12


def measure(name: str, machine: Runtime, folder: Path, *, steps: int, rounds: int, wanted: str) -> list[Row]:
    """All rows of one base whose titles match `wanted`, each the best of `rounds` that take turns."""
    side = {"builtin": 128, "sd1": 512, "sdxl": 1024}[name]
    make_pictures(folder / f"pictures-{side}", side)
    if name == "builtin":
        family = load_family("builtin", device=machine.device, dtype=machine.dtype)
        kinds = {"batch 1": {}, "batch 4": {"loop__batch_size": 4}}
    else:
        family = families.make(name, folder / name, device=machine.device, dtype=machine.dtype)
        kinds = {
            "batch 1": {},
            "batch 4": {"loop__batch_size": 4},
            "batch 1, text encoder too": {"adapter__text_encoder": True},
            "batch 1, repeating its bits": {"loop__deterministic": True},
            "batch 1, compiled": {"loop__compile": "always"},
        }
    few = max(10, steps // 4)
    rows: dict[str, Row] = {}
    for _ in range(rounds):
        for title in filter(lambda title: re.search(wanted, title), kinds):
            changes = kinds[title]
            keep(rows, ours(family, machine, folder, f"{name} {title}", loop__steps=steps, **changes))
        if name != "sdxl" and re.search(wanted, "four runs together"):
            title = f"{name} four runs together"
            keep(rows, together(family, machine, folder, title, count=4, loop__steps=steps))
        if machine.device.type == "cuda" and re.search(wanted, "batch 1 uncaptured"):
            slow = {"loop__capture": False, "loop__steps": few}
            keep(rows, ours(family, machine, folder, f"{name} batch 1 uncaptured", **slow))
        for batch in filter(lambda batch: re.search(wanted, f"batch {batch} plain loop"), (1, 4)):
            keep(rows, theirs(family, f"{name} batch {batch} plain loop", batch=batch, steps=few))
    return list(rows.values())


def keep(rows: dict[str, Row], row: Row) -> None:
    """`rows` holds the faster of `row` and the one of its name, for other programs only slow down."""
    show(row)
    if row.what not in rows or rows[row.what].steps_per_second < row.steps_per_second:
        rows[row.what] = row


def make_pictures(folder: Path, side: int) -> None:
    """`folder` holds 16 drawn pictures with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(16):
        draw((side, side), f"hsl({number * 22}, 80%, 50%)").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a ball of colour {number}")


def show(row: Row) -> None:
    print(
        f"{row.what:<34}{row.steps_per_second:8.2f} steps/s {row.images_per_second:8.2f} images/s"
        f" {row.memory:7.2f} GiB {row.first_step:6.1f} s to the first step  {row.notice}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bases", nargs="*", help="builtin, sd1 or sdxl; builtin when none is named")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=1, help="measure everything so often, keep the best")
    parser.add_argument("--rows", default="", help="measure only rows whose titles match this pattern")
    parser.add_argument("--output", type=Path, default=Path("."))
    arguments = parser.parse_args()
    bases = arguments.bases or ["builtin"]
    cli.prepare()
    machine = Runtime.choose("cpu" if bases == ["builtin"] else "auto")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SDLORA_HOME"] = folder
        print(machine.title, machine.precision, flush=True)
        limit = ceiling(machine.device, machine.dtype)
        print(f"large matrix products: {limit:.1f} TFLOP/s", flush=True)
        rows = [
            row
            for name in bases
            for row in measure(
                name,
                machine,
                Path(folder),
                steps=arguments.steps,
                rounds=arguments.rounds,
                wanted=arguments.rows,
            )
        ]
    table = {"device": machine.title, "ceiling_tflops": limit, "rows": [asdict(row) for row in rows]}
    (arguments.output / "speed.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
