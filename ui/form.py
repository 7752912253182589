"""An option tree as components, and back. The only place that knows which widget a type gets.

Every leaf of the tree that is not hidden has one component, called by the leaf's key: its dotted path, and
where several plug-ins have a leaf of that path the plug-in's name as well (`optimizer.lr[adamw]`).
Handlers take the keys as keyword arguments, so none of them lists options.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import gradio as gr

from sdlora.errors import ConfigError
from sdlora.options import Leaf, Level, allowed, build, coerce, flatten, walk
from ui.wording import label_of

Tree = TypeVar("Tree")
Choices = Sequence[tuple[str, str]]
Verdict = dict[str, Any]  # Any: gradio's answer of a validator
Component = Any  # Any: gradio's components share no useful base type for `value=` and events


class Form(Generic[Tree]):
    """The components of the option tree `tree`.

    `sources` gives a text leaf the values that exist on this machine (label, value), to choose from; `lines`
    gives one the height of its field.
    """

    def __init__(
        self,
        tree: type[Tree],
        *,
        sources: Mapping[str, Choices] | None = None,
        lines: Mapping[str, int] | None = None,
    ) -> None:
        self.tree = tree
        self.sources = sources or {}
        self.lines = lines or {}
        leaves = [leaf for leaf in walk(tree) if leaf.meta.level != "hidden"]
        counts = Counter(leaf.path for leaf in leaves)
        self.leaves = {_key(leaf, counts[leaf.path]): leaf for leaf in leaves}
        self.components: dict[str, Component] = {}
        self._defaults = {leaf.path: leaf.default for leaf in leaves if leaf.path.endswith(".kind")}

    def draw(self, *prefixes: str, level: Level | None = None) -> None:
        """The leaves under `prefixes` (all when none) have their components here, in the prefixes' order."""
        for prefix in prefixes or ("",):
            for key in self.waiting(prefix, level=level):
                self.components[key] = self._component(key, self.leaves[key])

    def waiting(self, prefix: str = "", *, level: Level | None = None) -> list[str]:
        """The keys under `prefix` that are not drawn yet."""
        return [
            key
            for key, leaf in self.leaves.items()
            if key not in self.components
            and (leaf.path == prefix or not prefix or leaf.path.startswith(f"{prefix}."))
            and level in (None, leaf.meta.level)
        ]

    def sections(self) -> dict[str, list[str]]:
        """Top-level section -> its keys that are not drawn yet."""
        found: dict[str, list[str]] = {}
        for key in self.waiting():
            found.setdefault(key.split(".")[0], []).append(key)
        return found

    def connect(self) -> None:
        """What belongs to a plug-in is seen only while that plug-in is chosen."""
        for key, leaf in self.leaves.items():
            dependants = [k for k, other in self.leaves.items() if other.when and other.when[0] == leaf.path]
            if dependants and len(leaf.meta.choices) > 1:
                targets = [self.components[k] for k in dependants]
                names = [other.when[1] for k in dependants if (other := self.leaves[k]).when]
                self.components[key].change(
                    _visibility(names),
                    self.components[key],
                    targets,
                    show_progress="hidden",
                    api_visibility="private",
                )

    def values(self, raw: Mapping[str, object]) -> dict[str, object]:
        """Dotted path -> what the components say, without what belongs to plug-ins that are not chosen."""
        return {leaf.path: raw[key] for key, leaf in self._applying(raw)}

    def config(self, raw: Mapping[str, object]) -> Tree:
        """The option tree that the components say. Raises ConfigError that names the option."""
        return build(self.tree, self.values(raw))

    def check(self, **raw: object) -> list[Verdict]:
        """For each component in order whether its value will do, and the sentence to show at it."""
        applying = dict(self._applying(raw))
        return [_verdict(self.leaves[key], raw[key]) if key in applying else VALID for key in self.components]

    def sound(self, raw: Mapping[str, object]) -> dict[str, object]:
        """The part of what a browser has kept (key -> value) that the components may still hold."""
        held = {key: raw[key] for key in self.components if key in raw}
        verdicts = zip(self.components, self.check(**held), strict=True)
        return {key: held[key] for key, verdict in verdicts if key in held and verdict["is_valid"]}

    def show(self, values: Mapping[str, object]) -> dict[Component, Any]:  # Any: gradio's updates
        """What each component must be told in order to show `values` (dotted path -> value)."""
        kinds = {**self._defaults, **{p: v for p, v in values.items() if p.endswith(".kind")}}
        return {
            self.components[key]: gr.update(value=_shown(values[leaf.path]))
            for key, leaf in self.leaves.items()
            if leaf.path in values and (leaf.when is None or kinds[leaf.when[0]] == leaf.when[1])
        }

    def show_config(self, config: Tree) -> dict[Component, Any]:  # Any: as above
        """What each component must be told in order to show the whole `config`."""
        return self.show(flatten(config))

    def _applying(self, raw: Mapping[str, object]) -> Iterator[tuple[str, Leaf]]:
        for key, leaf in self.leaves.items():
            chosen = (
                leaf.when is None or raw.get(leaf.when[0], self._defaults.get(leaf.when[0])) == leaf.when[1]
            )
            if key in raw and chosen:
                yield key, leaf

    def _component(self, key: str, leaf: Leaf) -> Component:
        visible = leaf.when is None or self._defaults[leaf.when[0]] == leaf.when[1]
        common: dict[str, Any] = {  # Any: gradio's keyword arguments
            "label": label_of(leaf), "info": _info(leaf), "elem_id": f"opt-{key}", "interactive": True,
            "visible": visible and len(leaf.meta.choices) != 1,
        }  # fmt: skip
        value: Any = _shown(leaf.default)  # Any: each component takes its own type
        if key in self.sources:
            return gr.Dropdown(
                _with(self.sources[key], value), value=value, allow_custom_value=True, **common
            )
        if key in self.lines:
            return gr.Textbox(value, lines=self.lines[key], **common)
        if leaf.meta.choices:
            widget = gr.Radio if len(leaf.meta.choices) <= 4 else gr.Dropdown
            return widget([(_words(name), name) for name in leaf.meta.choices], value=value, **common)
        return _WIDGETS[leaf.type](value, common)


