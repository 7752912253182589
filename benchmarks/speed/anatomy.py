"""What a captured training step is made of: its time, and the kernels that take most of it.

    python benchmarks/speed/anatomy.py sd1 --batch 4
    python benchmarks/speed/anatomy.py sdxl --compiled

The step alone, replayed on one batch that lies on the GPU: no data, no events. Bases of the true sizes with
random weights, rank 16 on attention, bf16. `run.py` measures whole runs.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed import families  # the path above comes first
from sdlora import options, runtime
from sdlora.config import TrainConfig
from sdlora.contracts import Conditioning, Family, Step
from sdlora.network.attach import attached, create
from sdlora.residence import present
from sdlora.training.capture import CapturedStep
from sdlora.training.compile import compiled
from sdlora.training.fused import fused
from sdlora.training.step import TrainStep

STEPS = 20
CONFIG = {
    "data.folder": "unused",
    "adapter.text_encoder": False,
    "adapter.rank": 16,
    "adapter.alpha": 16.0,
}


def example(family: Family, batch: int) -> Step:
    """A batch of random latents and text."""
    side, large = family.native_size // family.latent.factor, family.name == "sdxl"
    text = Conditioning(
        torch.randn(batch, 77, 2048 if large else 768), torch.randn(batch, 1280) if large else None
    )
    sizes = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]] * batch) if large else None
    latents, noise = torch.randn(2, batch, 4, side, side)
    times = torch.randint(0, 1000, (batch,))
    return Step(latents, noise, times, None, text, sizes, torch.ones(batch), None)


def milliseconds(captured: CapturedStep, step: Step) -> float:
    """The median time of a step."""
    times = []
    for _ in range(STEPS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        captured.run([step])
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def kernels(captured: CapturedStep, step: Step, top: int) -> list[tuple[str, int, float]]:
    """The `top` kernels of one step by time: name, calls, milliseconds."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        captured.run([step])
        torch.cuda.synchronize()
    calls, time = Counter[str](), Counter[str]()
    for event in profiler.events():
        calls[event.name] += 1
        time[event.name] += event.device_time / 1e3
    return [(name, calls[name], spent) for name, spent in time.most_common(top)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", choices=["sd1", "sdxl"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", action="store_true", help="only kernels that repeat their bits")
    parser.add_argument(
        "--compiled", action="store_true", help="blocks by torch.compile in place of our kernels"
    )
    parser.add_argument("--top", type=int, default=25)
    words = parser.parse_args()
    torch.manual_seed(0)
    device, config = torch.device("cuda", 0), options.build(TrainConfig, CONFIG)
    with tempfile.TemporaryDirectory() as folder, runtime.kernels(deterministic=words.repeat):
        family = families.make(words.base, Path(folder), device=device, dtype=torch.bfloat16)
        unet = family.components["unet"].to(memory_format=torch.channels_last)
        train_step = TrainStep(family, create(family, config.adapter, seed=0), config)
        train_step.prepare(0, lr_factor=1)
        faster = compiled(unet) if words.compiled else fused(unet)
        with present(family, "unet"), attached(family, train_step.working), faster:
            captured, step = CapturedStep(train_step), example(family, words.batch)
            captured.run([step])
            took = milliseconds(captured, step)
            print(f"{took:.2f} ms a step, {1e3 / took:.1f} steps/s")
            for name, calls, spent in kernels(captured, step, words.top):
                print(f"{spent:9.3f} ms {calls:6} calls  {name[:120]}")


if __name__ == "__main__":
    main()
