"""One definition of an option gives TOML, flags, form, validation and documentation."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sdlora.errors import ConfigError
from sdlora.options import (
    allowed,
    build,
    choice,
    coerce,
    flatten,
    from_toml,
    option,
    section,
    table,
    to_toml,
    walk,
)
from sdlora.registry import Registry

SHAPES: Registry[type] = Registry("sdlora.objectives", "shape")
SHAPES._loaded = True  # nothing to import: the shapes stand below


@SHAPES.register("disc")
@dataclass(frozen=True, kw_only=True)
class Disc:
    kind: ClassVar[str] = "disc"
    radius: float = option(1.5, "How far it reaches", low=0, unit="pixels")


@SHAPES.register("square")
@dataclass(frozen=True, kw_only=True)
class Square:
    kind: ClassVar[str] = "square"
    side: int = option(4, "How wide it is", low=1, high=9)


@dataclass(frozen=True, kw_only=True)
class Ink:
    colour: str = option("blue", "What it is drawn with", choices=("blue", "red"))
    words: tuple[str, ...] = option((), "What is written beside it")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    title: str = option("", "Its name")
    filled: bool = option(False, "Whether the inside is coloured")
    shape: Any = choice(SHAPES, "disc", "What is drawn")
    ink: Ink = section(Ink)


def test_defaults_are_what_an_empty_build_gives() -> None:
    assert build(Drawing, {}) == Drawing()


def test_walk_names_every_leaf_of_every_plugin_once() -> None:
    paths = [leaf.path for leaf in walk(Drawing)]
    assert paths == ["title", "filled", "shape.kind", "shape.radius", "shape.side", "ink.colour", "ink.words"]


def test_toml_round_trip_of_random_trees() -> None:
    rng = random.Random(7)
    letters = ['"', "\\", "\n", "\t", "é", "\x7f", "\x00", "#", "]", "a"]
    for _ in range(200):
        text = "".join(rng.choices(letters, k=rng.randrange(8)))
        shape = rng.choice(
            [
                {"shape.kind": "square", "shape.side": rng.randrange(1, 10)},
                {"shape.radius": rng.random() * 10.0 ** rng.randrange(-9, 9)},
            ]
        )
        words = tuple(w for w in ("one", "two three", text.replace("\n", "")) if w.strip())
        tree = build(Drawing, {"title": text, "filled": rng.random() < 0.5, "ink.words": words, **shape})
        assert build(Drawing, from_toml(to_toml(tree))) == tree


def test_texts_of_a_command_line_become_typed_values() -> None:
    tree = build(
        Drawing, {"filled": "yes", "shape.kind": "square", "shape.side": "3", "ink.words": "one\ntwo\n"}
    )
    assert flatten(tree) == {
        "title": "",
        "filled": True,
        "shape.kind": "square",
        "shape.side": 3,
        "ink.colour": "blue",
        "ink.words": ("one", "two"),
    }


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"ink.color": "red"}, 'Unknown option "ink.color"', 'Did you mean "ink.colour"?'),
        ({"side": 3}, 'Unknown option "side"', 'Did you mean "shape.side"?'),
        ({"shape.side": 3}, 'Option "shape.side" does not apply', "shape.kind = square"),
        ({"shape.radius": -1}, "shape.radius = -1 is out of range", "at least 0 (pixels)"),
        ({"shape.radius": "wide"}, "shape.radius = 'wide' is not a number", "a number of at least 0"),
        ({"shape.radius": "nan"}, "is not a finite number", "at least 0"),
        ({"shape.kind": "square", "shape.side": 2.5}, "is not a whole number", "from 1 to 9"),
        ({"shape.kind": "square", "shape.side": True}, "is not a whole number", "from 1 to 9"),
        ({"filled": "perhaps"}, "filled = 'perhaps' is not true or false", "true or false"),
        ({"ink.colour": "bleu"}, 'ink.colour = "bleu" is not among the choices', 'Did you mean "blue"?'),
        ({"title": 3}, "title = 3 is not text", "text"),
        ({"ink.words": 3}, "ink.words = 3 is not a list of texts", "list"),
    ],
)
def test_a_wrong_value_names_option_value_and_what_is_allowed(
    values: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Drawing, values)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_broken_toml_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="my.toml is not valid TOML"):
        from_toml("steps = = 3", "my.toml")


def test_every_default_passes_its_own_check() -> None:
    from sdlora.config import TrainConfig

    for leaf in walk(TrainConfig):
        assert coerce(leaf, leaf.default) == leaf.default, leaf.path


def test_every_option_of_a_run_has_help_and_stands_in_the_table() -> None:
    from sdlora.config import TrainConfig

    text = table(TrainConfig)
    for leaf in walk(TrainConfig):
        assert len(leaf.meta.help) > 10, leaf.path
        assert f"| `{leaf.path}` |" in text
        assert allowed(leaf) in text


def test_a_run_configuration_survives_toml() -> None:
    from sdlora.config import TrainConfig

    tree = build(
        TrainConfig, {"loop.steps": 7, "data.captions.trigger": 'a "b"', "preview.prompts": ["x", "y"]}
    )
    assert build(TrainConfig, from_toml(to_toml(tree))) == tree
