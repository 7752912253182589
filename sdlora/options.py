"""One definition of an option, five uses: TOML, command line, web form, validation, documentation.

An option tree is a frozen dataclass whose fields are made by `option` (a leaf), `section` (a nested
tree) or `choice` (one of the plug-ins of a registry, each with a tree of its own and its name as the
class variable `kind`). A leaf is addressed by its dotted path, such as `loop.steps`; everything else is a
walk over the leaves.

Leaves are bool, int, float, str or tuple[str, ...].
"""

import dataclasses
import functools
import json
import math
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from sdlora.errors import ConfigError
from sdlora.registry import Registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Level = Literal["basic", "advanced", "hidden"]
Value = bool | int | float | str | tuple[str, ...]
Tree = TypeVar("Tree")


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What is known of an option besides its type and default."""

    help: str
    label: str = ""
    low: float | None = None
    high: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    level: Level = "advanced"
    resumable: bool = False  # may differ when a run is resumed


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One option: its dotted path, Python type, default and meta.

    `when` is (path of a choice, name): the leaf exists only while the choice has that value.
    """

    path: str
    type: type
    default: Value
    meta: Meta
    when: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        """The words for it in a form."""
        return self.meta.label or self.path.rsplit(".", 1)[-1].replace("_", " ").capitalize()


def option(default: Value, help: str, **meta: Any) -> Any:  # Any: a dataclass field stands for its value
    """A dataclass field that is one option; `meta` are the fields of Meta."""
    return dataclasses.field(default=default, metadata={"option": Meta(help=help, **meta)})


def section(tree: type) -> Any:  # Any: as above
    """A dataclass field that nests another option tree with its defaults."""
    return dataclasses.field(default_factory=tree, metadata={"section": tree})


def choice(registry: Registry[type], default: str, help: str, **meta: Any) -> Any:  # Any: as above
    """A dataclass field that holds one plug-in of `registry`; the leaf `<field>.kind` names it."""
    return dataclasses.field(
        default_factory=lambda: registry.get(default)(),
        metadata={"choice": (registry, default, Meta(help=help, **meta))},
    )


def walk(tree: type, prefix: str = "", when: tuple[str, str] | None = None) -> Iterator[Leaf]:
    """All leaves of an option tree in the order of definition, those of every plug-in included."""
    hints = typing.get_type_hints(tree)
    for field in dataclasses.fields(tree):
        path = prefix + field.name
        if "option" in field.metadata:
            kind = typing.get_origin(hints[field.name]) or hints[field.name]
            default = typing.cast(Value, field.default)
            yield Leaf(path=path, type=kind, default=default, meta=field.metadata["option"], when=when)
        elif "section" in field.metadata:
            yield from walk(field.metadata["section"], f"{path}.", when)
        elif "choice" in field.metadata:
            registry, default, meta = field.metadata["choice"]
            names = dataclasses.replace(meta, choices=registry.names())
            yield Leaf(path=f"{path}.kind", type=str, default=default, meta=names, when=when)
            for name, plugin in registry.items():
                yield from walk(plugin, f"{path}.", (f"{path}.kind", name))


def build(tree: type[Tree], values: Mapping[str, object]) -> Tree:
    """The tree with `values` (dotted path -> value or its text) in place of the defaults.

    Raises ConfigError for an unknown path (naming the nearest), a wrong type or a value out of range.
    """
    known = {leaf.path for leaf in walk(tree)}
    for path in values:
        if path not in known:
            raise ConfigError(f'Unknown option "{path}".', _nearest(path, known))
    used: set[str] = set()
    result = _build(tree, values, "", used)
    for path in values:
        if path not in used:
            kinds = ", ".join(
                f"{leaf.when[0]} = {leaf.when[1]}" for leaf in walk(tree) if leaf.path == path and leaf.when
            )
            raise ConfigError(f'Option "{path}" does not apply to what is chosen.', f"It belongs to {kinds}.")
    return result


def applying(tree: type, values: Mapping[str, object], chosen: Mapping[str, object]) -> dict[str, object]:
    """Those of `values` (dotted path -> value) that exist with the plug-ins which `chosen` names."""
    leaves = list(walk(tree))
    kinds = {leaf.path: leaf.default for leaf in leaves if leaf.path.endswith(".kind")} | dict(chosen)
    there = {leaf.path for leaf in leaves if leaf.when is None or kinds[leaf.when[0]] == leaf.when[1]}
    return {path: value for path, value in values.items() if path in there}


def flatten(tree: object) -> dict[str, Value]:
    """Dotted path -> value of every leaf that exists in this instance."""
    flat: dict[str, Value] = {}
    for leaf in walk(type(tree)):
        if leaf.when is None or flat[leaf.when[0]] == leaf.when[1]:
            flat[leaf.path] = _value_at(tree, leaf.path)
    return flat


def coerce(leaf: Leaf, value: object) -> Value:
    """`value` (typed, or text from a command line) as the leaf's type and within its range.

    Raises ConfigError that names the option, the value and what is allowed.
    """
    try:
        result = _convert(leaf.type, value)
    except (KeyError, ValueError, OverflowError):
        raise ConfigError(
            f"{leaf.path} = {value!r} is not {_NOUNS[leaf.type]}.", f"Allowed: {allowed(leaf)}."
        ) from None
    meta = leaf.meta
    if isinstance(result, float) and not math.isfinite(result):
        raise ConfigError(f"{leaf.path} = {value!r} is not a finite number.", f"Allowed: {allowed(leaf)}.")
    too_low = meta.low is not None and isinstance(result, (int, float)) and result < meta.low
    too_high = meta.high is not None and isinstance(result, (int, float)) and result > meta.high
    if too_low or too_high:
        raise ConfigError(f"{leaf.path} = {value} is out of range.", f"Allowed: {allowed(leaf)}.")
    if meta.choices and result not in meta.choices:
        near = get_close_matches(str(result), meta.choices, n=1)
        hint = f'Did you mean "{near[0]}"? ' if near else ""
        raise ConfigError(
            f'{leaf.path} = "{result}" is not among the choices.', f"{hint}Allowed: {allowed(leaf)}."
        )
    return result


