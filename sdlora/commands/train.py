"""Teach the base a folder of images.

Everything not said comes from --preset (balanced, if there is no --config either), then from --config;
options of the tree (`sdlora options` lists them) win over both:

  sdlora train datasets/ink-style --output ink.safetensors --loop.steps 400 --adapter.rank 16

Several runs that share a base cost little more than one when they are trained in one pass:

  sdlora train datasets/ink-style --sweep optimizer.lr=1e-4,3e-4 --sweep adapter.rank=4,16 --output sweep/
  sdlora train photos/anna photos/rex --data.captions.trigger anna --data.captions.trigger rex --output both/

A trigger word that is given once is for all datasets, else they are given in the order of the datasets.

Ctrl-C stops after the present step and saves; `sdlora resume RUN` goes on exactly there.
"""

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.commands.asked import configuration, stopping
from sdlora.commands.progress import Progress
from sdlora.commands.written import require_place
from sdlora.errors import ModelAbsent
from sdlora.events import RunEnded
from sdlora.files import replacing
from sdlora.home import Home

if TYPE_CHECKING:
    from sdlora.config import TrainConfig
    from sdlora.runtime import Processes
    from sdlora.training.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        nargs="*",
        help="a folder of images and captions, or the name of one in datasets/; several are one pass",
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="OPTION=VALUE,VALUE",
        help="a run for every value, all in one pass; several sweeps give every combination",
    )
    parser.add_argument("--base", help="builtin, a folder, a .safetensors file or a Hub id")
    parser.add_argument("--output", type=Path, help="where the adapter is put as well, e.g. my.safetensors")
    parser.add_argument("--config", type=Path, help="a TOML file of options")
    parser.add_argument("--preset", help="quick, balanced or thorough; balanced without --config")
    parser.add_argument("--run", type=Path, help="the run's folder; a new one under runs/ when not given")
    parser.add_argument("--json", action="store_true", help="events as JSON lines on standard output")
    parser.set_defaults(options={})


def run(arguments: argparse.Namespace) -> int:
    from sdlora.commands import together
    from sdlora.training.several import joined, shared_run

    several = arguments.sweep or len(arguments.dataset) > 1
    with joined() as processes:
        if several:
            together.require_one_process(processes)
            return together.run(arguments)
        arguments.dataset = next(iter(arguments.dataset), None)
        job = shared_run(processes, lambda: _job(arguments))
        return follow(job, processes, output=arguments.output, as_json=arguments.json)


def _job(arguments: argparse.Namespace) -> "Run":
    """The run that was asked for, new or made before."""
    from sdlora.training.run import Run

    if arguments.output:
        require_place(arguments.output, ".safetensors")
    made_before = arguments.run is not None and (arguments.run / "config.toml").exists()
    if made_before and arguments.dataset is None:
        return Run.open(arguments.run)
    if arguments.run is not None:
        return Run.create_at(_config(arguments), arguments.run)
    return Run.create(_config(arguments), Home.default().runs)


def follow(job: "Run", processes: "Processes", *, output: Path | None, as_json: bool) -> int:
    """Trains `job` in these processes; the first tells its events, and copies the adapter to `output`."""
    from sdlora.network import sidecar
    from sdlora.training.loop import train

    progress = Progress(as_json=as_json)
    with stopping([job] if processes.rank == 0 else []):  # all of several processes get the signal
        ended = train(job, on_event=progress, processes=processes)
    if processes.rank > 0:
        return 0
    if output and job.adapter.exists():
        with replacing(output) as temporary:
            temporary.write_bytes(job.adapter.read_bytes())
        sidecar.take_along(job.adapter, output)
    if not as_json:
        print(output if output and job.adapter.exists() else job.path)
    return _code(ended)


def _config(arguments: argparse.Namespace) -> "TrainConfig":
    config = configuration(arguments)
    _tell_memory(config, silent=arguments.json)
    return config


def _tell_memory(config: "TrainConfig", *, silent: bool) -> None:
    """What the base is, and how the run's memory goes with its device, stand on standard error.

    Raises SdloraError when the run could not start.
    """
    from sdlora.service.machine import Machine
    from sdlora.training.estimate import gigabytes, plan_of, verdict

    with suppress(ModelAbsent):  # nothing is known of it before it is downloaded
        plan = plan_of(config)
        if silent:
            return
        needed = plan.memory_bytes
        total, free = Machine().room(config.loop.device)
        told = verdict(config, needed, total=total, free=free) if total else None
        words = f"{told.text} {told.hint}".rstrip() if told else f"It needs about {gigabytes(needed)}."
        print(f"base: {plan.base}", f"memory: {words}", sep="\n", file=sys.stderr)


def _code(ended: RunEnded) -> int:
    return {"finished": 0, "stopped": 130, "failed": 1}[ended.outcome]
