"""From prompts to token ids in chunks of 77, with a multiplier per token.

A chunk is start, up to 75 tokens, end and padding. Longer prompts take several chunks, whose states are
joined; every prompt of a batch takes as many as the longest. The syntax is A1111's:

    (words) x1.1    [words] /1.1    (words:1.3) x1.3    BREAK a new chunk    \\( \\) \\[ \\] as they are

A multiplier scales the states of its tokens. (A1111 then restores the mean over the chunk as well; that
divides by a number near zero for some encoders, so it is left out, like Forge's "no norm".)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from sdlora.contracts import Tokens

_CHUNK = 77
_NUMBER = r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
_PART = re.compile(rf"\\[()\[\]\\]|[(\[\]]|{_NUMBER}|\)|\bBREAK\b|[^\\()\[\]:B]+|.", re.DOTALL)


class Span(NamedTuple):
    """A piece of a prompt and its multiplier; a text of None starts a new chunk."""

    text: str | None
    weight: float


def parse_emphasis(prompt: str) -> list[Span]:
    """The prompt without its brackets, as spans; brackets that are never closed count to the end."""
    spans: list[Span] = []
    open_round: list[int] = []
    open_square: list[int] = []

    def scale(start: int, factor: float) -> None:
        spans[start:] = [Span(text, weight * factor) for text, weight in spans[start:]]

    for match in _PART.finditer(prompt):
        part, number = match.group(), match.group(1)
        if part == "(":
            open_round.append(len(spans))
        elif part == "[":
            open_square.append(len(spans))
        elif part == ")" and open_round:
            scale(open_round.pop(), 1.1)
        elif part == "]" and open_square:
            scale(open_square.pop(), 1 / 1.1)
        elif number is not None and open_round:
            scale(open_round.pop(), float(number))
        else:
            spans.append(Span(None if part == "BREAK" else part.removeprefix("\\") or part, 1.0))
    for start in open_round:
        scale(start, 1.1)
    for start in open_square:
        scale(start, 1 / 1.1)
    return _joined(spans)


def tokenize(
    tokenizers: Sequence[CLIPTokenizer],
    prompts: Sequence[str],
    *,
    weighted: bool = False,
    words: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Tokens:
    """Ids [B,E,L] on the CPU, L a multiple of 77; `weighted` understands the syntax above.

    `words`, whatever their case, stand for these ids in every vocabulary.
    """
    spans = [parse_emphasis(prompt) if weighted else [Span(prompt, 1.0)] for prompt in prompts]
    rows = [[_chunks(tokenizer, prompt, words) for tokenizer in tokenizers] for prompt in spans]
    count = max((len(chunks) for row in rows for chunks in row), default=1)
    ids = [[_padded(t, chunks, count) for t, chunks in zip(tokenizers, row, strict=True)] for row in rows]
    weights = torch.stack([torch.stack([weight for _, weight in row]) for row in ids])
    return Tokens(
        torch.stack([torch.stack([tokens for tokens, _ in row]) for row in ids]),
        weights if weighted and bool((weights != 1).any()) else None,
    )


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Neighbours of one weight as one span: a word cut in two would give other tokens."""
    joined: list[Span] = []
    for text, weight in spans:
        last = joined[-1] if joined else None
        if last and last.text is not None and text is not None and last.weight == weight:
            joined[-1] = Span(last.text + text, weight)
        else:
            joined.append(Span(text, weight))
    return joined


def _chunks(
    tokenizer: CLIPTokenizer, spans: Sequence[Span], words: Mapping[str, Sequence[int]]
) -> list[list[tuple[int, float]]]:
    """(id, weight) of every token, at most 75 a chunk, at least one chunk."""
    chunks: list[list[tuple[int, float]]] = [[]]
    for text, weight in spans:
        if text is None:
            chunks.append([])
            continue
        for token in _ids(tokenizer, text, words):
            if len(chunks[-1]) == _CHUNK - 2:
                chunks.append([])
            chunks[-1].append((token, weight))
    return chunks


def _ids(tokenizer: CLIPTokenizer, text: str, words: Mapping[str, Sequence[int]]) -> Iterator[int]:
    """The ids of a text in which `words` stand for ids of their own."""
    own = {word.lower(): ids for word, ids in words.items()}
    longest_first = "|".join(re.escape(word) for word in sorted(own, key=len, reverse=True))
    parts = re.split(rf"(?<!\w)({longest_first})(?!\w)", text, flags=re.IGNORECASE) if own else [text]
    for number, part in enumerate(parts):
        if number % 2:  # what the pattern matched
            yield from own[part.lower()]
        else:
            yield from tokenizer(part, add_special_tokens=False, verbose=False).input_ids


def _padded(
    tokenizer: CLIPTokenizer, chunks: Sequence[Sequence[tuple[int, float]]], count: int
) -> tuple[Tensor, Tensor]:
    """Ids and weights [77*count] with start, end and padding."""
    ids, weights = [], []
    for index in range(count):
        tokens = chunks[index] if index < len(chunks) else []
        filler = _CHUNK - 2 - len(tokens)
        ids += [tokenizer.bos_token_id, *(token for token, _ in tokens), tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * filler
        weights += [1.0, *(weight for _, weight in tokens), *[1.0] * (filler + 1)]
    return torch.tensor(ids), torch.tensor(weights)
