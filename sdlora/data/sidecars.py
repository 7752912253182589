"""Captions as files: `image.txt` beside the image, and the `metadata.jsonl` of Hugging Face image folders."""

import json
import unicodedata
from pathlib import Path

from sdlora.data.items import Problem

SUFFIXES = (".txt", ".caption")  # the first that is there is taken
LENGTH_LIMIT = 10_000  # characters; a text encoder reads some hundred
_COLUMNS = ("text", "caption", "prompt")


def beside(image: Path) -> Path:
    """Where the caption of `image` is written."""
    return image.with_suffix(SUFFIXES[0])


def key(path: Path) -> str:
    """A file's path without its suffix, such that names written on any system compare equal."""
    return unicodedata.normalize("NFC", str(path.with_suffix("")))


def read_caption(path: Path) -> tuple[str, list[Problem]]:
    """The caption in `path` on one line, and what was wrong with it.

    UTF-8 and UTF-16 with a byte order mark are known; anything else is read as Latin-1. A line break counts
    as a comma, unless the line ends in a sign of its own.
    """
    try:
        with path.open("rb") as file:
            data = file.read(4 * LENGTH_LIMIT + 1)
    except OSError as error:
        text = f"{path.name} cannot be read: {error.strerror}."
        return "", [Problem(path=path, kind="unreadable", text=text, fatal=True)]
    text, known = decode(data)
    problems = []
    if not known:
        told = f"{path.name} is not UTF-8 and was read as Latin-1; save the caption once to mend it."
        problems.append(Problem(path=path, kind="encoding", text=told))
    caption = one_line(text)
    if len(caption) > LENGTH_LIMIT:
        told = f"{path.name} is longer than {LENGTH_LIMIT} characters; the rest is not used."
        problems.append(Problem(path=path, kind="long_caption", text=told))
    return caption[:LENGTH_LIMIT], problems


def decode(data: bytes) -> tuple[str, bool]:
    """The text in `data`, and whether its encoding was certain."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace"), True
    try:
        return data.decode("utf-8-sig"), True
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and len(data) > 4 * LENGTH_LIMIT:  # cut by the limit
            return data[: error.start].decode("utf-8-sig"), True
    try:
        return data.decode("cp1252"), False  # what Windows means by Latin-1
    except UnicodeDecodeError:
        return data.decode("latin-1"), False


def one_line(text: str) -> str:
    """`text` without line breaks, control characters and runs of spaces."""
    caption = ""
    for line in text.splitlines():
        line = " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in line).split())
        joint = "" if not caption or not line else " " if caption[-1] in ",.;:!?" else ", "
        caption += joint + line
    return caption


def read_metadata(path: Path) -> tuple[dict[str, tuple[Path, str]], list[Problem]]:
    """key(image) -> (image, caption) of a metadata.jsonl, and a problem for every unusable line."""
    found: dict[str, tuple[Path, str]] = {}
    problems: list[Problem] = []
    try:
        lines = decode(path.read_bytes())[0].splitlines()
    except OSError as error:
        text = f"{path.name} cannot be read: {error.strerror}."
        return {}, [Problem(path=path, kind="metadata", text=text, fatal=True)]
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                image, caption = _metadata_line(line)
                found[key(path.parent / image)] = (path.parent / image, caption)
            except ValueError as error:
                text = f"Line {number} of {path.name} is not used: {error}."
                problems.append(Problem(path=path, kind="metadata", text=text))
    return found, problems


def _metadata_line(line: str) -> tuple[str, str]:
    """(file_name, caption) of one line. Raises ValueError that says what is missing."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError('it has no "file_name"')
    for column in _COLUMNS:
        if isinstance(row.get(column), str):
            return row["file_name"], one_line(row[column])[:LENGTH_LIMIT]
    raise ValueError('it has neither "text", "caption" nor "prompt"')
