"""The denoiser and the text encoder, trained together on encoded scenes.

B batch, C=4, h=H/8, L=77. Epsilon objective weighted by min-SNR 5 (Hang et al. 2023). The step is
compiled and, on CUDA, captured in a graph over static buffers; where either fails, the same
function runs without it. With several processes (torchrun) the one gradient vector is averaged.
Starting it early is worth while: it compiles while the autoencoder still trains, then waits.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from . import latents, models
from .clock import Clock
from .flat import Flat
from .models import Scale

TIMESTEPS = 1000
BETAS = (0.00085, 0.012)
SNR_LIMIT = 5.0
EMPTY_FRACTION = 0.1
PEAK_RATE = 1e-3
WARM_UP_STEPS = 200
KEEP_SECONDS = 60.0
"""Between two savings of the weights."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train (until `deadline`, seconds of the wall clock) and which part of the rate
    schedule this run covers: the rate is flat until `flat` of the whole, then falls to zero at 1."""

    deadline: float
    begin: float = 0.0
    end: float = 1.0
    flat: float = 0.35

    def rate(self, progress: float, step: int) -> float:
        """Learning rate at this fraction of the run; the first steps of any run warm up."""
        whole = self.begin + (self.end - self.begin) * progress
        fall = min(1.0, (1.0 - whole) / (1.0 - self.flat))
        return PEAK_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * max(fall, 1e-3)


class Objective(nn.Module):
    """The training loss as a function of tensors alone."""

    def __init__(self, text: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.text, self.unet = text, unet
        self.register_buffer("kept", kept_signal(), persistent=False)

    def forward(
        self, clean: torch.Tensor, tokens: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """Weighted squared error of the predicted noise; clean and noise [B,C,h,h], tokens [B,L], t [B]."""
        kept = self.kept[t].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        predicted = self.unet(noisy, t, self.text(tokens)[0], return_dict=False)[0]
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        snr = self.kept[t] / (1 - self.kept[t])
        return (error * snr.clamp(max=SNR_LIMIT) / snr).mean()


def kept_signal() -> torch.Tensor:
    """[1000] alpha-bar of Stable Diffusion's scaled-linear betas."""
    roots = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TIMESTEPS, dtype=torch.float64)
    return (1 - roots.square()).cumprod(0).float()


def train(
    scale: Scale, *, work: Path, plan: Plan, device: str, seed: int,
    compiled: bool,
) -> dict[str, float]:  # fmt: skip
    """`work/denoiser.safetensors` holds the averaged weights; says steps and samples."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = _join(device, world)
    words = models.tokenizer(work / "tokenizer")
    torch.manual_seed(seed)
    objective = Objective(models.text_encoder(scale, words), models.unet(scale))
    _restore(objective, work / "denoiser.safetensors")
    objective = objective.to(device, memory_format=torch.channels_last).train()
    flat = Flat(p for p in objective.parameters() if p.requires_grad)
    step = _Step(objective, flat, scale, device, compiled)
    _wait(work / "vae.done")
    clock = Clock("diffuse", 1)
    data = _encoded(work, scale, words, device, seed + 100 + rank)
    if rank == 0:
        clock.say(f"{len(data.latents)} scenes encoded, spread {data.latents[:4096].float().std():.3f}")
    torch.manual_seed(seed + 1000 + rank)
    path = work / "denoiser.safetensors"
    steps = _loop(step, flat, data, plan, rank, world, keep=lambda: _keep(objective, flat, path))
    if rank == 0:
        _keep(objective, flat, path)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return {"steps": steps, "samples": steps * scale.batch * world, "devices": world}


def _loop(
    step: "_Step", flat: Flat, data: latents.Encoded, plan: Plan, rank: int, world: int,
    *, keep: Callable[[], None],
) -> int:  # fmt: skip
    clock = Clock("diffuse", max(1.0, plan.deadline - time.time()))
    kept = 0.0
    steps, running = 0, torch.zeros((), device=flat.weights.device)
    while True:
        flat.rate.fill_(plan.rate(clock.progress, steps))
        flat.keep.fill_(min(0.999, (1 + steps) / (20 + steps)))
        if world > 1:
            dist.broadcast(flat.rate, 0)
        step.fill(data)
        running.lerp_(step.run(), 0.02 if steps else 1.0)
        if world > 1:
            dist.all_reduce(flat.grads)
            flat.grads.div_(world)
        flat.update()
        steps += 1
        if steps % 25 == 0 and _over(clock, flat.weights.device, world):
            return steps
        if steps % 25 == 0 and rank == 0 and clock.due():
            clock.say(f"step {steps} loss {running.item():.4f} rate {flat.rate.item():.2e}")
            if clock.elapsed > kept + KEEP_SECONDS:
                kept = clock.elapsed
                keep()


def _over(clock: Clock, device: torch.device, world: int) -> bool:
    """True for every process at once, when the first one's time is up."""
    over = torch.tensor(float(clock.progress >= 1), device=device)
    if world > 1:
        dist.broadcast(over, 0)
    return bool(over.item())


