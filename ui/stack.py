"""The rows of adapters that a mix is made of: what the stack widget shows, and what it means.

A row holds what a request's JSON says of an entry, the words for how its weight varies included, and what the
widget shows beside it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdlora.errors import SdloraError
from sdlora.generation.request import entry_tag, weights_told
from sdlora.service import mix
from sdlora.service.studio import Entry, Studio
from ui.widget import widget

Row = dict[str, Any]  # Any: the widget's JSON
Value = dict[str, Any]  # Any: as above


def draw(*, varies: bool, elem_id: str) -> Any:  # Any: a gradio component
    """The component, without rows. `varies`: whether weights may change over steps and places."""
    return widget("stack", empty(varies=varies), parts=("varying",), elem_id=elem_id)


def empty(*, varies: bool) -> Value:
    """A stack without rows."""
    return {"varies": varies, "arrangements": list(mix.ARRANGEMENTS.items()), "rows": []}


def add(studio: Studio, value: Value, file: str, *, base: str) -> Value:
    """The stack with the adapter and those it builds on, at the weights that their authors recommend."""
    known = {row["file"] for row in value["rows"]}
    chain = [studio.library.adapter(path) for path in studio.library.lineage(Path(file))]
    entries = [
        Entry(each.path, each.info.weight if each.info and each.info.weight else 1.0)
        for each in chain
        if str(each.path) not in known
    ]
    return _with(value, [*value["rows"], *_rows(studio, entries, base=base)])


def show(studio: Studio, value: Value, entries: Iterable[Entry], *, base: str) -> Value:
    """The stack that shows `entries`."""
    return _with(value, _rows(studio, entries, base=base))


def resumed(studio: Studio, kept: object, *, base: str) -> Value:
    """The stack that a browser has kept, without the rows whose adapters are gone."""
    value = empty(varies=True)
    for row in kept.get("rows", []) if isinstance(kept, dict) else []:
        try:
            told = entry_tag(row, name="file")
            file = studio.library.adapter(Path(told.name)).path
            shown = _row(studio, told.entry(file), base=base)
        except (SdloraError, OSError):
            continue
        value["rows"].append({**shown, "on": row.get("on") is not False})
    return value


def noted(studio: Studio, value: Value, *, base: str) -> Value:
    """The same rows, each saying whether it fits `base`."""
    rows = [{**row, "note": _note(studio, Path(row["file"]), base=base)} for row in value["rows"]]
    return _with(value, rows)


def arranged(value: Value, name: str) -> Value:
    """The rows that are switched on vary as the arrangement `name` says."""
    told = iter([weights_told(entry) for entry in mix.arranged(entries(value), name)])
    return _with(value, [{**row, "change": {}, **next(told)} if row["on"] else row for row in value["rows"]])


def masked(studio: Studio, value: Value, *, row: int, mask: Path) -> Value:
    """The row counts where the picture `mask` is white."""
    rows: list[Row] = list(value["rows"])
    words = {word: text for word, text in rows[row]["change"].items() if word not in ("box", "mask")}
    rows[row] = {**rows[row], "change": {**words, "mask": str(studio.masks.add(mask))}}
    return _with(value, rows)


def fixed(value: Value) -> Value:
    """The same rows with nothing that varies while sampling, as a file can carry them."""
    rows = [
        {**row, "change": {word: text for word, text in row["change"].items() if word == "lbw"}}
        for row in value["rows"]
    ]
    return {**empty(varies=False), "rows": rows}


def balanced(value: Value, weights: Sequence[tuple[float, float | None]]) -> Value:
    """The rows that are switched on have these weights, and these in the text encoder."""
    told = iter(weights)
    rows = [
        {**row, **dict(zip(("weight", "text_weight"), next(told), strict=True))} if row["on"] else row
        for row in value["rows"]
    ]
    return _with(value, rows)


def entries(value: Value) -> tuple[Entry, ...]:
    """The rows that are switched on. Raises ConfigError when one says what cannot be."""
    return tuple(entry_tag(row, name="file").entry(Path(row["file"])) for row in value["rows"] if row["on"])


def choices(studio: Studio) -> list[tuple[str, str]]:
    """The adapters that can be used, to choose from: (name, file)."""
    return [
        (f"{each.name}  (run {each.run})" if each.fixed else each.name, str(each.path))
        for each in studio.library.adapters()
        if each.info is not None and not each.info.problem
    ]


def _with(value: Value, rows: list[Row]) -> Value:
    return {**value, "rows": rows}


def _rows(studio: Studio, entries: Iterable[Entry], *, base: str) -> list[Row]:
    return [_row(studio, entry, base=base) for entry in entries]


def _row(studio: Studio, entry: Entry, *, base: str) -> Row:
    adapter = studio.library.adapter(entry.file)
    info = adapter.info
    chain = studio.library.lineage(adapter.path)
    return {
        "file": str(adapter.path),
        "name": _name(adapter.path),
        "title": str(adapter.path),
        "on": True,
        "change": {},
        **weights_told(entry),
        "blocks": mix.blocks(info.family) if info else {},
        "triggers": list(info.triggers) if info else [],
        "recommended": info.weight if info else None,
        "parent": _name(chain[-2]) if len(chain) > 1 else "",
        "note": _note(studio, adapter.path, base=base),
    }


def _note(studio: Studio, file: Path, *, base: str) -> str:
    """What is wrong with the adapter here: it does not fit `base`, or its values are broken."""
    info = studio.library.adapter(file).info
    return studio.mismatch(base, file) or (info.problem if info else "")


def _name(path: Path) -> str:
    """The file's name; a checkpoint is told by its run and step."""
    if path.parent.name.startswith("step-"):
        return f"{path.parents[2].name} @ {int(path.parent.name.removeprefix('step-'))}"
    return path.stem
