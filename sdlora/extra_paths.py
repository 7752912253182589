"""ComfyUI's `extra_model_paths.yaml`: where the models of other tools lie.

A section for each tool, with a `base_path` that its folders start from, and folders by what they hold, one a
line. `is_default` puts a section's folders before all others. A relative base starts from the file's folder.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.errors import ConfigError

NAME = "extra_model_paths.yaml"


@dataclass(frozen=True)
class Extra:
    """A folder that a file names: `kind` is "checkpoints", "loras" or another of ComfyUI's words."""

    kind: str
    folder: Path
    is_default: bool


def read(file: Path) -> tuple[Extra, ...]:
    """All folders that `file` names. Raises ConfigError when it cannot be read or has another form."""
    import yaml  # type: ignore[import-untyped]  # for those alone who have such a file; it has no types

    try:
        sections = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.", "Name ComfyUI's file.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is no YAML: {reason}.", "Mend it as ComfyUI's example shows.") from None
    return tuple(
        extra for name, section in _table(file, sections).items() for extra in _of(file, name, section)
    )


def _of(file: Path, name: str, section: object) -> Iterator[Extra]:
    entries = _table(file, section)
    base = file.parent.resolve() / _expanded(str(entries.pop("base_path", "")))
    is_default = bool(entries.pop("is_default", False))
    for kind, told in entries.items():
        if not isinstance(told, str):
            raise ConfigError(
                f'{file}: "{kind}" of "{name}" is no folder.', "Write one folder a line, as text."
            )
        for line in filter(None, map(str.strip, told.splitlines())):
            yield Extra(str(kind), Path(os.path.normpath(base / _expanded(line))), is_default)


def _table(file: Path, value: object) -> dict[str, Any]:  # Any: values of a foreign file
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{file} names no folders by tool.", "Write it as ComfyUI's example shows.")
    return dict(value)


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))
