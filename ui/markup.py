"""Small pieces of HTML. Every text that goes in is escaped here, so no caller has to remember."""

from collections.abc import Iterable
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

from sdlora.errors import SdloraError
from ui.wording import in_labels

Cell = str | int | float


def file_url(path: Path) -> str:
    """Where the browser finds a file that lies in one of the folders which the page may serve."""
    changed = path.stat().st_mtime_ns if path.exists() else 0
    return f"gradio_api/file={quote(path.resolve().as_posix())}?v={changed}"


def note(text: str, *, kind: str = "info", hint: str = "") -> str:
    """A framed message, options in it by their labels; `kind` is info, good, warn or bad."""
    role = ' role="alert"' if kind == "bad" else ""
    more = f" <span>{escape(in_labels(hint))}</span>" if hint else ""
    return f'<div class="note {kind}"{role}><strong>{escape(in_labels(text))}</strong>{more}</div>'


def failure(error: SdloraError) -> str:
    """An error in words: what is wrong, then what to do."""
    return note(error.message, kind="bad", hint=error.hint)


def facts(rows: Iterable[tuple[str, Cell]]) -> str:
    """Names and values, as a definition list."""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in rows
    )
    return f'<dl class="facts">{cells}</dl>'


def empty(title: str, text: str) -> str:
    """What a screen says while there is nothing to show: what belongs here, and how it gets here."""
    return f'<div class="empty"><p class="title">{escape(title)}</p><p>{escape(text)}</p></div>'


def progress(words: str, *, done: int, total: int) -> str:
    """A bar, and below it what is going on."""
    percent = 100 * done / total if total else 0
    return (
        f'<div class="bar" role="progressbar" aria-label="{escape(words)}" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{percent:.0f}"><span style="width:{percent:.1f}%"></span></div>'
        f'<p class="dim">{escape(words)}</p>'
    )


def code(text: str, *, name: str) -> str:
    """A text as it lies in a file, to read, copy or take along as the file `name`."""
    link = f"data:text/plain;charset=utf-8,{quote(text)}"
    return (
        f'<pre class="code" tabindex="0" aria-label="{escape(name)}">{escape(text)}</pre>'
        f'<p><a href="{link}" download="{escape(name)}">Download {escape(name)}</a></p>'
    )


def chips(words: Iterable[str]) -> str:
    """Words in small frames, side by side."""
    return '<span class="chips">' + "".join(f"<span>{escape(word)}</span>" for word in words) + "</span>"


def size(count: int) -> str:
    """Bytes as a person says them: "2.4 MB"."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "about 1 min", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole < 600 and whole % 60 else "")
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def when(moment: float) -> str:
    """A time of day today, else a date."""
    then = datetime.fromtimestamp(moment)
    return f"{then:%H:%M}" if then.date() == datetime.now().date() else f"{then:%Y-%m-%d %H:%M}"
