"""What is shown of one adapter: its card, its line in the library, what was measured of it."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

from sdlora.service.jobs import Job
from sdlora.service.library import Adapter, AdapterInfo
from ui.markup import chips, facts, file_url, note, size
from ui.meter import links

_COMPONENTS = {
    "unet": "the UNet",
    "text_encoder": "the text encoder",
    "text_encoder_2": "the second text encoder",
}


def item(adapter: Adapter, *, folder: str, twins: tuple[str, ...]) -> dict[str, object]:
    """The adapter's line in the library, as JSON; `folder` is where it lies in there."""
    info = adapter.info
    bad = info.problem if info else adapter.error.replace(str(adapter.path), adapter.path.name)
    same = f"The same as {' and '.join(twins)}." if twins else ""
    detail = [_form(info), "made here" if adapter.run else "", folder] if info else [folder]
    return {
        "file": str(adapter.path),
        "name": adapter.name,
        "family": info.family_title if info else "cannot be read",
        "detail": ", ".join(filter(None, detail)),
        "triggers": list(info.triggers) if info else [],
        "picture": file_url(adapter.picture) if adapter.picture else "",
        "bad": shorten(bad or same, 160, placeholder="…"),
    }


def card(
    adapter: Adapter, *, twins: tuple[str, ...], chain: tuple[str, ...], children: tuple[str, ...]
) -> str:
    """All facts of one adapter. It builds on those in `chain`, and the `children` build on it."""
    info = adapter.info
    title = f"<h2>{escape(adapter.name)}</h2>"
    if info is None:
        return title + note(adapter.error, kind="bad")
    picture = f'<img class="cover" src="{file_url(adapter.picture)}" alt="">' if adapter.picture else ""
    notes = f'<p class="told">{escape(adapter.notes)}</p>' if adapter.notes else ""
    triggers = f'<p class="dim">Trigger words</p>{chips(info.triggers)}' if info.triggers else ""
    name = escape(adapter.path.name)
    link = f'<p><a href="{file_url(adapter.path)}" download="{name}">Download {name}</a></p>'
    rows = _facts(adapter, info)
    if chain:
        rows.append(("Builds on", ", ".join(chain)))
    if children:
        rows.append(("Built upon by", ", ".join(children)))
    return picture + title + notes + _warnings(info, twins) + facts(rows) + triggers + link


def applied(reports: Sequence[Mapping[str, Any]]) -> str:
    """What the adapters of a picture did to its base: a line each, and the keys that did nothing."""
    return "".join(map(_applied, reports))


def measured(job: Job) -> str:
    """What a finished measurement found."""
    shown = "".join(
        f'<img class="measure" src="{file_url(path)}" alt="{escape(path.stem)}">'
        for path in job.files
        if path.suffix == ".png"
    )
    return _directions(job.told) + shown + links(job.files)


def made(job: Job) -> str:
    """What a finished job has made."""
    path: Path = job.files[0]
    if job.kind == "bake":
        return note(
            f"{path.name} is among the base models.", kind="good",
            hint=" ".join(["Choose it in the tab Generate.", *job.told["rounding"]]),
        )  # fmt: skip
    ranks, kept = job.told["ranks"], job.told["kept"]
    return note(
        f"{path.name} is in the library.", kind="good",
        hint=f"Rank {_range(tuple(ranks))}, {kept:.1%} of the energy kept.",
    )  # fmt: skip


def _directions(told: Mapping[str, Any]) -> str:
    count, needed = told["directions"], told["needed"]
    if not count:
        return note("Changes of normalisations and biases are one direction each: there is none to spare.")
    if needed is None:
        return note(
            f"What it does is spread over more than {count} directions: the first {count} hold"
            f" {told['held']:.0%} of it.",
            hint="A LoRA could only be close to it.",
        )
    return note(
        f"{told['energy']:.0%} of what it does lies in {needed} of the {count} directions measured.",
        hint="So many ranks are enough for half of its layers.",
    )


def _applied(report: Mapping[str, Any]) -> str:
    changed = [f"{count} layers of {_COMPONENTS.get(part, part)}" for part, count in report["layers"].items()]
    changed += [f"the word {word}" for word in report["words"]]
    name, left = escape(report["name"]), report["unmatched"]
    told = f"<strong>{name}</strong>: {escape(', '.join(changed))}."
    if not left:
        return f'<p class="dim">{told} All {report["matched"]} keys fit.</p>'
    shown = "".join(f"<li><code>{escape(key)}</code></li>" for key in report["examples"])
    more = left - len(report["examples"])
    rest = f"<li>and {more} more</li>" if more else ""
    keys = left + report["matched"]
    return (
        f'<p class="dim">{told}</p><details class="plain"><summary>{left} of its {keys} keys fit nothing in'
        f' this base and were left out</summary><ul class="scroll">{shown}{rest}</ul></details>'
    )


def _warnings(info: AdapterInfo, twins: tuple[str, ...]) -> str:
    told = note(info.problem, kind="bad") if info.problem else ""
    if info.unread:
        count = len(info.unread)
        told += note(f"{count} of its keys are not understood, for example {info.unread[0]}.", kind="warn")
    if twins:
        told += note(
            f"The same weights as {' and '.join(twins)}.", kind="warn", hint="One of them is enough."
        )
    return told


def _facts(adapter: Adapter, info: AdapterInfo) -> list[tuple[str, str]]:
    modules = ", ".join(f"{count} in {_COMPONENTS.get(name, name)}" for name, count in info.modules.items())
    rows = [
        ("Title", info.title if info.title != adapter.name else ""),
        ("Made for", info.family_title),
        ("Kind", " and ".join(info.kinds) or "unknown"),
        ("Rank", _ranks(info).removeprefix("rank ")),
        ("Alpha", _range(info.alphas)),
        ("Layers", modules or "none"),
        ("Size", size(info.bytes)),
        ("Hash", info.hash),
        ("How the base is known", info.evidence),
    ]
    if info.weight:
        rows.append(("Recommended weight", f"{info.weight:g}"))
    rows.append(("Lies in", str(adapter.path.parent)))
    if adapter.run:
        rows.append(
            ("Made by the run", adapter.run if adapter.fixed else f"{adapter.run}, which keeps it too")
        )
    return [(name, value) for name, value in rows if value]


def _form(info: AdapterInfo) -> str:
    """The rank of LoRA, other kinds by name."""
    others = [kind for kind in info.kinds if kind != "lora"]
    return ", ".join([*others, *filter(None, [_ranks(info)])])


def _ranks(info: AdapterInfo) -> str:
    return f"rank {_range(info.ranks)}" if info.ranks else ""


def _range(spread: tuple[float, float] | None) -> str:
    if spread is None:
        return ""
    low, high = spread
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
