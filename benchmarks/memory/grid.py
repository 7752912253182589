"""The points at which memory is measured: a base and what a run of it is told."""

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
    shapes: int = 1

    @property
    def values(self) -> dict[str, object]:
        """The point as options of a run."""
        return {
            "loop.batch_size": self.batch,
            "loop.checkpointing": self.checkpointing,
            "loop.precision": self.precision,
            "loop.capture": self.capture,
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
    for batch in (1, 4, 16):
        yield replace(small, batch=batch)
    yield replace(small, batch=4, text=True)
    yield replace(small, batch=4, side=256)


def _sd1() -> Iterator[Point]:
    small, large = Point(base="sd1", side=512), Point(base="sd1", side=768)
    for batch in (1, 2, 4, 8):
        yield replace(small, batch=batch)
    for batch in (1, 2, 4):
        yield replace(large, batch=batch)
    for batch in (1, 2):
        yield replace(large, side=1024, batch=batch)
    for batch in (1, 4, 8):
        yield replace(small, batch=batch, checkpointing=True)
    yield replace(large, batch=2, checkpointing=True)
    yield replace(large, side=1024, batch=4, checkpointing=True)
    yield from _texts(small, large)
    yield from _adapters(small)
    yield replace(small, batch=4, shapes=2)
    for batch in (1, 4):
        yield replace(small, batch=batch, capture=False)
    exact = replace(small, precision="fp32")
    yield from (replace(exact, batch=batch) for batch in (1, 2, 4))
    yield replace(exact, side=768)
    yield replace(exact, batch=4, checkpointing=True)
    yield replace(exact, batch=2, text=True, rank=64)


def _sdxl() -> Iterator[Point]:
    large = Point(base="sdxl", side=1024)
    for batch in (1, 2, 4):
        yield replace(large, batch=batch)
    yield from (replace(large, side=512, batch=batch) for batch in (1, 4))
    yield from (replace(large, side=768, batch=batch) for batch in (2, 4))
    for batch in (1, 2, 4):
        yield replace(large, batch=batch, checkpointing=True)
    yield replace(large, side=768, batch=4, checkpointing=True)
    yield from _texts(large, replace(large, side=768))
    yield from _adapters(replace(large, side=768))
    yield replace(large, capture=False)
    exact = replace(large, precision="fp32")
    yield exact
    yield replace(exact, side=768, batch=2)
    yield replace(exact, checkpointing=True)
    yield replace(exact, side=512, batch=4, text=True)


def _texts(small: Point, large: Point) -> Iterator[Point]:
    for batch in (1, 4):
        yield replace(small, batch=batch, text=True)
    yield replace(large, batch=2, text=True)
    yield replace(small, batch=4, text=True, checkpointing=True)


def _adapters(point: Point) -> Iterator[Point]:
    for rank in (4, 64, 128):
        yield replace(point, rank=rank)
    yield replace(point, batch=4, rank=128)
    yield replace(point, batch=2, targets="attention+mlp")
    yield replace(point, batch=2, targets="all+conv", rank=32)
    for kind in ("dora", "loha", "lokr"):
        yield replace(point, batch=2, kind=kind)
