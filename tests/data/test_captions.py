from pathlib import Path

import pytest

from sdlora.config import CaptionSpec
from sdlora.data.captions import (
    all_captions,
    caption_at,
    has_trigger,
    usual,
    varies,
    with_trigger,
    without_trigger,
)
from sdlora.data.items import Item


def item(caption: str, name: str = "a.png") -> Item:
    return Item(path=Path(name), name=name, caption=caption, width=64, height=64, repeats=1, sha256="")


def many(spec: CaptionSpec, caption: str = "one, two, three, four, five", count: int = 400) -> list[str]:
    return [caption_at(item(caption), spec, seed=1, step_key=str(step)) for step in range(count)]


def test_a_caption_is_a_function_of_seed_image_and_step() -> None:
    spec = CaptionSpec(shuffle=True, tag_dropout=0.3, dropout=0.2)
    assert many(spec) == many(spec)
    other = [caption_at(item("one, two, three"), spec, seed=2, step_key=str(step)) for step in range(50)]
    assert other != [
        caption_at(item("one, two, three", "b.png"), spec, seed=2, step_key=str(s)) for s in range(50)
    ]


def test_a_caption_that_does_not_vary_is_left_as_it_was_typed() -> None:
    assert set(many(CaptionSpec(dropout=0), "one,two ,  three")) == {"one,two ,  three"}


def test_of_alternatives_each_comes_up_as_often() -> None:
    captions = many(CaptionSpec(dropout=0), "{a photo of|a drawing of |} a {red|blue} cat, {|wet}")
    starts = ("a photo of a", "a drawing of a", "a")
    assert set(captions) == {
        f"{s} {c} cat{e}" for s in starts for c in ("red", "blue") for e in ("", ", wet")
    }
    assert all(20 < captions.count(caption) < 50 for caption in set(captions))  # 400 / 12


@pytest.mark.parametrize("caption", ["a {cat", "a {cat} here", "one | two", "a } {", "{}", ":{"])
def test_braces_without_a_bar_between_them_stand_for_themselves(caption: str) -> None:
    assert set(many(CaptionSpec(dropout=0), caption)) == {caption} == {usual(caption)}
    assert not varies(item(caption), CaptionSpec())


def test_the_usual_caption_has_the_first_of_all_alternatives() -> None:
    assert usual("{a photo of|a drawing of|} a {|red|blue} cat") == "a photo of a cat"


def test_a_trigger_that_not_every_alternative_has_is_put_in_front_of_the_others() -> None:
    captions = set(many(CaptionSpec(dropout=0, trigger="ohwx"), "a {ohwx|} cat"))
    assert captions == {"a ohwx cat", "ohwx, a cat"}


def test_dropout_is_as_frequent_as_asked() -> None:
    assert 60 < many(CaptionSpec(dropout=0.2)).count("") < 100


def test_shuffle_keeps_every_tag_and_the_first_in_place() -> None:
    captions = many(CaptionSpec(dropout=0, shuffle=True, keep_tokens=2))
    assert {tuple(sorted(caption.split(", "))) for caption in captions} == {
        ("five", "four", "one", "three", "two")
    }
    assert {caption[:8] for caption in captions} == {"one, two"}
    assert len(set(captions)) == 6


def test_tag_dropout_spares_the_kept_tags() -> None:
    captions = many(CaptionSpec(dropout=0, tag_dropout=0.5, keep_tokens=1))
    assert all(caption.startswith("one") for caption in captions)
    mean = sum(len(caption.split(", ")) for caption in captions) / len(captions)
    assert 2.8 < mean < 3.2  # 1 + 4 * 0.5


def test_the_trigger_is_in_every_caption_that_is_not_dropped() -> None:
    spec = CaptionSpec(trigger="ohwx", dropout=0.1, shuffle=True, tag_dropout=0.9)
    for caption in ("", "one, two", "one, ohwx, two", "OHWX cat, one"):
        assert all(has_trigger(text, "ohwx") for text in many(spec, caption) if text)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cat", "ohwx, a cat"),
        ("a photo of ohwx cat", "a photo of ohwx cat"),
        ("Ohwx, a cat", "Ohwx, a cat"),
        ("ohwxes", "ohwx, ohwxes"),
        ("", "ohwx"),
    ],
)
def test_a_trigger_is_put_in_front_once(caption: str, expected: str) -> None:
    assert with_trigger(caption, "ohwx") == expected
    assert with_trigger(expected, "ohwx") == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("ohwx, a cat", "a cat"),
        ("a photo of Ohwx in a hat", "a photo of in a hat"),
        ("a cat, ohwx, ohwx", "a cat"),
        ("ohwxes", "ohwxes"),
        ("ohwx", ""),
        ("", ""),
    ],
)
def test_a_trigger_that_is_left_out_leaves_no_gap(caption: str, expected: str) -> None:
    assert without_trigger(caption, " ohwx ") == expected


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_all_captions_are_all_that_come_up(dropout: float) -> None:
    spec = CaptionSpec(dropout=dropout, trigger="ohwx")
    assert set(many(spec)) <= set(all_captions(item("one, two, three, four, five"), spec))
