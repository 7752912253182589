"""`python -m benchmarks.memory [builtin] [sd1] [sdxl]`: bases of the true sizes, trained and drawn with.

First each base is trained for 50 steps at batch 1 and 4 through the real loop and draws a picture of 30
steps; then short runs measure the memory at the points of `grid.py`. All goes into `memory-points.json` in
the folder given by --output, which is written anew after every point. Memory is what torch has reserved, in
bytes; weights are random.
"""

import argparse
import gc
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks.memory.grid import Point, grid
from benchmarks.speed import families
from sdlora import cli, options, runtime
from sdlora.config import TrainConfig
from sdlora.contracts import Family
from sdlora.events import Event, Notice, StepDone
from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.loading import load_family
from sdlora.runtime import Runtime
from sdlora.training.loop import Loop
from sdlora.training.run import Run
from sdlora.training.session import Session
from tests.pictures import draw

SIDES = {"builtin": (128,), "sd1": (512, 768, 1024), "sdxl": (512, 768, 1024)}
PICTURES = 16


@dataclass
class Trained:
    """What came of a run. `held` is the memory before its first step, `outside` what torch does not count."""

    peak: int = 0
    held: int = 0
    outside: int = 0
    losses: list[float] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    adapters: int = 0
    moved: int = 0
    file: dict[str, object] = field(default_factory=dict)

    def teller(self, run: Run) -> Callable[[Event], None]:
        """Writes the events of `run`, and notes losses and notices."""

        def tell(event: Event) -> None:
            run.report(event)
            if isinstance(event, StepDone):
                self.losses.append(round(event.loss, 6))
            elif isinstance(event, Notice):
                self.notices.append(event.text)

        return tell


class Bench:
    """A base of the true size on a machine, in one number format."""

    def __init__(self, name: str, machine: Runtime, folder: Path) -> None:
        self.name, self.machine, self.folder = name, machine, folder
        self.family = self._made()
        networks = self.family.networks.values()
        tensors = [part for network in networks for part in (*network.parameters(), *network.buffers())]
        self._homes = [(tensor, tensor.data.cpu()) for tensor in tensors]

    def full_size(self, steps: int) -> Iterator[dict[str, Any]]:
        """Training at batch 1 and 4 with the layers of sd-scripts' default, and one picture."""
        side = self.family.native_size
        for batch in (1, 4):
            values = {"loop.batch_size": batch, "adapter.targets": "attention+mlp"}
            found = self.train(steps=steps, side=side, **values)
            good = len(found.losses) == steps and all(map(math.isfinite, found.losses))
            row = {"base": self.name, "what": f"train, batch {batch}", "side": side, "steps": steps}
            row |= {"good": good and found.moved == found.adapters, **asdict(found)}
            yield row | {"losses": [found.losses[0], found.losses[-1]]}
        yield {"what": "draw", **self.drawn(side=side, steps=30, count=1)}

    def at(self, point: Point) -> dict[str, Any]:
        """The memory of a short run at `point`."""
        begin = time.perf_counter()
        try:
            found = self.train(steps=3 * point.shapes, side=point.side, shapes=point.shapes, **point.values)
        except torch.OutOfMemoryError:
            return {**asdict(point), "failed": "out of memory"}
        took = round(time.perf_counter() - begin, 1)
        told = {"peak": found.peak, "held": found.held, "outside": found.outside, "took": took}
        return {**asdict(point), **told, "notices": found.notices}

    def train(self, *, steps: int, side: int, shapes: int = 1, **values: object) -> Trained:
        """A whole run of `steps` steps."""
        told = {
            "data.folder": str(_pictures(self.folder, side, shapes)),
            "data.resolution": side,
            "data.captions.dropout": 0.0,
            "preview.every": -1,
            "loop.save_every": 1_000_000,
            "loop.steps": steps,
            "loop.device": str(self.machine.device),
            "loop.precision": self.machine.precision,
        }
        run = Run.create(options.build(TrainConfig, told | values), self.folder / "runs")
        found = Trained()
        self._rest()
        with run.locked(), runtime.kernels(deterministic=run.config.loop.deterministic):
            session = Session.begin(run, self.machine, family=self.family, last=None, tell=found.teller(run))
            _watch(session, found)
            Loop(session, self.machine).go()
        found.peak, found.outside = self.machine.peak_bytes(), _outside(self.machine.device)
        found.adapters = len(session.network.adapters)
        found.moved = sum(_moved(adapter.tensors()) for adapter in session.network.adapters.values())
        found.file = _file(run.adapter)
        return found

    def drawn(self, *, side: int, steps: int, count: int) -> dict[str, Any]:
        """`count` pictures in one batch."""
        held = self._gather()
        request = GenerateRequest(prompt="a cat", width=side, height=side, steps=steps, count=count)
        begin = time.perf_counter()
        with runtime.kernels(deterministic=True):
            picture = generate(self.family, request)[0]
        seconds = time.perf_counter() - begin
        colours = [high - low for low, high in picture.getextrema()]
        row = {"base": self.name, "precision": self.machine.precision, "side": side, "steps": steps}
        good = max(colours) > 0
        return row | {"count": count, "good": good, **self._memory(held), "seconds": seconds}

    def encoded(self, *, side: int) -> dict[str, Any]:
        """One picture becomes latents, as before the first step of a run."""
        held = self._gather()
        with runtime.kernels(deterministic=True):
            self.family.encode_images(torch.zeros(1, 3, side, side, device=self.machine.device))
        row = {"base": self.name, "precision": self.machine.precision, "side": side}
        return row | self._memory(held)

    def _made(self) -> Family:
        device, dtype = self.machine.device, self.machine.dtype
        if self.name == "builtin":
            return load_family("builtin", device=device, dtype=dtype)
        return families.make(self.name, self.folder / self.name, device=device, dtype=dtype)

    def _memory(self, held: int) -> dict[str, int]:
        return {"peak": self.machine.peak_bytes(), "held": held}

    def _rest(self) -> None:
        """The networks lie in the machine's memory, as after loading for training."""
        for tensor, home in self._homes:
            tensor.data = home
        _fresh(self.machine.device)

    def _gather(self) -> int:
        """All networks lie on the device, as after loading for drawing. Returns the bytes held."""
        for tensor, home in self._homes:
            tensor.data = home.to(self.machine.device)
        return _fresh(self.machine.device)


