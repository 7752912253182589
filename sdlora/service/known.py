"""What adapter files were found to be, kept from start to start: to tell it, all their bytes were read."""

import json
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import sdlora
from sdlora.errors import SdloraError
from sdlora.files import write_atomic
from sdlora.network import sidecar
from sdlora.network.info import AdapterInfo, inspect


class Known(NamedTuple):
    """What a file and its side-car are: `info` where it can be read, else `error`. `stamp` dates both."""

    stamp: tuple[int, ...]
    info: AdapterInfo | None
    error: str
    notes: str


class KnownFiles:
    """Files by path, in memory and in the file `kept`; a file that has changed is read again.

    Threads may ask at once: one of them reads a file, the others wait for what it finds.
    """

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._known: dict[Path, Known] | None = None
        self._unsaved = False

    def of(self, path: Path) -> Known:
        """What `path` is. Raises FileNotFoundError when it is not there any more."""
        with self._lock:
            if self._known is None:
                self._known = self._read()
            stamp, known = _stamp(path), self._known.get(path)
            if known is None or known.stamp != stamp:
                known = self._known[path] = _told(path, stamp)
                self._unsaved = True
            return known

    def save(self, paths: Collection[Path]) -> None:
        """What was found out about `paths`, which are all there are, is there at the next start."""
        with self._lock:
            if not self._unsaved or self._known is None:
                return
            files = {str(path): _plain(known) for path, known in self._known.items() if path in paths}
            with suppress(SdloraError):  # without it the next start is as slow as this one
                write_atomic(self._kept, json.dumps({"reader": _reader(), "files": files}))
            self._unsaved = False

    def _read(self) -> dict[Path, Known]:
        try:
            told = json.loads(self._kept.read_text(encoding="utf-8"))
            if told["reader"] != _reader():
                return {}
            return {Path(path): _restored(values) for path, values in told["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def _stamp(path: Path) -> tuple[int, ...]:
    """The size and times of the file, which tell also of new rights to read it, and of its side-car."""
    state, card = path.stat(), 0
    with suppress(FileNotFoundError):
        card = path.with_suffix(".json").stat().st_mtime_ns
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, card


def _told(path: Path, stamp: tuple[int, ...]) -> Known:
    notes = str(sidecar.read(path).get("description") or "")
    try:
        return Known(stamp, inspect(path), "", notes)
    except SdloraError as error:
        return Known(stamp, None, str(error), notes)


def _plain(known: Known) -> dict[str, Any]:  # Any: JSON
    info = None if known.info is None else {**asdict(known.info), "path": str(known.info.path)}
    return {**known._asdict(), "info": info}


def _restored(values: dict[str, Any]) -> Known:  # Any: JSON
    info = values["info"]
    if info is not None:
        told: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in info.items()}
        info = AdapterInfo(**told | {"path": Path(info["path"])})
    return Known(tuple(values["stamp"]), info, values["error"], values["notes"])


@cache
def _reader() -> int:
    """When the code that reads adapters was last changed: another one may find other things."""
    root = Path(sdlora.__file__).parent
    return max(
        path.stat().st_mtime_ns for part in ("adapters", "network") for path in (root / part).glob("*.py")
    )
