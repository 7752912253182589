"""The rows of adapters that a mix is made of: what the stack widget shows, and what it means."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdlora.service.studio import Entry, Studio

Row = dict[str, Any]  # Any: the widget's JSON
Value = dict[str, Any]  # Any: as above

EMPTY: Value = {"rows": []}


def add(studio: Studio, value: Value, file: str, *, base: str) -> Value:
    """The stack with one more row, at the weight that the adapter's author recommends."""
    adapter = studio.library.adapter(Path(file))
    weight = adapter.info.weight if adapter.info and adapter.info.weight else 1.0
    row = _row(studio, Entry(adapter.path, weight), base=base)
    known = any(other["file"] == row["file"] for other in value["rows"])
    return value if known else {"rows": [*value["rows"], row]}


def show(studio: Studio, entries: Iterable[Entry], *, base: str) -> Value:
    """The stack that shows `entries`."""
    return {"rows": [_row(studio, entry, base=base) for entry in entries]}


def noted(studio: Studio, value: Value, *, base: str) -> Value:
    """The same rows, each saying whether it fits `base`."""
    return {"rows": [{**row, "note": studio.mismatch(base, Path(row["file"]))} for row in value["rows"]]}


def entries(value: Value) -> tuple[Entry, ...]:
    """The rows that are switched on."""
    rows: Sequence[Row] = value["rows"]
    return tuple(
        Entry(
            Path(row["file"]),
            float(row["weight"]),
            None if row["text_weight"] is None else float(row["text_weight"]),
        )
        for row in rows
        if row["on"]
    )


def choices(studio: Studio) -> list[tuple[str, str]]:
    """The adapters there are, to choose from: (name, file)."""
    return [
        (
            f"{adapter.name}  ({adapter.run})"
            if adapter.run and adapter.run != adapter.name
            else adapter.name,
            str(adapter.path),
        )
        for adapter in studio.library.adapters()
        if adapter.info is not None
    ]


def _row(studio: Studio, entry: Entry, *, base: str) -> Row:
    adapter = studio.library.adapter(entry.file)
    info = adapter.info
    return {
        "file": str(adapter.path),
        "name": _name(adapter.path),
        "title": str(adapter.path),
        "on": True,
        "weight": entry.weight,
        "text_weight": entry.text_weight,
        "triggers": list(info.triggers) if info else [],
        "note": studio.mismatch(base, adapter.path),
    }


def _name(path: Path) -> str:
    """The file's name; a checkpoint is told by its run and step."""
    if path.parent.name.startswith("step-"):
        return f"{path.parents[2].name} @ {int(path.parent.name.removeprefix('step-'))}"
    return path.stem
