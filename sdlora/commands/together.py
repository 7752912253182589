"""Several runs of `sdlora train` in one pass: a sweep over options, or several datasets on one base."""

import argparse
import copy
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.commands.progress import Progress, Teller
from sdlora.errors import ConfigError, UserError
from sdlora.events import Event
from sdlora.files import replacing
from sdlora.home import Home

if TYPE_CHECKING:
    from sdlora.training.run import Run


def run(arguments: argparse.Namespace) -> int:
    """All runs that the words ask for are trained together; their adapters lie in the folder --output."""
    from sdlora.commands.asked import configuration, stopping
    from sdlora.training.comparison import comparison
    from sdlora.training.run import Run
    from sdlora.training.together import require_alike, train_together

    output: Path | None = arguments.output
    if arguments.run is not None:
        raise UserError(
            "--run is for one run, and this asks for several.", "Leave it out: each gets its own."
        )
    if output and output.suffix:
        raise UserError(f"{output} is a file, and there will be several.", "Name a folder with --output.")
    configs = {name: configuration(one) for name, one in _each(arguments)}
    require_alike(list(configs.values()))
    runs = {name: Run.create(config, Home.default().runs) for name, config in configs.items()}
    tell = _Progress(runs, as_json=arguments.json)
    with stopping(list(runs.values())):
        ended = train_together(list(runs.values()), on_event=tell)
    folder = output or next(iter(runs.values())).path
    folder.mkdir(parents=True, exist_ok=True)
    if output:
        _copy(runs, output)
    if sheet := comparison(runs):
        sheet.save(folder / "comparison.png")
    if not arguments.json:
        print(*(job.path for job in runs.values()), *([folder / "comparison.png"] if sheet else []), sep="\n")
    return 0 if all(end.outcome == "finished" for end in ended.values()) else 130


def _each(arguments: argparse.Namespace) -> Iterator[tuple[str, argparse.Namespace]]:
    """The name and the words of every run: each dataset with each combination of values."""
    varied = [_values(text) for text in arguments.sweep]
    for dataset in arguments.dataset:
        for chosen in itertools.product(*([(path, value) for value in values] for path, values in varied)):
            one = copy.copy(arguments)
            one.dataset, one.output = dataset, None
            words = [f"{path.rpartition('.')[2]}-{value}" for path, value in chosen]
            stem = str(arguments.options.get("output.name", "")) or Path(dataset).name
            name = "-".join([stem if len(arguments.dataset) == 1 else Path(dataset).name, *words])
            one.options = {**arguments.options, **dict(chosen), "output.name": name}
            yield name, one


def _values(text: str) -> tuple[str, list[str]]:
    path, _, listed = text.partition("=")
    values = [value.strip() for value in listed.split(",") if value.strip()]
    if not values:
        raise ConfigError(f'--sweep "{text}" names no values.', "Write it as --sweep optimizer.lr=1e-4,3e-4.")
    return path.strip(), values


def _copy(runs: Mapping[str, "Run"], folder: Path) -> None:
    for name, job in runs.items():
        if job.adapter.exists():
            with replacing(folder / f"{name}.safetensors") as temporary:
                temporary.write_bytes(job.adapter.read_bytes())


class _Progress:
    """Tells the events of all runs, each with the run's name."""

    def __init__(self, runs: Mapping[str, "Run"], *, as_json: bool) -> None:
        teller = Teller(silent=as_json)
        self._of = {job: Progress(as_json=as_json, name=name, teller=teller) for name, job in runs.items()}

    def __call__(self, job: "Run", event: Event) -> None:
        self._of[job](event)
