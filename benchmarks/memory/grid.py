"""The points at which memory is measured: a base and what a run of it is told."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run whose memory is measured. `shapes` is how many shapes of pictures there are."""

    base: str
    side: int
    batch: int = 1
    rank: int = 16
    kind: str = "lora"
    targets: str = "attention"
    text: bool = False
    checkpointing: bool = False
    precision: str = "bf16"
    capture: bool = True
    deterministic: bool = True  # finding the fastest kernels takes seconds at every point
    shapes: int = 1

    @property
    def values(self) -> dict[str, object]:
        """The point as options of a run."""
        return {
            "loop.batch_size": self.batch,
            "loop.checkpointing": self.checkpointing,
            "loop.precision": self.precision,
            "loop.capture": self.capture,
            "loop.deterministic": self.deterministic,
            "adapter.kind": self.kind,
            "adapter.targets": self.targets,
            "adapter.text_encoder": self.text,
            "adapter.rank": self.rank,
        }


def grid(base: str) -> Iterator[Point]:
    """The points of a base, those of one number format together."""
    yield from {"builtin": _builtin, "sd1": _sd1, "sdxl": _sdxl}[base]()


def _builtin() -> Iterator[Point]:
    small = Point(base="builtin", side=128)
    yield from (replace(small, batch=batch) for batch in (4, 16))
    yield replace(small, batch=4, text=True)


def _sd1() -> Iterator[Point]:
    small, large = Point(base="sd1", side=512), Point(base="sd1", side=768)
    yield from (replace(small, batch=batch) for batch in (1, 2, 4, 8))
    yield from (replace(large, batch=1), replace(large, batch=4), replace(large, side=1024, batch=2))
    yield from (replace(small, batch=batch, checkpointing=True) for batch in (1, 4, 8))
    yield replace(large, side=1024, batch=2, checkpointing=True)
    yield from _texts(small)
    yield from _adapters(small)
    yield replace(small, batch=4, deterministic=False)
    yield replace(small, batch=4, capture=False)
    yield replace(small, batch=4, shapes=2)
    exact = replace(small, precision="fp32")
    yield from (replace(exact, batch=batch) for batch in (1, 4))
    yield replace(exact, batch=4, checkpointing=True, rank=64)


def _sdxl() -> Iterator[Point]:
    large, small = Point(base="sdxl", side=1024), Point(base="sdxl", side=768)
    yield from (replace(large, batch=batch) for batch in (1, 2, 4))
    yield from (replace(small, batch=4), replace(small, side=512, batch=1))
    yield from (replace(large, batch=batch, checkpointing=True) for batch in (1, 4))
    yield replace(small, batch=2, checkpointing=True)
    yield from _texts(large)
    yield from itertools.islice(_adapters(small), 5)
    yield replace(large, deterministic=False)
    exact = replace(large, precision="fp32")
    yield from (exact, replace(exact, batch=2, checkpointing=True), replace(exact, side=512, batch=4))


def _texts(point: Point) -> Iterator[Point]:
    yield replace(point, batch=2, text=True)
    yield replace(point, batch=4, text=True, checkpointing=True)


def _adapters(point: Point) -> Iterator[Point]:
    yield from (replace(point, rank=rank) for rank in (4, 128))
    yield replace(point, batch=4, rank=64)
    yield replace(point, batch=2, targets="attention+mlp")
    yield replace(point, targets="all+conv", rank=32)
    yield from (replace(point, kind=kind) for kind in ("dora", "loha", "lokr"))
