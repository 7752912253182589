"""The rows of the page mean what the entries of a stack say, and nothing is lost between."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdlora.errors import ConfigError
from sdlora.network.change import Change, window
from sdlora.service.studio import Entry, Studio
from tests.conftest import TinyModel
from tests.network.test_stack import saved
from tests.service.conftest import studio as studio  # the same home
from ui import stack
from ui.adapter_card import item

EMPTY = stack.empty(varies=True)


@pytest.fixture
def files(studio: Studio, tmp_path: Path, tiny_sd1: TinyModel) -> list[Path]:
    names = ("ink", "zibbo")
    made = [saved(tiny_sd1.family, tmp_path / f"{name}.safetensors", seed=len(name)) for name in names]
    return [studio.library.add(path).path for path in made]


@pytest.mark.parametrize(
    "change",
    [
        Change(),
        Change(curve=window(0.2, 0.8), box=(0.0, 0.0, 0.5, 1.0)),
        Change(curve=((0.0, 0.0), (0.5, -1.25)), turn=(1, 3)),
        Change(blocks=(0.5, *(1.0,) * 15, 0.0), mask=Path("where.png")),
    ],
)
def test_what_is_shown_means_the_same_entries(studio: Studio, files: list[Path], change: Change) -> None:
    entries = (Entry(files[0], 0.8, 0.25, change), Entry(files[1], -0.5))
    assert stack.entries(stack.show(studio, EMPTY, entries, base="builtin")) == entries


def test_a_row_that_is_off_takes_no_part_and_stays(studio: Studio, files: list[Path]) -> None:
    shown = stack.show(studio, EMPTY, [Entry(file) for file in files], base="builtin")
    shown["rows"][0]["on"] = False
    assert stack.entries(stack.arranged(shown, "turns")) == (Entry(files[1]),)
    assert stack.arranged(shown, "turns")["rows"][0] == shown["rows"][0]


def test_a_hand_made_row_is_checked(studio: Studio, files: list[Path]) -> None:
    shown = stack.show(studio, EMPTY, [Entry(files[0])], base="builtin")
    shown["rows"][0]["change"] = {"box": "1,1,0,0"}
    with pytest.raises(ConfigError, match="no box"):
        stack.entries(shown)


def test_a_child_brings_what_it_builds_on_and_siblings_share_it(studio: Studio, files: list[Path]) -> None:
    parent, child = files
    studio.library.set_parent(child, parent)
    rows = stack.add(studio, EMPTY, str(child), base="builtin")["rows"]
    assert [(row["name"], row["parent"]) for row in rows] == [("ink", ""), ("zibbo", "ink")]
    again = stack.add(studio, {**EMPTY, "rows": rows[:1]}, str(child), base="builtin")["rows"]
    assert [row["name"] for row in again] == ["ink", "zibbo"]


def test_balanced_weights_go_to_the_rows_that_are_on(studio: Studio, files: list[Path]) -> None:
    shown = stack.show(studio, EMPTY, [Entry(file) for file in files], base="builtin")
    shown["rows"][0]["on"] = False
    rows = stack.balanced(shown, [(0.5, None)])["rows"]
    assert [row["weight"] for row in rows] == [1.0, 0.5]


def test_what_a_run_has_made_is_offered_once(studio: Studio, files: list[Path], tiny_sd1: TinyModel) -> None:
    other = saved(tiny_sd1.family, studio.home.cache / "other.safetensors", seed=7)  # named as ours
    for name, file in {"ink-run/ink": files[0], "other/ink": other}.items():
        made = studio.home.runs / f"{name}.safetensors"
        made.parent.mkdir(parents=True)
        shutil.copy(file, made)
    assert {name for name, _ in stack.choices(studio)} == {"ink", "zibbo", "ink  (run other)"}


def test_a_line_of_the_library_says_what_matters(studio: Studio, files: list[Path]) -> None:
    broken = studio.library.folder / "broken.safetensors"
    broken.write_bytes(b"\xff" * 100)
    lines = {
        path: item(studio.library.adapter(path), folder="styles", twins=("x",)) for path in (files[0], broken)
    }
    assert lines[files[0]]["detail"] == "rank 4, styles" and lines[files[0]]["bad"] == "The same as x."
    assert str(lines[broken]["bad"]).startswith("broken.safetensors is no sound safetensors file")


def test_a_row_says_that_its_adapter_is_broken(studio: Studio, files: list[Path]) -> None:
    tensors = load_file(files[0])
    save_file({key: torch.full_like(value, torch.nan) for key, value in tensors.items()}, files[0])
    rows = stack.show(studio, EMPTY, [Entry(file) for file in files], base="builtin")["rows"]
    assert "not finite" in rows[0]["note"] and rows[1]["note"] == ""
