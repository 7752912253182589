"""Adapters named in a prompt."""

from pathlib import Path

import pytest

from sdlora.errors import AdapterError
from sdlora.generation.prompt import Tag, extract_tags, resolve_tags, write_tag
from sdlora.network.stack import Entry


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:ink>", Tag("ink")),
        ("<lora:ink:0.8>", Tag("ink", 0.8)),
        ("<lora:ink:-1>", Tag("ink", -1)),
        # A1111: the text encoder's weight, then the UNet's
        ("<lora:ink:0.5:0.9>", Tag("ink", 0.9, 0.5)),
        ("<lora:ink:1:te=0.5:unet=0.8>", Tag("ink", 0.8, 0.5)),
        ("<lora:a b-c_1:1:1>", Tag("a b-c_1", 1)),
        ("<lyco:ink:0.5>", Tag("ink", 0.5)),
    ],
)
def test_a_tag_is_read_as_a1111_reads_it(tag: str, expected: Tag) -> None:
    assert extract_tags(f"a cat, {tag} red") == ("a cat,  red", (expected,))


def test_a_prompt_without_tags_is_untouched() -> None:
    assert extract_tags(" a <cat>  (red:1.2) ") == (" a <cat>  (red:1.2) ", ())


@pytest.mark.parametrize("tag", ["<lora:ink:red>", "<lora::1>", "<lora:ink:1:1:1>", "<lora:ink:1:lbw=1>"])
def test_a_tag_that_is_not_understood_is_an_error(tag: str) -> None:
    with pytest.raises(AdapterError, match="is not understood"):
        extract_tags(tag)


@pytest.mark.parametrize("entry", [(0.8, None), (0.8, 0.3), (-1.0, 0.0)])
def test_a_written_tag_is_read_back(entry: tuple[float, float | None]) -> None:
    written = write_tag(Entry(Path("x/ink.safetensors"), *entry))
    assert extract_tags(written)[1] == (Tag("ink", *entry),)


def test_names_are_looked_up_below_the_folders(tmp_path: Path) -> None:
    file = tmp_path / "styles" / "ink.safetensors"
    file.parent.mkdir()
    file.touch()
    assert resolve_tags([Tag("ink", 0.5)], [tmp_path]) == (Entry(file, 0.5),)


def test_a_missing_adapter_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "ink-style.safetensors").touch()
    with pytest.raises(AdapterError, match="<lora:ink-style>"):
        resolve_tags([Tag("ink-stile")], [tmp_path])
