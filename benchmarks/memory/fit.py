"""`python -m benchmarks.memory.fit [FILE]`: the constants of `sdlora.training.memory`, from measured points.

Every third point is left out of the fit and tells how well it predicts. Prints the constants and the errors.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.memory.grid import Point
from sdlora import options
from sdlora.base.original import LAYOUTS, ShippedRest
from sdlora.config import TrainConfig
from sdlora.loading import ModelInfo, describe
from sdlora.training.memory import Counted, Setting, count

MEASURED = Path(__file__).with_name("h200.json")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Sample(NamedTuple):
    """A measured point: what was counted, and the bytes that its steps took besides what was there before."""

    point: Point
    counted: Counted
    taken: int

    @property
    def fixed(self) -> int:
        """Bytes that are there before the first step."""
        return self.counted.held + self.counted.learned

    def error(self, kept: float, inside: float, workspace: float) -> float:
        """By how much the constants miss the peak, as a part of it."""
        taken = workspace + kept * self.counted.kept + inside * self.counted.inside
        return (taken - self.taken) / (self.fixed + self.taken)


class TrueSize(ShippedRest):
    """Files of a family at full size, of which there are configurations alone."""

    path, weights = Path("true size"), ()

    @property
    def components(self) -> frozenset[str]:
        return frozenset(LAYOUTS[self.family])

    def config(self, component: str) -> Mapping[str, Any]:
        return {"in_channels": 4, **super().config(component)}


@cache
def base(name: str) -> ModelInfo:
    """What is known of a base of the benchmark."""
    if name == "builtin":
        return describe(name)
    told = {"name": name, "family": name, "title": name, "path": Path(name), "bytes": 0}
    return ModelInfo(**told, prediction="epsilon", zero_terminal=False, native_size=512, files=TrueSize(name))


def setting(point: Point) -> Setting:
    """The point as the model of the memory sees it."""
    config = options.build(TrainConfig, point.values)
    return Setting(
        adapter=config.adapter,
        objective=config.objective,
        dtype=DTYPES[point.precision],
        side=point.side,
        batch=point.batch,
        checkpointing=point.checkpointing,
        fused=True,
    )


def points(file: Path = MEASURED) -> list[tuple[Point, int]]:
    """What was measured: points, and the bytes their steps took besides what was there; one shape only."""
    names = {field.name for field in fields(Point)}
    rows = [row for row in json.loads(file.read_text())["train"] if "peak" in row]
    found = [
        (Point(**{k: v for k, v in row.items() if k in names}), row["peak"] - row["held"]) for row in rows
    ]
    return [(point, taken) for point, taken in found if point.shapes == 1]


def held_out(found: list[Any]) -> list[Any]:
    """Every third of them."""
    return found[2::3]


def samples(measured: list[tuple[Point, int]]) -> Iterator[Sample]:
    """The points with what is counted of them."""
    for point, taken in measured:
        yield Sample(point, count(base(point.base), setting(point)), taken)


def fitted(samples: list[Sample]) -> tuple[float, float, float]:
    """KEPT, INSIDE and WORKSPACE: least squares of the relative error."""
    rows = np.array([[one.counted.kept, one.counted.inside, 1e9] for one in samples])
    weight = 1 / np.array([one.fixed + one.taken for one in samples], dtype=float)
    taken = np.array([one.taken for one in samples])
    kept, inside, workspace = np.linalg.lstsq(rows * weight[:, None], taken * weight, rcond=None)[0]
    return float(kept), float(inside), float(workspace * 1e9)


def pixels(file: Path, part: str) -> float:
    """Bytes a pixel that encoding or drawing needs in 16 bit: the most of all sizes."""
    rows = [row for row in json.loads(file.read_text())[part] if row["side"] >= 512]
    return max((row["peak"] - row["held"]) / row["side"] ** 2 for row in rows if row["precision"] == "bf16")


def main() -> None:
    """Fits the file named on the command line, or the one that lies here."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else MEASURED
    found = list(samples(points(file)))
    apart = held_out(found)
    kept, inside, workspace = fitted([one for one in found if one not in apart])
    for one in found:
        title = f"{'held out' if one in apart else '':<9}{(one.fixed + one.taken) / 1e9:7.2f} GB"
        print(f"{title} {one.error(kept, inside, workspace):+7.1%}  {one.point}")
    print(f"KEPT = {kept:.3f}\nINSIDE = {inside:.3f}\nWORKSPACE = {workspace:.3e}")
    print(f"PIXEL_ENCODED = {pixels(file, 'encode'):.0f}\nPIXEL_DECODED = {pixels(file, 'draw'):.0f}")


if __name__ == "__main__":
    main()
