"""Children of the web process: trainers that outlive it, and one worker that it talks to.

A trainer gets a session of its own and writes to its run's folder only, so stopping, restarting or killing
the web process does not touch it. The worker speaks JSON lines and ends with its pipe.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sdlora
from sdlora.errors import SdloraError
from sdlora.files import storage_error

Message = dict[str, Any]  # Any: parsed JSON


@dataclass(frozen=True)
class Done:
    """The files that the worker has made, and what is to be told of them, as JSON."""

    files: Sequence[Path]
    told: Mapping[str, object] = field(default_factory=dict)


class WorkerLost(SdloraError):
    """The worker ended in the middle of a request."""


def start_trainer(*folders: Path) -> "subprocess.Popen[bytes]":
    """A process of its own trains the runs in `folders` in one pass, or goes on with them.

    What it prints is in the first one's `log.txt`. Raises StorageError when that cannot be written.
    """
    file = folders[0] / "log.txt"
    try:
        log = file.open("ab")
    except OSError as error:
        raise storage_error(file, error) from error
    with log:
        return subprocess.Popen(
            _command("resume", *map(str, folders)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment({}),
            close_fds=True,
            start_new_session=os.name == "posix",
            creationflags=_own_group(),
        )


class Worker:
    """The child that loads models, draws and merges. It starts with the first request and stays warm."""

    def __init__(self, log: Path, variables: Mapping[str, str]) -> None:
        self._log = log
        self._variables = variables
        self._process: subprocess.Popen[str] | None = None

    @property
    def alive(self) -> bool:
        """Whether the child is there."""
        return self._process is not None and self._process.poll() is None

    def send(self, message: Message) -> None:
        """The worker gets `message`, and is started first where needed. Raises WorkerLost."""
        process = self._process if self.alive else self._start()
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except OSError:
            raise self._lost() from None

    def receive(self) -> Message:
        """The worker's next message; waits for it. Raises WorkerLost when it ended without one."""
        if self._process is None or self._process.stdout is None:
            raise self._lost()
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._lost()
        message: Message = json.loads(line)
        return message

    def stop(self) -> None:
        """The child is gone, and the device's memory with it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _start(self) -> "subprocess.Popen[str]":
        self.stop()
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = self._log.open("wb")
        except OSError as error:
            raise storage_error(self._log, error) from error
        with log:
            self._process = subprocess.Popen(
                _command("worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(self._variables),
                encoding="utf-8",
                creationflags=_own_group(),
            )
        return self._process

    def _lost(self) -> WorkerLost:
        code = self._process.poll() if self._process else None
        self.stop()
        killed = code == -9
        return WorkerLost(
            "The process that draws was ended by the system."
            if killed
            else "The process that draws ended unexpectedly.",
            "The memory probably did not suffice: try a smaller size or fewer pictures."
            if killed
            else f"Try again; the details are in {self._log}.",
        )


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "sdlora", *words]


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    packages = str(Path(sdlora.__file__).resolve().parents[1])
    paths = [packages, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    extra = {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    return {**os.environ, **extra, **variables}


def _own_group() -> int:
    # on Windows a Ctrl-C in the console would otherwise reach the children as well
    return int(getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0))
