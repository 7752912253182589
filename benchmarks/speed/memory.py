"""How much of a GPU's memory training takes in each way of training, and how fast it then is.

    python benchmarks/speed/memory.py sd1 sdxl

Whole runs of ours at batch 1 on models of the true sizes with random weights: pictures and captions are
encoded anew in each. The plain loop stands beside them with LoRA and with every weight of the UNet trained.
Prints a table and writes `memory.json` to the folder given by --output. All memory is what torch reserved,
in GiB.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed import families, reference, run  # the path above comes first
from sdlora import cli
from sdlora.contracts import Family
from sdlora.events import Event, Phase
from sdlora.residence import present
from sdlora.runtime import Runtime

SMALL = {"loop__checkpointing": True}
WAYS: dict[str, dict[str, object]] = {
    "fastest": {},
    "recomputed": SMALL,
    "fp8": {"base__storage": "fp8"},
    "fp8, recomputed": {"base__storage": "fp8", **SMALL},
    "NF4, recomputed": {"base__storage": "nf4", **SMALL},
    "fp8, recomputed, weights outside": {
        "base__storage": "fp8",
        "loop__offload": True,
        "loop__steps": 16,
        **SMALL,
    },
}


@dataclass(frozen=True)
class Memory:
    """`encoding` and `peak` are peaks, of the phase that encodes and of the whole run."""

    what: str
    encoding: float
    peak: float
    steps_per_second: float
    notice: str = ""


def ours(name: str, base: Family, machine: Runtime, folder: Path, *, way: str, steps: int) -> Memory:
    """A whole run of ours in this way, which encodes its pictures itself."""
    os.environ["SDLORA_HOME"] = tempfile.mkdtemp(dir=folder)
    encoding = 0.0

    def look(event: Event) -> None:
        nonlocal encoding
        if isinstance(event, Phase):
            encoding = torch.cuda.max_memory_reserved() / 2**30

    family = copy.deepcopy(base)
    changes = {"loop__steps": steps, **WAYS[way]}
    row = run.ours(family, machine, folder, f"{name} {way}", on_event=look, **changes)
    return Memory(row.what, encoding, row.memory, row.steps_per_second, row.notice)


def theirs(name: str, base: Family, *, rank: int) -> Memory:
    """The plain loop with LoRA of this rank, or with every weight of the UNet (rank 0)."""
    family = copy.deepcopy(base)
    if not rank:
        family.unet.float()
    run.forget_peaks(family.device)
    with present(family, *family.networks):
        seconds = reference.step_seconds(family, batch=1, steps=6, rank=rank)
        peak = torch.cuda.max_memory_reserved() / 2**30
    what = f"{name} plain loop, {'LoRA' if rank else 'every weight'}"
    return Memory(what, 0.0, peak, run.rate_of(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bases", nargs="+", choices=["sd1", "sdxl"])
    parser.add_argument("--ways", nargs="*", default=list(WAYS), help=f"some of: {'; '.join(WAYS)}")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("."))
    arguments = parser.parse_args()
    cli.prepare()
    machine, rows = Runtime.choose("cuda"), []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.bases:
            side = {"sd1": 512, "sdxl": 1024}[name]
            run.make_pictures(Path(folder) / f"pictures-{side}", side)
            base = families.make(name, Path(folder) / name, device=machine.device, dtype=machine.dtype)
            for way in arguments.ways:
                rows.append(ours(name, base, machine, Path(folder), way=way, steps=arguments.steps))
                show(rows[-1])
            for rank in (16, 0):
                rows.append(theirs(name, base, rank=rank))
                show(rows[-1])
    table = {"device": machine.title, "rows": [asdict(row) for row in rows]}
    (arguments.output / "memory.json").write_text(json.dumps(table, indent=1))


def show(row: Memory) -> None:
    print(
        f"{row.what:<44}{row.peak:7.2f} GiB, {row.encoding:5.2f} while encoding"
        f" {row.steps_per_second:8.2f} steps/s  {row.notice}",
        flush=True,
    )


if __name__ == "__main__":
    main()
