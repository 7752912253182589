"""How weights vary, in words: prompts, the command line and JSON say the same, exactly."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from sdlora.commands import entries
from sdlora.errors import AdapterError, ConfigError
from sdlora.generation import words
from sdlora.generation.png import parameters, read_parameters
from sdlora.generation.prompt import extract_tags, write_tag
from sdlora.generation.request import GenerateRequest
from sdlora.network import blocks
from sdlora.network.change import Change, turns, window
from sdlora.network.measure import conflict
from sdlora.network.merge import merge
from sdlora.network.stack import Entry
from tests.conftest import TinyModel
from tests.network.test_stack import saved

MASK = Change(mask=Path("folder/where it counts.png"), box=(0, 0, 0.5, 1))


def drawn_change(seed: int) -> Change:
    """A random change with awkward numbers."""
    draw = random.Random(seed)
    points = sorted((draw.random(), draw.uniform(-2, 2) * 10 ** draw.randint(-9, 1)) for _ in range(3))
    sides = sorted(draw.random() for _ in range(4))
    count = draw.choice([12, 17, 20, 26])
    return Change(
        curve=draw.choice([(), tuple(points), window(draw.random() / 2, 0.5 + draw.random() / 2)]),
        turn=draw.choice([(0, 1), *(change.turn for change in turns(3))]),
        blocks=draw.choice([(), tuple(draw.uniform(-1, 1) for _ in range(count))]),
        box=draw.choice([None, (sides[0], sides[1], sides[2], sides[3])]),
    )


CHANGES = [drawn_change(seed) for seed in range(40)]
CHANGES += [Change(curve=window(start, end)) for start in (0, 0.2, 1) for end in (0.2, 1) if start <= end]
# a jump, one point, and 1 throughout
CHANGES += [Change(curve=c) for c in (((0, 1), (0.5, 1), (0.5, 0)), ((0.5, 2),), ((0, 1), (1, 1)))]


def test_words_are_read_back_exactly() -> None:
    for change in [*CHANGES, MASK]:
        assert words.read(words.write(change)) == (change, ())
    assert words.write(Change()) == {}


def test_a_written_tag_is_read_back_exactly() -> None:
    for number, change in enumerate(CHANGES):
        text = None if number % 2 else number / 7
        entry = Entry(Path("x/ink.safetensors"), -1 + number / 3, text, change)
        (tag,) = extract_tags("a cat " + write_tag(entry))[1]
        assert tag.entry(entry.file) == entry


def test_json_gives_back_every_change() -> None:
    stack = tuple(Entry(Path("ink.safetensors"), 0.8, change=change) for change in [*CHANGES, MASK])
    request = GenerateRequest(stack=stack)
    assert GenerateRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("tag", "weights", "change"),
    [
        ("<lora:ink:0.8:start=0.2:end=0.8>", (0.8, None), Change(curve=window(0.2, 0.8))),
        ("<lora:ink:end=0.5>", (1, None), Change(curve=window(0, 0.5))),
        ("<lora:ink:0@0,1@0.5>", (1, None), Change(curve=((0, 0), (0.5, 1)))),
        ("<lora:ink:0.5:0@0, 1@0.5>", (1, 0.5), Change(curve=((0, 0), (0.5, 1)))),
        ("<lora:ink:0.8:curve=0@0,1@0.5>", (0.8, None), Change(curve=((0, 0), (0.5, 1)))),
        ("<lora:ink:0.5:0.9:box=0,0,0.5,1>", (0.9, 0.5), Change(box=(0, 0, 0.5, 1))),
        ("<lora:ink:turn=2/2>", (1, None), turns(2)[1]),
        ("<lora:ink:1:1:lbw=" + ",".join("0" * 17) + ">", (1, None), Change(blocks=(0.0,) * 17)),
    ],
)
def test_a_tag_says_how_the_weight_varies(
    tag: str, weights: tuple[float, float | None], change: Change
) -> None:
    (found,) = extract_tags(tag)[1]
    assert (found.weight, found.text_weight, found.change) == (*weights, change)


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("strat=0.2", 'Did you mean "start="'),
        ("start=0.8:end=0.2", "no part of the steps"),
        ("start=2", "no part of the steps"),
        ("curve=0@0,1@1:end=0.5", "Choose one"),
        ("0@0,1@1:unet=0.5", "two weights"),
        ("0@0,1@2", "no point of a curve"),
        ("0@0,1@1:0.5", "no number"),
        (f"{'9' * 400}@0", "no weight"),
        ("turn=3/2", "no turn"),
        ("lbw=1,2,3", "3 block weights"),
        ("lbw=" + ",".join(["nan"] * 12), "no number"),
        ("lbw=" + ",".join("1" * 12) + ":style=0", "Choose one"),
        ("box=0.5,0,0,1", "no box"),
        ("box=0,0,1", "no box"),
        ("end=0.5:end=0.6", "twice"),
        ("inf", "no weight"),
        ("mask=/etc/passwd", "not understood"),
    ],
)
def test_a_tag_that_makes_no_sense_says_why(argument: str, reason: str) -> None:
    with pytest.raises(AdapterError, match="is not understood") as caught:
        extract_tags(f"<lora:ink:{argument}>")
    assert reason in str(caught.value)


def test_other_tools_find_a_plain_weight_first_in_our_tags() -> None:
    """A1111 parts a tag at colons: one "=" is a name it may not know, what has none must be a number."""
    for change in CHANGES:
        tag = write_tag(Entry(Path("ink.safetensors"), 0.8, change=change))
        _, weight, *rest = tag.removeprefix("<lora:").removesuffix(">").split(":")
        assert float(weight) == 0.8 and all(argument.count("=") == 1 for argument in rest)


def test_named_blocks_are_those_of_the_adapters_family(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    file = saved(tiny_sd1.family, tmp_path / "ink.safetensors", targets="attn2.to_k")
    expected = Entry(file, 0.8, change=Change(blocks=blocks.by_parts("sd1", {"style": 0.0, "detail": 0.5})))
    (tag,) = extract_tags("<lora:ink:0.8:style=0:detail=0.5>")[1]
    assert tag.entry(file) == expected
    assert entries.parse(f"{file}:0.8:style=0:detail=0.5") == expected
    text = parameters(GenerateRequest(stack=(expected,)), (64, 64))
    assert read_parameters(text, folders=[tmp_path]).request.stack == (expected,)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", (1.0, None, Change())),
        (":0.8:0.3", (0.8, 0.3, Change())),
        (":0@0,1@0.5", (1.0, None, Change(curve=((0, 0), (0.5, 1))))),
        (":0@0,1@0.5:0.3", (1.0, 0.3, Change(curve=((0, 0), (0.5, 1))))),
        (":0.8:end=0.5:box=0,0,0.5,1", (0.8, None, Change(curve=window(0, 0.5), box=(0, 0, 0.5, 1)))),
        (":mask=where.png", (1.0, None, Change(mask=Path("where.png")))),
    ],
)
def test_the_command_line_takes_the_same_words(
    arguments: str, expected: tuple[float, float | None, Change], tmp_path: Path
) -> None:
    for name in ("ink.safetensors", "C:ink:2.safetensors"):
        file = tmp_path / name
        file.touch()
        for given in (str(file), name):
            assert entries.parse(given + arguments, folders=(tmp_path,)) == Entry(file, *expected)
    for wrong in (":1:1:1", ":0.5:0@0,1@1", ":1:strat=0", ":0@0:curve=1@0"):
        with pytest.raises(ConfigError):
            entries.parse(f"{file}{wrong}")


def test_what_fixed_weights_cannot_carry_is_refused(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    entry = Entry(saved(tiny_sd1.family, tmp_path / "ink.safetensors", targets="attn2.to_k"))
    changing = replace(entry, change=Change(curve=window(0, 0.5)))
    with pytest.raises(AdapterError, match="changes while sampling"):
        merge([entry, changing], output=tmp_path / "both.safetensors")
    with pytest.raises(AdapterError, match="changes while sampling"):
        conflict(entry, changing)
    assert not (tmp_path / "both.safetensors").exists()


def test_the_page_on_mixing_shows_only_tags_that_are_understood() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mixing.md").read_text(encoding="utf-8")
    _, tags = extract_tags(page)
    assert {tag.name for tag in tags} == {"ink", "mira"} and len(tags) >= 12
