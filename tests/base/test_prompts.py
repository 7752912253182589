"""Prompts become the tokens and multipliers that a hand would write down."""

import pytest
import torch

from sdlora.base.prompts import Span, parse_emphasis
from tests.conftest import TinyModel


@pytest.mark.parametrize(
    ("prompt", "spans"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a ((red)) cat", [("a ", 1), ("red", 1.1 * 1.1), (" cat", 1)]),
        ("a [red] cat", [("a ", 1), ("red", 1 / 1.1), (" cat", 1)]),
        ("(red:1.3) cat", [("red", 1.3), (" cat", 1)]),
        ("(a (red:1.5) cat)", [("a ", 1.1), ("red", 1.5 * 1.1), (" cat", 1.1)]),
        ("(red :.5)", [("red ", 0.5)]),
        ("(red:1.)", [("red", 1)]),
        ("(red:-0.5)", [("red", -0.5)]),
        (r"a \(red\) cat", [("a (red) cat", 1)]),
        ("red) cat]", [("red) cat]", 1)]),
        ("(red", [("red", 1.1)]),
        ("[red", [("red", 1 / 1.1)]),
        ("8:5 Big Ben", [("8:5 Big Ben", 1)]),
        ("red BREAK cat", [("red ", 1), (None, 1), (" cat", 1)]),
        ("BREAKfast", [("BREAKfast", 1)]),
        ("", []),
    ],
)
def test_emphasis_is_read_as_a1111_reads_it(prompt: str, spans: list[tuple[str | None, float]]) -> None:
    found = parse_emphasis(prompt)
    assert [span.text for span in found] == [text for text, _ in spans]
    assert [span.weight for span in found] == pytest.approx([weight for _, weight in spans])
    assert all(isinstance(span, Span) for span in found)


def test_one_chunk_is_start_words_end_and_padding(tiny_sd1: TinyModel) -> None:
    tokens = tiny_sd1.family.tokenize(["a (red:1.5) cat", "dog"], weighted=True)
    vocabulary = tiny_sd1.family.tokenizer.get_vocab()
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    words = [vocabulary[f"{word}</w>"] for word in ("a", "red", "cat")]
    assert tokens.ids[0, 0].tolist() == [start, *words, *[end] * 73]
    assert tokens.weights is not None
    assert tokens.weights[0, 0, :5].tolist() == [1, 1, 1.5, 1, 1]
    assert tokens.ids.shape == (2, 1, 77)


def test_a_long_prompt_goes_on_in_another_chunk(tiny_sd1: TinyModel) -> None:
    ids = tiny_sd1.family.tokenize(["cat " * 80, "dog"]).ids
    cat = tiny_sd1.family.tokenizer.get_vocab()["cat</w>"]
    assert ids.shape == (2, 1, 154)
    assert ids[0, 0, 1:76].tolist() == [cat] * 75 and ids[0, 0, 78:83].tolist() == [cat] * 5
    # the shorter prompt has an empty second chunk
    assert torch.equal(ids[1, 0, 77:], tiny_sd1.family.tokenize([""]).ids[0, 0])


def test_break_starts_a_new_chunk(tiny_sd1: TinyModel) -> None:
    broken = tiny_sd1.family.tokenize(["red BREAK cat"], weighted=True).ids[0, 0]
    apart = tiny_sd1.family.tokenize(["red", "cat"]).ids[:, 0]
    assert torch.equal(broken, apart.flatten())


def test_states_are_those_of_the_chunks_times_the_weights(tiny_sd1: TinyModel) -> None:
    family = tiny_sd1.family
    joined = family.encode_text(family.tokenize(["(red:0.5) BREAK cat"], weighted=True)).states
    chunks = family.encode_text(family.tokenize(["red", "cat"])).states
    by_hand = chunks.clone()
    by_hand[0, 1] *= 0.5
    assert torch.allclose(joined, by_hand.flatten(0, 1)[None], atol=1e-6)


def test_a_prompt_that_is_not_weighted_keeps_its_brackets(tiny_sd1: TinyModel) -> None:
    plain = tiny_sd1.family.tokenize(["(red)"])
    assert plain.weights is None
    assert not torch.equal(plain.ids, tiny_sd1.family.tokenize(["red"]).ids)