def allowed(leaf: Leaf) -> str:
    """What the option takes, in words: its choices, or its type with range and unit."""
    meta = leaf.meta
    if meta.choices:
        return ", ".join(meta.choices)
    parts = [_NOUNS[leaf.type]]
    if meta.low is not None and meta.high is not None:
        parts.append(f"from {_figure(meta.low)} to {_figure(meta.high)}")
    elif meta.low is not None:
        parts.append(f"of at least {_figure(meta.low)}")
    elif meta.high is not None:
        parts.append(f"of at most {_figure(meta.high)}")
    return " ".join(parts) + (f" ({meta.unit})" if meta.unit else "")


def to_toml(tree: object) -> str:
    """The whole tree as TOML, each option under its section with its help as a comment."""
    flat = flatten(tree)
    tables: dict[str, list[str]] = {}
    for leaf in walk(type(tree)):
        if leaf.path in flat and (leaf.when is None or flat[leaf.when[0]] == leaf.when[1]):
            section_name, _, name = leaf.path.rpartition(".")
            tables.setdefault(section_name, []).extend(
                (f"# {leaf.meta.help}", f"{name} = {_toml(flat[leaf.path])}")
            )
    blocks = [
        [f"[{name}]", *lines] if name else lines
        for name, lines in sorted(tables.items(), key=lambda t: t[0] != "")
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def from_toml(text: str, source: str = "the configuration") -> dict[str, object]:
    """Dotted path -> value of a TOML text; feed it to `build`. Raises ConfigError when it is no TOML."""
    try:
        return dict(_dotted(tomllib.loads(text)))
    except ValueError as error:
        raise ConfigError(
            f"{source} is not valid TOML: {error}.",
            "Mend that line, or write a fresh one with `sdlora options --toml`.",
        ) from None


def table(tree: type) -> str:
    """All options as a Markdown table."""
    rows = ["| option | default | allowed | what it does |", "| --- | --- | --- | --- |"]
    for leaf in walk(tree):
        if leaf.meta.level != "hidden":
            only = f" (with `{leaf.when[0]} = {leaf.when[1]}`)" if leaf.when else ""
            rows.append(
                f"| `{leaf.path}` | `{_cell(leaf.default)}` | {allowed(leaf)} | {leaf.meta.help}{only} |"
            )
    return "\n".join(rows) + "\n"


_NOUNS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list of texts",
}


def _build(tree: type[Tree], values: Mapping[str, object], prefix: str, used: set[str]) -> Tree:
    parts: dict[str, object] = {}
    leaves = {leaf.path: leaf for leaf in walk(tree, prefix) if leaf.when is None}
    for field in dataclasses.fields(tree):  # type: ignore[arg-type]  # every option tree is a dataclass
        path = prefix + field.name
        if path in leaves and path in values:
            used.add(path)
            parts[field.name] = coerce(leaves[path], values[path])
        elif "section" in field.metadata:
            parts[field.name] = _build(field.metadata["section"], values, f"{path}.", used)
        elif "choice" in field.metadata:
            registry, default, _ = field.metadata["choice"]
            used.add(f"{path}.kind")
            kind = coerce(leaves[f"{path}.kind"], values.get(f"{path}.kind", default))
            parts[field.name] = _build(registry.get(str(kind)), values, f"{path}.", used)
    return tree(**parts)


def _value_at(tree: object, path: str) -> Value:
    return typing.cast(Value, functools.reduce(getattr, path.split("."), tree))


_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _convert(kind: type, value: object) -> Value:
    """`value` as `kind`. Raises ValueError or KeyError when it is none."""
    if kind is bool:
        return value if isinstance(value, bool) else _WORDS[_text(value).lower()]
    if isinstance(value, bool):
        raise ValueError
    if kind is int:
        number = int(value) if isinstance(value, str) else _number(value)
        if number != int(number):
            raise ValueError
        return int(number)
    if kind is float:
        return float(value) if isinstance(value, str) else float(_number(value))
    if kind is tuple:
        lines = value.splitlines() if isinstance(value, str) else _sequence(value)
        return tuple(text for line in lines if (text := _text(line)).strip())
    return _text(value)


def _figure(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    value.encode()  # a UnicodeEncodeError is a ValueError: bytes of a command line that are no text
    return value


def _number(value: object) -> int | float:
    if not isinstance(value, (int, float)):
        raise ValueError
    return value


def _sequence(value: object) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return value


def _nearest(path: str, known: set[str]) -> str:
    last = path.rsplit(".", 1)[-1]
    same_name = [p for p in sorted(known) if p.rsplit(".", 1)[-1] == last]
    near = same_name or get_close_matches(path, known, n=1, cutoff=0.5)
    return f'Did you mean "{near[0]}"?' if near else "`sdlora options` lists them all."


def _cell(value: Value) -> str:
    """As a Markdown table's cell takes it."""
    return _toml(value).replace("|", "\\|")


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON's escapes are TOML's, but TOML wants U+007F escaped as well
    return (
        json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        if isinstance(value, str)
        else repr(value)
    )


def _dotted(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