VALID: Verdict = gr.validate(True, "")
# No minimum, maximum or precision at the numbers: Gradio would round or refuse in words of its own.
_WIDGETS: dict[type, Callable[[Any, dict[str, Any]], Component]] = {  # Any: gradio's keyword arguments
    bool: lambda value, common: gr.Checkbox(value, **common),
    int: lambda value, common: gr.Number(value, **common),
    float: lambda value, common: gr.Number(value, step=_step(value), **common),
    str: lambda value, common: gr.Textbox(value, **common),
    tuple: lambda value, common: gr.Textbox(value, lines=3, elem_classes="wide", **common),
}


def _step(value: float) -> float:
    """What an arrow key adds: one of the number's first digit, so that a rate stays one."""
    return 10.0 ** math.floor(math.log10(abs(value))) if value else 0.1


def _key(leaf: Leaf, count: int) -> str:
    return f"{leaf.path}[{leaf.when[1]}]" if count > 1 and leaf.when else leaf.path


def _shown(value: object) -> object:
    return "\n".join(value) if isinstance(value, tuple) else value


def _with(choices: Choices, value: object) -> list[tuple[str, str]]:
    text = str(value)
    known = any(text == each for _, each in choices)
    return [*choices] if known or not text else [*choices, (text, text)]


def _words(name: str) -> str:
    return name.replace("_", " ") if name.islower() and name.isascii() and "_" in name else name


def _info(leaf: Leaf) -> str:
    """The help, with the unit where the help does not name it. What is allowed is told when it is missed."""
    text, unit = leaf.meta.help.replace("`", "").rstrip("."), leaf.meta.unit
    return f"{text}." if not unit or unit.split()[0].rstrip("s") in text.lower() else f"{text}, in {unit}."


def _verdict(leaf: Leaf, value: object) -> Verdict:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _invalid(f"Give {allowed(leaf)}.")
    try:
        coerce(leaf, value)
    except ConfigError as error:
        return _invalid(error.hint)
    return VALID


def _invalid(words: str) -> Verdict:
    verdict: Verdict = gr.validate(False, words)
    return verdict


def _visibility(names: Sequence[str]) -> Callable[[str], Any]:  # Any: gradio's updates
    def update(chosen: str) -> Any:  # Any: as above
        updates = [gr.update(visible=name == chosen) for name in names]
        return updates if len(updates) > 1 else updates[0]

    return update
