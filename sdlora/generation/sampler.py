"""The denoising loop: a request becomes pictures.

Noise comes from one CPU generator per picture, so that a seed is the same picture for every count, batch
and device. Classifier-free guidance (Ho & Salimans 2022) runs both prompts as one batch.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from sdlora.contracts import Conditioning, Family
from sdlora.errors import Cancelled, ConfigError, OutOfMemory
from sdlora.generation.request import GenerateRequest
from sdlora.generation.solvers import SOLVERS, takes_generator
from sdlora.network.attach import Network, attached
from sdlora.network.embeddings import gathered, spoken
from sdlora.network.live import Mix, mixed
from sdlora.network.stack import Patch
from sdlora.residence import present, text_encoders
from sdlora.runtime import allocating, release

OnStep = Callable[[int, int, Image.Image], None]
"""Called with the steps done and all steps of all pictures, and a small preview of the one being made."""

_LARGEST_BATCH = 8
_LARGEST_ON_CPU = 2  # more are no faster there, and the first would be seen later


def generate(
    family: Family,
    request: GenerateRequest,
    *,
    network: Network | None = None,
    on_step: OnStep | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    patch: Patch | None = None,
) -> list[Image.Image]:
    """All of `finished`, which says what they are and what is raised."""
    made = finished(family, request, network=network, on_step=on_step, cancelled=cancelled, patch=patch)
    return list(made)


@torch.no_grad()
def finished(
    family: Family,
    request: GenerateRequest,
    *,
    network: Network | None = None,
    on_step: OnStep | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    patch: Patch | None = None,
) -> Generator[Image.Image, None, None]:
    """The request's pictures, with its stack on the family, or with `network` (one in training) instead.

    Each is there as soon as its batch is. After the last, or once closed, the family is as before; only what
    a given `patch` wrote stays, for the next request. Raises Cancelled soon after `cancelled` says so, and
    OutOfMemory when one picture does not fit.
    """
    with _carrying(family, request, network=network, patch=patch) as mix:
        job = _Job(family, request, mix, on_step, cancelled)
        done, size = 0, _LARGEST_ON_CPU if family.device.type == "cpu" else _LARGEST_BATCH
        while done < request.count:
            batch = range(done, min(done + size, request.count))
            made = job.try_batch(batch)
            if made is None and len(batch) == 1:
                raise OutOfMemory(
                    f"A picture of {job.width}x{job.height} does not fit into the device's memory.",
                    "Choose a smaller size, or close other programs that use the device.",
                )
            if made is None:
                size = len(batch) // 2
            else:
                yield from made
                done = batch.stop


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels [3,H,W] in [-1,1] as a picture."""
    bytes_ = ((pixels + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
    return Image.fromarray(bytes_.movedim(0, -1).numpy())


@contextmanager
def _carrying(
    family: Family, request: GenerateRequest, *, network: Network | None, patch: Patch | None
) -> Iterator[Mix]:
    """Inside, the family carries the adapters."""
    if network is not None:
        with attached(family, network):
            yield Mix()
        return
    width, height = _size(family, request)
    factor = family.latent.factor
    # constant entries are patched; with nothing that changes there is nothing beside the weights
    with mixed(family, request.stack, latent_size=(height // factor, width // factor), patch=patch) as mix:
        yield mix


def _size(family: Family, request: GenerateRequest) -> tuple[int, int]:
    """Width and height in pixels. Raises ConfigError unless latents fill them."""
    factor = family.latent.factor
    for name, pixels in (("width", request.width), ("height", request.height)):
        if pixels % factor:
            near = max(1, round(pixels / factor)) * factor
            raise ConfigError(f"{name} = {pixels} is no multiple of {factor}.", f"The nearest is {near}.")
    return request.width or family.native_size, request.height or family.native_size


class _Job:
    """One request on one family: what stays the same from batch to batch."""

    def __init__(
        self,
        family: Family,
        request: GenerateRequest,
        mix: Mix,
        on_step: OnStep | None,
        cancelled: Callable[[], bool],
    ) -> None:
        self.family, self.request, self.mix = family, request, mix
        self.on_step, self.cancelled = on_step, cancelled
        self.width, self.height = _size(family, request)
        self.conditioning = self._conditioning()

    def try_batch(self, batch: range) -> list[Image.Image] | None:
        """The pictures of these numbers, or None when the memory did not suffice for all at once."""
        try:
            with allocating():
                latents = self._latents(batch)
            with present(self.family, "vae"), allocating():
                return [to_image(self.family.decode(one)[0]) for one in torch.split(latents, 1)]
        except torch.OutOfMemoryError:
            pass
        # outside the handler, whose traceback would keep the tensors alive
        release(self.family.device)
        return None

    def _conditioning(self) -> Conditioning:
        """Of the negative and the positive prompt [2,...]; of the positive one [1,...] without guidance."""
        request, family = self.request, self.family
        prompts = [request.negative, request.prompt] if request.guidance > 1 else [request.prompt]
        size = [(self.height, self.width)] * len(prompts)
        sizes = family.sizes(size, [(0, 0)] * len(prompts), size)
        embeddings = gathered([report.embeddings for report in self.mix.reports], prompts)
        with present(family, *text_encoders(family)), spoken(family, embeddings, prompts) as words:
            tokens = family.tokenize(prompts, weighted=True, words=words).to(family.device)
            told = replace(family.encode_text(tokens, clip_skip=request.clip_skip), sizes=sizes)
        return told.map(lambda part: part.to(family.device))

    def _latents(self, batch: range) -> Tensor:
        """The finished latents [B,C,h,w] of the pictures number `batch`."""
        family, request = self.family, self.request
        scheduler = SOLVERS[request.solver].build(family.noise, request.steps)
        factor = family.latent.factor
        shape = (family.latent.channels, self.height // factor, self.width // factor)
        generators = [torch.Generator().manual_seed(request.seed + index) for index in batch]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        latents = noise.to(family.device) * float(scheduler.init_noise_sigma)
        told = self.conditioning.map(lambda part: part.repeat_interleave(len(batch), dim=0))
        random = {"generator": generators} if takes_generator(scheduler) else {}
        for step, timestep in enumerate(scheduler.timesteps, start=1):
            if self.cancelled():
                raise Cancelled("The pictures were cancelled.")
            self.mix.at(step - 1, len(scheduler.timesteps))
            noisy = scheduler.scale_model_input(latents, timestep)
            output = self._guided(noisy, float(timestep), told)
            latents = scheduler.step(output, timestep, latents, **random).prev_sample
            if self.on_step is not None:
                done = batch.start * request.steps + step * len(batch) * request.steps // len(
                    scheduler.timesteps
                )
                self.on_step(
                    done, request.count * request.steps, self._preview(noisy[:1], output[:1], timestep)
                )
        return latents

    def _guided(self, noisy: Tensor, timestep: float, told: Conditioning) -> Tensor:
        """The UNet's output [B,C,h,w] for noisy latents, moved away from the negative prompt's."""
        passes = len(self.conditioning.states)
        repeated = noisy.repeat(passes, 1, 1, 1)
        timesteps = torch.full((len(repeated),), timestep, device=noisy.device)
        outputs = self.family.predict(repeated, timesteps, told).chunk(passes)
        return torch.lerp(outputs[0], outputs[-1], self.request.guidance) if passes > 1 else outputs[0]

    def _preview(self, noisy: Tensor, output: Tensor, timestep: Tensor) -> Image.Image:
        """What the first picture will be like, one pixel a latent, by the VAE's linear fit."""
        at = timestep.round().long().reshape(1).to(noisy.device)
        clean = self.family.noise.predicted(noisy, output, at)[0]
        rows = torch.tensor(self.family.latent.preview, device=clean.device)
        return to_image(torch.einsum("chw,cd->dhw", clean, rows[:-1]) + rows[-1, :, None, None])
