"""What mixing costs on SDXL: a step with constant, changing, regional adapters, a switch, loading, merging.

    python benchmarks/mixing/mixing.py [--device cuda] [--size sdxl|tiny] [--output results.json]

The UNet has SDXL's true sizes and random weights; the adapters are rank 16 on all its attention layers, as
sd-scripts trains them. Times are medians in milliseconds; a step is one UNet call with guidance at 1024x1024.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sdlora.adapters.lora import Lora
from sdlora.contracts import Layer
from sdlora.network.cache import AdapterCache
from sdlora.network.change import Change
from sdlora.network.codec import AdapterFile, save
from sdlora.network.live import mixed
from sdlora.network.merge import merge
from sdlora.network.stack import Entry, Patch

SIZES = {
    "sdxl": {"widths": (320, 640, 1280), "depths": (1, 2, 10), "cross": 2048, "side": 128, "rank": 16},
    "tiny": {"widths": (32, 64, 64), "depths": (1, 2, 3), "cross": 32, "side": 16, "rank": 4},
}
COUNTS = (1, 3, 8)
ROUNDS = 3
RISING = Change(curve=((0.0, 0.0), (1.0, 1.0)))


@dataclass
class Base:
    """A UNet without what else makes a family."""

    components: Mapping[str, nn.Module]
    device: torch.device
    dtype: torch.dtype
    name: str = "sdxl"
    title: str = "Stable Diffusion XL"
    presets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def make_base(size: dict, device: torch.device, dtype: torch.dtype) -> Base:
    """SDXL's UNet in that size, random weights drawn on the device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=size["side"],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=size["widths"],
            transformer_layers_per_block=size["depths"],
            attention_head_dim=(5, 10, 20) if size["widths"][0] == 320 else 8,
            cross_attention_dim=size["cross"],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            norm_num_groups=32 if size["widths"][0] == 320 else 8,
        )
    unet = unet.to_empty(device=device).to(dtype).requires_grad_(False).eval()
    torch.manual_seed(0)
    for parameter in unet.parameters():
        parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    return Base({"unet": unet}, device, dtype)


def make_adapter(base: Base, path: Path, *, rank: int, seed: int) -> Path:
    """A file of random adapters on the layers that sd-scripts trains."""
    draw = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, module in base.components["unet"].named_modules():
        if ".attentions." in name and isinstance(module, nn.Linear):
            down = torch.randn(rank, module.in_features, generator=draw) / module.in_features**0.5
            up = 0.01 * torch.randn(module.out_features, rank, generator=draw)
            adapters[Layer("unet", name)] = Lora(down, up, alpha=rank / 2)
    save(path, adapters, family_name="sdxl")
    return path


def times(call: Callable[[], object], device: torch.device, *, repeats: int, warm: int = 3) -> list[float]:
    """Milliseconds of each call after the first `warm`, the device's work included."""
    found = []
    for number in range(repeats + warm):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= warm:
            found.append(1000 * (time.perf_counter() - began))
    return found


def one_step(base: Base, size: dict) -> Callable[[], None]:
    """One call of the UNet with guidance, on inputs that stay where they are."""
    made = {"device": base.device, "dtype": base.dtype}
    noisy = torch.randn(2, 4, size["side"], size["side"], **made)
    text = torch.randn(2, 77, size["cross"], **made)
    extra = {"text_embeds": torch.randn(2, 2816 - 6 * 256, **made), "time_ids": torch.zeros(2, 6, **made)}
    when = torch.tensor(500, device=base.device)

    def step() -> None:
        base.components["unet"](noisy, when, encoder_hidden_states=text, added_cond_kwargs=extra)

    return step


