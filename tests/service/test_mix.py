"""Arrangements share out steps, places and blocks between adapters without gaps."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sdlora.errors import AdapterError, ConfigError
from sdlora.generation import words
from sdlora.network.blocks import LISTS, PARTS
from sdlora.network.change import Change
from sdlora.service import mix
from sdlora.service.studio import Entry, Studio
from tests.conftest import TinyModel
from tests.network.test_stack import saved

STEPS = 20


@pytest.fixture
def pair(tmp_path: Path, tiny_sd1: TinyModel) -> list[Entry]:
    files = [saved(tiny_sd1.family, tmp_path / f"{name}.safetensors") for name in ("zibbo", "ink")]
    return [Entry(files[0], 0.8, 0.5), Entry(files[1], -1.0)]


@pytest.mark.parametrize("name", mix.ARRANGEMENTS)
def test_an_arrangement_keeps_the_weights_and_can_be_written(pair: list[Entry], name: str) -> None:
    made = mix.arranged(pair, name)
    assert [(e.file, e.weight, e.text_weight) for e in made] == [
        (e.file, e.weight, e.text_weight) for e in pair
    ]
    assert [words.read(words.write(e.change))[0] for e in made] == [e.change for e in made]
    assert mix.arranged(made, "plain") == tuple(pair)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sides_cover_every_place_once(pair: list[Entry], count: int) -> None:
    areas = [entry.change.area(16, 40) for entry in mix.arranged([*pair, *pair, *pair][:count], "sides")]
    assert torch.equal(torch.stack(areas).sum(dim=0), torch.ones(16, 40))


def test_turns_and_phases_leave_no_step_alone(pair: list[Entry]) -> None:
    turns, phases = (mix.arranged([*pair, pair[0]], name) for name in ("turns", "phases"))
    for step in range(STEPS):
        assert sum(entry.change.at(step, STEPS) for entry in turns) == 1
        assert sum(entry.change.at(step, STEPS) for entry in phases) >= 1
    assert [entry.change.at(0, STEPS) for entry in phases] == [1, 0, 0]
    assert [entry.change.at(STEPS - 1, STEPS) for entry in phases] == [0, 1, 1]


def test_every_named_block_belongs_to_content_or_to_style(pair: list[Entry]) -> None:
    content, style = (entry.change.blocks for entry in mix.arranged(pair, "parts"))
    named = {block for blocks in PARTS["sd1"].values() for block in blocks}
    assert {name: (c, s) for name, c, s in zip(LISTS[17], content, style, strict=True) if name in named} == {
        name: (0, 1) if name in PARTS["sd1"]["style"] + PARTS["sd1"]["detail"] else (1, 0) for name in named
    }


def test_a_mask_is_a_picture_that_was_brought(studio: Studio, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "all.png")
    kept = studio.masks.add(tmp_path / "all.png")
    studio.masks.check([Entry(kept, change=Change(mask=kept))])
    with pytest.raises(ConfigError, match="not here"):
        studio.masks.check([Entry(kept, change=Change(mask=tmp_path / "all.png"))])
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(AdapterError, match="no picture"):
        studio.masks.add(tmp_path / "no.png")
