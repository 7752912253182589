"""The child that draws and works on adapters: JSON lines in, JSON lines out, a warm model between requests.

In:  {"id", "kind": "generate", "request", "outputs", "models", "adapter_bytes"}
     {"id", "kind": one of the workshop's, and what that kind needs}
     {"id", "kind": "cancel"}, at any time
Out: {"id", "type": "stage" | "step" | "file"} while it goes on, then "done" or "error".

It ends with its input.
"""

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from sdlora.errors import Cancelled, SdloraError, unforeseen
from sdlora.service.drawing import Drawing
from sdlora.service.process import Done, Message
from sdlora.service.workshop import work


def main() -> int:
    """Answers requests until the input ends."""
    with _private_output() as output:
        server = _Server(output)
        threading.Thread(target=server.read, name="sdlora-requests", daemon=True).start()
        server.serve()
    return 0


@contextlib.contextmanager
def _private_output() -> Iterator[TextIO]:
    """The real standard output, while whatever a library prints goes to standard error."""
    private = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with private:
        yield private


class _Server:
    """The requests that came, and the model that the last one loaded."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._requests: queue.Queue[Message | None] = queue.Queue()
        self._cancelled: set[int] = set()
        self._drawing = Drawing()

    def read(self) -> None:
        """Sorts the lines of the input: cancelling must not wait for its turn."""
        for line in sys.stdin:
            message: Message = json.loads(line)
            if message["kind"] == "cancel":
                self._cancelled.add(message["id"])
            else:
                self._requests.put(message)
        self._requests.put(None)

    def serve(self) -> None:
        """Answers one request after another."""
        while (message := self._requests.get()) is not None:
            began = time.monotonic()
            try:
                done = self._answer(message)
            except SdloraError as error:
                self._fail(message["id"], error)
            except Exception as error:  # the process edge: the page shows words, the log the details
                logging.exception("A request failed")
                self._fail(
                    message["id"], SdloraError(unforeseen(error), "The details are in the worker's log.")
                )
            else:
                seconds = time.monotonic() - began
                files = [str(file) for file in done.files]
                self._send(message["id"], "done", files=files, told=done.told, seconds=seconds)

    def _answer(self, message: Message) -> Done:
        number = message["id"]
        if message["kind"] != "generate":
            return work(message, lambda done, total: self._reach(number, done, total))
        return self._drawing.draw(
            message,
            tell=lambda kind, **told: self._send(number, kind, **told),
            cancelled=lambda: number in self._cancelled,
        )

    def _reach(self, number: int, done: int, total: int) -> None:
        if number in self._cancelled:
            raise Cancelled("Cancelled.")
        self._send(number, "step", step=done, steps=total, preview="")

    def _fail(self, number: int, error: SdloraError) -> None:
        cancelled = isinstance(error, Cancelled)
        self._send(number, "error", error=error.message, hint=error.hint, cancelled=cancelled)

    def _send(self, number: int, kind: str, **told: object) -> None:
        self._output.write(json.dumps({"id": number, "type": kind, **told}) + "\n")
        self._output.flush()
