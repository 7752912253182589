"""What the words of `sdlora train` ask for, and how Ctrl-C reaches its runs."""

import argparse
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sdlora.errors import ConfigError, DatasetError, UserError
from sdlora.home import Home

if TYPE_CHECKING:
    from sdlora.config import TrainConfig
    from sdlora.training.run import Run


def configuration(arguments: argparse.Namespace) -> "TrainConfig":
    """What the words of the command line ask for: preset, then file, then flags.

    Raises ConfigError for a wrong option and DatasetError for a dataset that is not there.
    """
    from sdlora import options
    from sdlora.config import TrainConfig
    from sdlora.data.folder import require_folder
    from sdlora.loading import located
    from sdlora.presets import preset

    values: dict[str, object] = {}
    if arguments.config:
        values.update(options.from_toml(_text(arguments.config), str(arguments.config)))
    if arguments.dataset:
        values["data.folder"] = str(_dataset(arguments.dataset))
    if arguments.base is not None:
        values["base.model"] = arguments.base
    if arguments.output and "output.name" not in values:
        values["output.name"] = arguments.output.stem
    values.update(arguments.options)
    if "base.model" in values:
        values["base.model"] = located(str(values["base.model"]), Home.default().model_folders)
    if not values.get("data.folder"):
        raise ConfigError("No dataset was named.", "Give a folder of images: sdlora train FOLDER.")
    subject, model = str(values.get("output.subject", "style")), str(values.get("base.model", "builtin"))
    name = arguments.preset or ("" if arguments.config else "balanced")
    recipe = preset(name, subject=subject, model=model) if name else {}
    if "\n" in str(values.get("data.captions.trigger", "")):
        raise ConfigError("Several trigger words are given for one dataset.", "Give one; it may hold spaces.")
    recipe_of_kind = options.applying(TrainConfig, recipe, {**recipe, **values})
    config = options.build(TrainConfig, {**recipe_of_kind, **values})
    require_folder(Path(config.data.folder))
    return config


@contextmanager
def stopping(jobs: "Sequence[Run]") -> Iterator[None]:
    """Inside, the first Ctrl-C (or SIGTERM) asks the runs to save and stop, the second one breaks off."""

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        for job in jobs:
            job.command("stop")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dataset(text: str) -> Path:
    from sdlora.data.intake import datasets

    folder, home = Path(text).expanduser(), Home.default()
    known = datasets(home.datasets)
    if folder.exists() or text in known:
        return folder.resolve() if folder.is_dir() or text not in known else known[text]
    beside = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
    near = get_close_matches(folder.name, [*known, *beside], n=1)
    raise DatasetError(
        f"There is no folder {folder}, and no dataset of that name in {home.datasets}.",
        f'Did you mean "{near[0]}"?' if near else "Give a folder of images.",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not in UTF-8"
        raise UserError(
            f"{path} cannot be read: {reason}.", "Give a TOML file, such as `sdlora options --toml` writes."
        ) from None
