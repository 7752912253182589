"""A request becomes picture files, on a model that stays loaded until another one is asked for."""

import base64
import gc
import io
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image

from sdlora.contracts import Family
from sdlora.errors import Cancelled
from sdlora.generation.png import picture_request, save_png
from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import finished
from sdlora.loading import load_family
from sdlora.network.stack import Applied, Patch
from sdlora.residence import settle_in
from sdlora.runtime import Runtime, lease, memory_told
from sdlora.service.history import History
from sdlora.service.process import Done, Message

PREVIEW_SECONDS = 0.3  # at least, between two previews
PREVIEW_PIXELS = 320
UNMATCHED_TOLD = 50  # keys of an adapter that fit nothing

DEVICE = "SDLORA_DEVICE"  # the variable that names the worker's device


class Tell(Protocol):
    """Says how a request goes on: kind "stage" or "step", and its fields."""

    def __call__(self, kind: str, **told: object) -> None: ...


class Base(NamedTuple):
    """A base model, and what a request says of its noise."""

    model: str
    prediction: str
    zero_terminal: str


class Drawing:
    """The model that is loaded, with the stack that it carries, for the next request.

    Adapters stay in memory, and the next stack writes only the layers that differ.
    """

    def __init__(self) -> None:
        self._loaded: tuple[Base, Family, Patch] | None = None

    def draw(self, message: Message, *, tell: Tell, cancelled: Callable[[], bool]) -> Done:
        """The pictures of the message's `request` are files in its `outputs`; told is what its stack did.

        Each is told of as "file" once it is there, and stays when the next ones are cancelled or fail.
        Raises SdloraError in words when not all can be made.
        """
        request = GenerateRequest.from_json(message["request"])
        history = History(Path(message["outputs"]))
        machine = Runtime.choose(os.environ.get(DEVICE, "auto"))
        advice = "Choose a smaller size or fewer pictures, or close other programs that use the device."
        with lease(machine.device, "the page, which draws"), memory_told(advice):
            base = Base(request.base, request.prediction, request.zero_terminal)
            family, patch = self._ready(
                base, message["models"], machine=machine, tell=tell, cancelled=cancelled
            )
            patch.cache.keep_to(message["adapter_bytes"])
            tell("stage", stage="Drawing")
            made = finished(family, request, on_step=_teller(tell), cancelled=cancelled, patch=patch)
            paths = _kept(made, request, family=family, history=history, tell=tell)
        applied = [_report(each) for each in patch.reports]
        cache = {"files": len(patch.cache), "bytes": patch.cache.bytes}
        return Done(paths, {"applied": applied, "cache": cache})

    def _ready(
        self,
        base: Base,
        folders: Sequence[str],
        *,
        machine: Runtime,
        tell: Tell,
        cancelled: Callable[[], bool],
    ) -> tuple[Family, Patch]:
        if self._loaded is None or self._loaded[0] != base:
            tell("stage", stage="Loading the base model")
            self._loaded = None
            gc.collect()  # the old model must be gone before the new one comes

            def on_bytes(done: int, total: int) -> None:
                tell("stage", stage=f"Downloading the base, {done / 1e9:.2f} of {total / 1e9:.2f} GB")
                if cancelled():
                    raise Cancelled("The download was cancelled.")

            family = load_family(
                base.model,
                device=machine.device,
                dtype=machine.dtype,
                prediction=base.prediction,
                zero_terminal=base.zero_terminal,
                roots=[Path(folder) for folder in folders],
                on_bytes=on_bytes,
                waiting=True,
            )
            settle_in(family, machine.free_bytes())
            self._loaded = (base, family, Patch(family))
        return self._loaded[1:]


def _kept(
    made: Generator[Image.Image, None, None],
    request: GenerateRequest,
    *,
    family: Family,
    history: History,
    tell: Tell,
) -> list[Path]:
    """The request's pictures as files. Raises Cancelled, which says how many of them there are."""
    paths: list[Path] = []
    try:
        with closing(made) as pictures:
            for index, picture in enumerate(pictures):
                own = picture_request(request, index)
                paths.append(history.next_path(own.seed))
                save_png(paths[-1], picture, own, model_hash=family.hash)
                tell("file", file=str(paths[-1]))
    except Cancelled as error:
        if not paths:
            raise
        text = f"Stopped after {len(paths)} of {request.count} pictures."
        raise Cancelled(text, "Those are saved.") from error
    return paths


def _report(applied: Applied) -> dict[str, object]:
    """What became of an adapter, as JSON; of the keys that name nothing in the base, the first few."""
    return {
        "name": applied.entry.file.stem,
        "layers": dict(applied.layers),
        "words": list(applied.embeddings),
        "matched": len(applied.matched),
        "unmatched": len(applied.unmatched),
        "examples": [key[:200] for key in applied.unmatched[:UNMATCHED_TOLD]],
    }


def _teller(tell: Tell) -> Callable[[int, int, Image.Image], None]:
    """A callback for each step that sends the picture so far, not more often than is seen."""
    last = 0.0

    def on_step(step: int, steps: int, picture: Image.Image) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PREVIEW_SECONDS or step == steps:
            last = now
            tell("step", step=step, steps=steps, preview=_data_url(picture))

    return on_step


def _data_url(picture: Image.Image) -> str:
    scale = PREVIEW_PIXELS / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    held = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(held, format="JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode("ascii")
