"""Previews: the same prompts and seeds after every part of the run, so that pictures can be compared."""

from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from sdlora.config import TrainConfig
from sdlora.data.buckets import MULTIPLE
from sdlora.data.captions import usual, with_trigger
from sdlora.data.items import Dataset
from sdlora.errors import Cancelled, SdloraError
from sdlora.events import Event, Notice, PreviewSaved
from sdlora.files import replacing
from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.training.compile import uncompiled
from sdlora.training.session import Session

_CAPTIONS = 3


def prompts(config: TrainConfig, dataset: Dataset) -> tuple[str, ...]:
    """What previews draw: the prompts that were given, or the first captions of the dataset."""
    if config.preview.prompts:
        return config.preview.prompts
    trigger = config.data.captions.trigger
    captions = dict.fromkeys(with_trigger(usual(item.caption), trigger) for item in dataset.items)
    return tuple(captions)[:_CAPTIONS]


def draw(session: Session, step: int, *, cancelled: Callable[[], bool]) -> Iterator[Event]:
    """The previews after `step` steps lie in the run, as the events say.

    A preview that fails is told and left out: it is no reason to end a run. The session's network must be
    attached. Raises Cancelled.
    """
    with session.result(), uncompiled():
        for index, prompt in enumerate(prompts(session.config, session.dataset)):
            file = session.run.path / "previews" / f"step-{step:06d}-{index}.png"
            try:
                picture = generate(session.family, _request(session, prompt, index), cancelled=cancelled)[0]
                _save(picture, file)
            except Cancelled:
                raise
            except SdloraError as error:
                yield Notice(text=f"Preview {index + 1} failed: {error.message}", hint=error.hint)
                continue
            name = file.relative_to(session.run.path).as_posix()
            yield PreviewSaved(step=step, index=index, prompt=prompt, file=name)


def _request(session: Session, prompt: str, index: int) -> GenerateRequest:
    config, family = session.config, session.family
    step = max(MULTIPLE, family.latent.factor)
    side = (config.data.resolution or family.native_size) // step * step
    return GenerateRequest(
        base=config.base.model,
        prompt=prompt,
        negative=config.preview.negative,
        width=side,
        height=side,
        steps=config.preview.steps,
        guidance=config.preview.guidance,
        seed=(config.preview.seed + index) % 2**32,
        clip_skip=config.base.clip_skip,
    )


def _save(picture: Image.Image, file: Path) -> None:
    with replacing(file) as temporary:
        picture.save(temporary, format="PNG")
