"""Several runs of `sdlora train` in one pass: a sweep over options, or several datasets on one base."""

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.commands.progress import Progress, Teller
from sdlora.errors import ConfigError, UserError
from sdlora.events import Event
from sdlora.files import replacing
from sdlora.home import Home

if TYPE_CHECKING:
    from sdlora.runtime import Processes
    from sdlora.training.run import Run


def run(arguments: argparse.Namespace) -> int:
    """All runs that the words ask for are trained together; their adapters lie in the folder --output."""
    from sdlora.commands.asked import configuration
    from sdlora.training.run import Run
    from sdlora.training.sweep import require_alike

    if arguments.run is not None:
        raise UserError(
            "--run is for one run, and this asks for several.", "Leave it out: each gets its own."
        )
    output: Path | None = arguments.output
    if output and output.suffix:
        raise UserError(f"{output} is a file, and there will be several.", "Name a folder with --output.")
    configs = [configuration(one) for one in _each(arguments)]
    require_alike(configs)
    runs = Run.create_together(configs, Home.default().runs)
    return follow(runs, output=output, as_json=arguments.json)


def require_one_process(processes: "Processes") -> None:
    """Raises ConfigError when the runs were to train on several GPUs."""
    if processes.count > 1:
        raise ConfigError(
            f"Several runs in one pass train on one GPU, and {processes.count} processes were started.",
            "Give one run, or start these with sdlora alone.",
        )


def follow(runs: "Sequence[Run]", *, output: Path | None, as_json: bool) -> int:
    """Trains the runs in one pass and tells their events; adapters and comparison are in `output` too."""
    from sdlora.commands.asked import stopping
    from sdlora.training.comparison import comparison
    from sdlora.training.together import train_together

    with stopping(runs):
        ended = train_together(runs, on_event=_Progress(runs, as_json=as_json))
    sheets = [runs[0].comparison] + ([output / "comparison.png"] if output else [])
    if output:
        output.mkdir(parents=True, exist_ok=True)
        _copy(runs, output)
    if sheet := comparison(runs[0].siblings or runs):
        for file in sheets:
            sheet.save(file)
    if not as_json:
        print(*(job.path for job in runs), *(sheets[-1:] if sheet else []), sep="\n")
    return 0 if all(end.outcome == "finished" for end in ended.values()) else 130


def _each(arguments: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """The words of every run: each dataset with each combination of values."""
    from sdlora.training.sweep import DATASET, TRIGGER, asked

    if not arguments.dataset:
        raise ConfigError("No dataset was named.", "Give a folder of images: sdlora train FOLDER.")
    swept: dict[str, list[str]] = {}
    for path, values in map(_values, arguments.sweep):
        if path in swept:
            raise ConfigError(f"--sweep names {path} twice.", "Give all of its values at once.")
        swept[path] = values
    stem = str(arguments.options.get("output.name", "")) or Path(arguments.dataset[0]).name
    words = str(arguments.options.get(TRIGGER, "")).split("\n")  # a line for each time that it is given
    triggers = [word.strip() for word in words] if len(words) > 1 else []
    for own in asked(stem, arguments.dataset, swept, triggers=triggers).values():
        one = copy.copy(arguments)
        one.dataset, one.output = own.pop(DATASET), None
        one.options = {**arguments.options, **own}
        yield one


def _values(text: str) -> tuple[str, list[str]]:
    path, _, listed = text.partition("=")
    values = [value.strip() for value in listed.split(",") if value.strip()]
    if not values:
        raise ConfigError(f'--sweep "{text}" names no values.', "Write it as --sweep optimizer.lr=1e-4,3e-4.")
    return path.strip(), values


def _copy(runs: "Sequence[Run]", folder: Path) -> None:
    from sdlora.network import sidecar

    for job in runs:
        if job.adapter.exists():
            with replacing(folder / job.adapter.name) as temporary:
                temporary.write_bytes(job.adapter.read_bytes())
            sidecar.take_along(job.adapter, folder / job.adapter.name)


class _Progress:
    """Tells the events of all runs, each with the run's name."""

    def __init__(self, runs: "Sequence[Run]", *, as_json: bool) -> None:
        teller = Teller(silent=as_json)
        self._of = {job: Progress(as_json=as_json, name=job.path.name, teller=teller) for job in runs}

    def __call__(self, job: "Run", event: Event) -> None:
        self._of[job](event)
