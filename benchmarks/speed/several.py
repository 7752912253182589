"""What a second GPU gives: images a second, and whether the losses are those of one GPU with twice the batch.

    python benchmarks/speed/several.py --home A --output one.json
    accelerate launch --num_processes 2 benchmarks/speed/several.py \\
        --home B --before one.json --output two.json

A and B are empty folders. Whole runs of Stable Diffusion 1.5's size with random weights; previews and
checkpoints are off.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed import families  # the path above comes first
from benchmarks.speed.run import make_pictures, rate_of
from sdlora import options, runtime
from sdlora.config import TrainConfig
from sdlora.contracts import Family
from sdlora.events import Event, Notice, StepDone
from sdlora.runtime import Runtime
from sdlora.training.loop import Loop
from sdlora.training.run import Run
from sdlora.training.session import Session
from sdlora.training.several import joined, shared_run

BATCHES = (1, 2, 4)


def measured(family: Family, machine: Runtime, home: Path, *, batch: int, steps: int) -> dict[str, Any]:
    """A whole run with so many images a GPU."""
    values = {
        "data.folder": str(home / "pictures"),
        "adapter.text_encoder": False,
        "preview.every": -1,
        "loop.save_every": 1_000_000,
        "loop.batch_size": batch,
        "loop.steps": steps,
        "loop.compile": "never",
        "optimizer.lr": 1e-3,
    }
    first = machine.processes.rank == 0
    run = shared_run(machine.processes, lambda: Run.create(options.build(TrainConfig, values), home / "runs"))
    done: list[StepDone] = []
    notices: list[str] = []

    def tell(event: Event) -> None:
        if first:
            run.report(event)
        if isinstance(event, StepDone):
            done.append(event)
        elif isinstance(event, Notice):
            notices.append(event.text)

    with runtime.kernels(deterministic=False):
        session = Session.begin(run, machine, family=family, last=None, tell=tell)
        Loop(session, machine).go()
    rate = rate_of([event.seconds for event in done])
    return {
        "batch": batch,
        "steps_per_second": rate,
        "images_per_second": rate * batch * machine.processes.count,
        "memory": machine.peak_bytes() / 2**30,
        "losses": [event.loss for event in done],
        "notices": notices,
    }


def compared(rows: list[dict[str, Any]], before: Mapping[str, Any], count: int) -> None:
    """Each row says how it is to that of one GPU: its speed at the same batch, its losses at the same sum."""
    ones = {row["batch"]: row for row in before["rows"]}
    for row in rows:
        if same := ones.get(row["batch"]):
            row["times"] = row["images_per_second"] / same["images_per_second"]
        if whole := ones.get(row["batch"] * count):
            pairs = zip(row["losses"], whole["losses"], strict=True)
            row["losses_differ"] = max(abs(mine - its) / its for mine, its in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--home", type=Path, required=True, help="an empty folder, the same for all")
    parser.add_argument("--before", type=Path, help="what one GPU did")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ["SDLORA_HOME"] = str(arguments.home)
    with joined() as processes:
        machine = Runtime.choose(processes=processes)
        if processes.rank == 0:
            make_pictures(arguments.home / "pictures", 512)
        model = arguments.home / f"model-{processes.rank}"
        family = families.make("sd1", model, device=machine.device, dtype=machine.dtype)
        rows = [
            measured(family, machine, arguments.home, batch=batch, steps=arguments.steps) for batch in BATCHES
        ]
        if processes.rank > 0:
            return
        if arguments.before:
            compared(rows, json.loads(arguments.before.read_text()), processes.count)
        arguments.output.write_text(json.dumps({"device": machine.title, "rows": rows}, indent=1))
        for row in rows:
            print({name: value for name, value in row.items() if name != "losses"}, flush=True)


if __name__ == "__main__":
    main()