def _watch(session: Session, found: Trained) -> None:
    """What is held before the first step will be noted; the peak counts from there."""
    step, prepare = session.train_step, session.train_step.prepare

    def first(number: int, *, lr_factor: float) -> float:
        found.held = _fresh(session.family.device)
        step.prepare = prepare  # type: ignore[method-assign]  # taken back
        return prepare(number, lr_factor=lr_factor)

    step.prepare = first  # type: ignore[method-assign]  # for one call


def _file(path: Path) -> dict[str, object]:
    """Size and names of an adapter file: how many modules of each prefix, and one name of each."""
    with safe_open(path, "pt") as held:
        names = sorted({key.split(".")[0] for key in held.keys()})  # noqa: SIM118  # no mapping
    prefixes = [name[: name.index("_", len("lora_"))] for name in names]
    first = dict(zip(reversed(prefixes), reversed(names), strict=True))
    return {"bytes": path.stat().st_size, "modules": dict(Counter(prefixes)), "first": first}


def _moved(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether LoRA's factor that starts at zero is no longer."""
    up = tensors.get("lora_up.weight")
    return up is not None and bool(up.any())


def _fresh(device: torch.device) -> int:
    """The peak counts from here. Returns the bytes that are held."""
    gc.collect()
    runtime.synchronize(device)
    if device.type != "cuda":
        return 0
    torch._C._cuda_clearCublasWorkspaces()  # else those of every earlier run's stream stay
    runtime.release(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _outside(device: torch.device) -> int:
    """Bytes of the GPU that are taken, but not by torch's allocator; right where nothing else uses it."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _pictures(root: Path, side: int, shapes: int = 1) -> Path:
    """A folder of drawn pictures with captions, of one shape or of several."""
    folder = root / f"pictures-{side}-{shapes}"
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        size = (side, side) if number % shapes == 0 else (side * 3 // 2, side)
        draw(size, f"hsl({number * 22}, 80%, 50%)").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a ball of colour {number}")
    return folder


class Table:
    """What was measured, on the screen and in a file that is whole after every row."""

    def __init__(self, path: Path, machine: Runtime) -> None:
        self.path = path
        self.held: dict[str, Any] = {
            "device": machine.title,
            "torch": torch.__version__,
            "bytes": machine.total_bytes(),
        }

    def add(self, part: str, row: dict[str, Any]) -> None:
        """`row` stands in `part` of the file."""
        self.held.setdefault(part, []).append(row)
        self.path.write_text(json.dumps(self.held, indent=1) + "\n")
        peak = f"{row['peak'] / 2**30:6.2f} GiB" if "peak" in row else ""
        told = {key: row[key] for key in row if key not in ("losses", "file", "peak", "notices")}
        print(part, peak, " ".join(f"{key}={value}" for key, value in told.items()), flush=True)


def _measure(name: str, table: Table, folder: Path, arguments: argparse.Namespace) -> None:
    """All of one base, what matters most first."""
    points = list(grid(name))[: 2 if arguments.brief else None]
    for precision in dict.fromkeys(point.precision for point in points):
        bench = Bench(name, Runtime.choose(arguments.device, precision), folder)
        if precision == "bf16":
            for row in bench.full_size(arguments.steps):
                table.add("full size", row)
        for side in SIDES[name]:
            table.add("encode", bench.encoded(side=side))
            table.add("draw", bench.drawn(side=side, steps=2, count=1))
        for point in points:
            if point.precision == precision:
                table.add("train", bench.at(point))
        del bench


def main() -> None:
    """Measures the bases named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bases", nargs="*", help="builtin, sd1 or sdxl; all when none is named")
    parser.add_argument("--output", type=Path, default=Path("."))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=50, help="steps of the full-size runs")
    parser.add_argument("--brief", action="store_true", help="two points of the grid only, to try it out")
    arguments = parser.parse_args()
    cli.prepare()
    table = Table(arguments.output / "memory-points.json", Runtime.choose(arguments.device))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SDLORA_HOME"] = folder
        for name in arguments.bases or SIDES:
            _measure(name, table, Path(folder), arguments)


if __name__ == "__main__":
    main()
