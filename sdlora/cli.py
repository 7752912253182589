"""The command line: `sdlora COMMAND ...`, a thin door to the same engine as the page.

This module knows the words of the commands and nothing of torch, so that `--help` is instant; a command's
own module is imported when it runs. Options of a run are dotted paths of the option tree.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from sdlora import __version__
from sdlora.commands import kohya
from sdlora.errors import Cancelled, ConfigError, SdloraError, unforeseen
from sdlora.home import ELSEWHERE, name_elsewhere

COMMANDS = {
    "train": "teach the base a folder of images",
    "resume": "go on with a run that was stopped or interrupted",
    "generate": "draw pictures with any number of adapters",
    "inspect": "tell what an adapter file holds",
    "merge": "make one adapter file of several",
    "resize": "change the rank of an adapter",
    "extract": "make an adapter of what a tuned model learned",
    "bake": "add adapters to a model for good",
    "compare": "tell how two adapters get along",
    "options": "list every option of a run",
    "ui": "start the web page",
    "worker": argparse.SUPPRESS,
}


def prepare() -> None:
    """Torch, when it is loaded, finds the settings that suit it best, unless a person gave others."""
    # OpenMP threads that spin long while they wait starve each other on a machine with other work; those
    # that sleep at once wake late. Steps a second on the built-in base at batch 4 on two cores, one run
    # alone and two side by side: asleep 3.0 and 1.9, a short spin 4.4 and 1.6, one ten times as long 4.5
    # and 0.7. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # an operation that Apple's GPUs lack is done by the processor; read when torch is loaded as well
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # memory of a GPU grows in place: SDXL's steps reserve 0.3 GiB less, and take no longer
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. The exit code is 0 only on success, 2 for a person's mistake, 130 when cancelled."""
    prepare()
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        return _run(_without_folders(words))
    except Cancelled as error:
        return _tell(error, as_json, 130)
    except KeyboardInterrupt:
        return _tell(Cancelled("Cancelled."), as_json, 130)
    except BrokenPipeError:
        return 1  # the reader of our output has gone; there is nobody left to tell
    except SdloraError as error:
        return _tell(error, as_json, error.exit_code)
    except Exception as error:  # noqa: BLE001  # the process edge: a person never meets a traceback
        return _tell(_unexpected(error), as_json, 1)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"sdlora {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        near = get_close_matches(name, _public(), n=1)
        hint = f'Did you mean "{near[0]}"?' if near else f"Commands: {', '.join(_public())}."
        raise ConfigError(f'"{name}" is no command of sdlora.', hint)
    command = importlib.import_module(f"sdlora.commands.{name}")
    parser = _Parser(prog=f"sdlora {name}", description=command.__doc__)
    command.add_arguments(parser)
    with contextlib.suppress(argparse.ArgumentError):  # the command may have one that does more
        parser.add_argument("--json", action="store_true", help="tell a failure as one JSON line")
    options, rest = split_options(words[1:])
    parsed = parser.parse_args(rest)
    if options and not hasattr(parsed, "options"):
        refused = f'"{parser.prog}" does not take "--{next(iter(options))}".'
        raise ConfigError(refused, f"See `{parser.prog} --help`.")
    parsed.options = options
    code: int = command.run(parsed)
    return code


def split_options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options of the tree among `words`, and the rest.

    They are `--a.b value`, `--a.b=value` or a bare `--a.b` for true. One that is given several times becomes
    a list, one line a value.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word[2:].partition("=")
        if word == "--":
            return found, [*rest, word, *queue]
        if not word.startswith("--") or "." not in name:
            rest.append(word)
            continue
        if not equals:
            value = queue.pop(0) if queue and not queue[0].startswith("--") else "true"
        found[name] = f"{found[name]}\n{value}" if name in found else value
    return found, rest


def _without_folders(words: Sequence[str]) -> list[str]:
    """The words without the flags that name folders elsewhere, which are known from now on."""
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in ELSEWHERE:
            rest.append(word)
            continue
        if not equals and not queue:
            raise ConfigError(f"{flag} names nothing.", f"Write {flag} PATH.")
        name_elsewhere(flag, value if equals else queue.pop(0))
    return rest


class _Parser(argparse.ArgumentParser):
    """argparse with our errors: one sentence, exit code 2, and no usage block in the way."""

    def __init__(self, *, prog: str, description: str | None) -> None:
        kept_lines = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=kept_lines, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        hint = kohya.told(message) or f"See `{self.prog} --help`."
        raise ConfigError(f"{message[0].upper()}{message[1:]}.", hint)


def _public() -> list[str]:
    return [name for name, text in COMMANDS.items() if text != argparse.SUPPRESS]


def _overview() -> str:
    purpose = "Teach Stable Diffusion a style or a character, and mix the adapters."
    lines = ["usage: sdlora COMMAND ...", "", purpose, ""]
    lines += [f"  {name:<10}{COMMANDS[name]}" for name in _public()]
    lines += ["", "--ckpt-dir and --lora-dir name more folders of base models and of adapters, and"]
    lines += [
        "--extra-model-paths-config a ComfyUI file that does; extra_model_paths.yaml here is read anyway."
    ]
    return "\n".join([*lines, "", "`sdlora COMMAND --help` tells more."])


def _tell(error: SdloraError, as_json: bool, code: int) -> int:
    if as_json:
        print(json.dumps({"type": "Error", "error": error.message, "hint": error.hint}))
    else:
        print(f"sdlora: {error}", file=sys.stderr)
    return code


def _unexpected(error: Exception) -> SdloraError:
    handle, log = tempfile.mkstemp(prefix="sdlora-", suffix=".log")
    with open(handle, "w", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return SdloraError(
        unforeseen(error),
        f"The details are in {log}; please report them.",
    )