class _Step:
    """One forward and backward over static buffers: compiled and captured where that works."""

    def __init__(self, objective: Objective, flat: Flat, scale: Scale, device: str, compiled: bool) -> None:
        side, batch = scale.picture // 8, scale.batch
        self.flat, self.cuda = flat, device.startswith("cuda")
        self.clean = torch.randn(batch, 4, side, side, device=device)
        self.clean = self.clean.contiguous(memory_format=torch.channels_last)
        self.noise = torch.randn_like(self.clean)
        self.tokens = torch.zeros(batch, models_length(objective), dtype=torch.long, device=device)
        self.t = torch.zeros(batch, dtype=torch.long, device=device)
        self.graph, self.loss = None, None
        for function in ([torch.compile(objective)] if compiled else []) + [objective]:
            self.function = function
            if self._works():
                break
        self.flat.grads.zero_()

    def _works(self) -> bool:
        """Tries the function out and captures it; says why where it cannot."""
        clock = Clock("step", 1)
        name = "compiled" if hasattr(self.function, "_orig_mod") else "eager"
        try:
            stream = torch.cuda.Stream() if self.cuda else None
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._forward_backward()
            if self.cuda:
                torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 - any compiler failure means: go on without it
            clock.say(f"{name} step failed: {type(error).__name__}: {str(error)[:300]}")
            return False
        clock.say(f"{name} step works")
        if self.cuda:
            self._capture(stream, clock)
        return True

    def _capture(self, stream: "torch.cuda.Stream", clock: Clock) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._forward_backward()
            graph.replay()
            torch.cuda.synchronize()
            started = time.monotonic()
            for _ in range(5):
                graph.replay()
            torch.cuda.synchronize()
            self.graph = graph
            clock.say(f"captured: {(time.monotonic() - started) / 5 * 1e3:.1f} ms forward and backward")
        except Exception as error:  # noqa: BLE001 - uncaptured is slower, not wrong
            clock.say(f"not captured: {type(error).__name__}: {str(error)[:300]}")

    def _forward_backward(self) -> None:
        self.flat.grads.zero_()
        kind = "cuda" if self.cuda else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=self.cuda):
            loss = self.function(self.clean, self.tokens, self.noise, self.t)
        loss.backward()
        if self.loss is None:
            self.loss = torch.zeros_like(loss.detach())
        self.loss.copy_(loss.detach())

    def fill(self, data: latents.Encoded) -> None:
        """The buffers hold the next random batch; timesteps are stratified over the schedule."""
        batch, device = len(self.clean), self.clean.device
        rows = torch.randint(len(data.latents), (batch,), device=device)
        self.clean.copy_(data.latents[rows])
        dropped = torch.rand(batch, 1, device=device) < EMPTY_FRACTION
        self.tokens.copy_(torch.where(dropped, data.empty, data.tokens[rows]))
        self.noise.normal_()
        even = torch.arange(batch, device=device) + torch.rand(batch, device=device)
        self.t.copy_((even * (TIMESTEPS / batch)).long().clamp(max=TIMESTEPS - 1))

    def run(self) -> torch.Tensor:
        """Gradients of the filled batch are in `flat.grads`; the loss, still on the device."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self._forward_backward()
        return self.loss


def models_length(objective: Objective) -> int:
    """Tokens of one prompt."""
    return objective.text.config.max_position_embeddings


def _encoded(work: Path, scale: Scale, words, device: str, seed: int) -> latents.Encoded:
    from . import icons

    vae = AutoencoderKL.from_pretrained(work / "vae").to(device, memory_format=torch.channels_last).eval()
    textures = icons.render(work, scale.texture)
    return latents.encode(textures, vae, words, scale, device=device, seed=seed)


def _join(device: str, world: int) -> str:
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def _wait(mark: Path) -> None:
    while not mark.exists():
        time.sleep(0.5)


def _restore(objective: Objective, path: Path) -> None:
    if path.exists():
        objective.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=True)
        print(f"[diffuse] goes on from {path.name}", flush=True)


def _keep(objective: Objective, flat: Flat, path: Path) -> None:
    """The averaged weights in fp16, keys `unet.*` and `text.*`."""
    learned = {id(p): value for p, value in zip(flat.parameters, flat.averaged(), strict=True)}
    tensors = {
        name: learned[id(p)].to(torch.float16).cpu().contiguous() for name, p in objective.named_parameters()
    }
    save_file(tensors, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
