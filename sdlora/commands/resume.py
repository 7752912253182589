"""Go on with a run that was stopped or interrupted, exactly where its last checkpoint left off.

Several go on in one pass.

Options that may change on the way (such as --loop.steps or --loop.save_every) can be given anew.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.commands import together
from sdlora.commands.train import follow
from sdlora.commands.written import require_place
from sdlora.errors import ConfigError, UserError
from sdlora.files import write_atomic
from sdlora.home import Home

if TYPE_CHECKING:
    from sdlora.training.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help="the run's folder, or its name under runs/")
    parser.add_argument("--output", type=Path, help="where the adapter is put as well")
    parser.add_argument("--json", action="store_true", help="events as JSON lines on standard output")
    parser.set_defaults(options={})


def run(arguments: argparse.Namespace) -> int:
    from sdlora.training.several import joined, shared_run

    with joined() as processes:
        if len(arguments.run) > 1:
            together.require_one_process(processes)
            if arguments.output:
                raise UserError("--output is for one run, and this asks for several.", "Leave it out.")
            jobs = [_job(name, arguments.options) for name in arguments.run]
            return together.follow(jobs, output=None, as_json=arguments.json)
        job = shared_run(processes, lambda: _only_job(arguments))
        return follow(job, processes, output=arguments.output, as_json=arguments.json)


def _only_job(arguments: argparse.Namespace) -> "Run":
    if arguments.output:
        require_place(arguments.output, ".safetensors")
    return _job(arguments.run[0], arguments.options)


def _job(name: str, changes: dict[str, str]) -> "Run":
    from sdlora.training.run import Run

    folder = Path(name).expanduser()
    named = Home.default().runs / name
    job = Run.open(folder if folder.is_dir() or not named.is_dir() else named)
    if changes:
        _change(job, changes)
    return job


def _change(job: "Run", changes: dict[str, str]) -> None:
    from sdlora import options
    from sdlora.config import TrainConfig
    from sdlora.training.run import step_of

    changed = options.build(TrainConfig, {**options.flatten(job.config), **changes})
    for leaf in options.walk(TrainConfig):
        if leaf.path in changes and not leaf.meta.resumable:
            raise ConfigError(f"{leaf.path} cannot change within a run.", "Start a new run for that.")
    with job.locked():
        done = step_of(job.checkpoints()[-1]) if job.checkpoints() else 0
        if changed.loop.steps < done:
            raise ConfigError(
                f"loop.steps = {changed.loop.steps} is too few: the run has done {done} steps.",
                "Give more, or take an earlier checkpoint's adapter.safetensors as it is.",
            )
        write_atomic(job.path / "config.toml", options.to_toml(changed))