@torch.no_grad()
def replayed(base: Base, files: list[Path], size: dict, *, repeats: int) -> dict[str, float]:
    """What the device itself takes for a step with constant adapters: one recorded graph, other weights."""
    if base.device.type != "cuda":
        return {}
    step, patch = one_step(base, size), Patch(base)
    times(step, base.device, repeats=1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for count in (0, *COUNTS):
            patch.apply([Entry(file, 0.5) for file in files[:count]])
            found.setdefault(f"replayed {count}", []).extend(
                times(graph.replay, base.device, repeats=3 * repeats)
            )
    patch.restore()
    return {name: statistics.median(row) for name, row in found.items()}


@torch.no_grad()
def steps(base: Base, files: list[Path], size: dict, *, repeats: int) -> dict[str, float]:
    """A step without adapters, with constant ones and with changing ones.

    All are measured in turn, several rounds long, so that clocks that drift touch every row alike.
    """
    step, cache = one_step(base, size), AdapterCache(base, limit=4 << 30)
    times(step, base.device, repeats=1, warm=3 * repeats)  # until clocks and allocator have settled
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        rows = {"none": ()}
        for count in COUNTS:
            rows[f"constant {count}"] = tuple(Entry(file, 0.5) for file in files[:count])
            rows[f"changing {count}"] = tuple(Entry(file, 0.5, change=RISING) for file in files[:count])
            rows[f"in regions {count}"] = tuple(
                Entry(file, 0.5, change=Change(box=box))
                for file, box in zip(files, strips(count), strict=False)
            )
        for name, entries in rows.items():
            patch = Patch(base, cache=cache)
            with mixed(base, entries, latent_size=(size["side"],) * 2, patch=patch) as mix:

                def at_step(mix=mix) -> None:
                    mix.at(1, 2)
                    step()

                found.setdefault(name, []).extend(times(at_step, base.device, repeats=repeats))
            patch.restore()
    return {name: statistics.median(row) for name, row in found.items()}


def strips(count: int) -> list[tuple[float, float, float, float]]:
    """The picture cut into upright parts of equal width."""
    return [(n / count, 0.0, (n + 1) / count, 1.0) for n in range(count)]


def switching(base: Base, files: list[Path], *, repeats: int) -> dict[str, float]:
    """From one adapter in memory to another, to another weight, and reading one from disk."""
    patch, turn = Patch(base), itertools.count()

    def switch() -> None:
        patch.apply([Entry(files[next(turn) % 2])])

    def stack() -> None:
        patch.apply([Entry(file, 0.1 * (1 + next(turn) % 5)) for file in files[:3]])

    found = {"switch": median(switch, base.device, repeats=2 * repeats)}
    found["new weights of three"] = median(stack, base.device, repeats=repeats)
    found["taken off"] = median(patch.restore, base.device, repeats=1, warm=0)
    found["load"] = median(lambda: AdapterFile.open(files[0]).resolve(base), base.device, repeats=5)
    found["load and keep"] = median(lambda: AdapterCache(base).resolve(files[0]), base.device, repeats=5)
    found["bytes"] = files[0].stat().st_size
    return found


def median(call: Callable[[], object], device: torch.device, *, repeats: int, warm: int = 3) -> float:
    return statistics.median(times(call, device, repeats=repeats, warm=warm))


def merging(files: list[Path], folder: Path) -> dict[str, float]:
    """Eight adapters into one on two threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    entries = [Entry(file, 0.5) for file in files]
    found = {}
    for method in ("concat", "svd"):
        began = time.perf_counter()
        merge(entries, output=folder / "merged.safetensors", method=method)
        found[f"merge {len(files)} {method}"] = 1000 * (time.perf_counter() - began)
    torch.set_num_threads(before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=SIZES, default="sdxl")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device, size = torch.device(arguments.device), SIZES[arguments.size]
    base = make_base(size, device, torch.float16 if device.type == "cuda" else torch.float32)
    result: dict[str, object] = {
        "size": arguments.size,
        "device": arguments.device,
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        result["device"] = torch.cuda.get_device_name(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [make_adapter(base, folder / f"{n}.safetensors", rank=size["rank"], seed=n) for n in range(8)]
        for part in (
            lambda: switching(base, files, repeats=arguments.repeats),
            lambda: replayed(base, files, size, repeats=arguments.repeats),
            lambda: steps(base, files, size, repeats=arguments.repeats),
            lambda: merging(files, folder),
        ):
            result |= part()
            print(json.dumps(result), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
