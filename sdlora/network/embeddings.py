"""Textual inversion: words that stand for vectors of their own (Gal et al. 2022).

Adapter files bring such words along (`bundle_emb`), or hold nothing else. Shapes: n vectors of a word, D
width of a text encoder.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdlora.contracts import Family
from sdlora.errors import AdapterError

MOST = 1024  # vectors of a word; people train 1 to 16

Embedding = Mapping[str, Tensor]
"""Text encoder -> vectors [n,D]."""


def fits(embedding: Embedding, family: Family) -> bool:
    """Whether there are sound vectors for exactly the family's text encoders, equally many and as wide."""
    widths = {name: table.embedding_dim for name, table in _tables(family).items()}
    shapes = {name: vectors.shape for name, vectors in embedding.items()}
    sound = all(
        len(vectors.shape) == 2 and 0 < len(vectors) <= MOST and bool(vectors.isfinite().all())
        for vectors in embedding.values()
    )
    counts = {shape[0] for shape in shapes.values() if shape}
    return sound and len(counts) == 1 and {name: shape[-1] for name, shape in shapes.items()} == widths


def gathered(all_of: Sequence[Mapping[str, Embedding]], prompts: Sequence[str]) -> dict[str, Embedding]:
    """The embeddings of several adapters whose words the prompts hold.

    Raises AdapterError when two adapters mean different things by a word.
    """
    text = "\n".join(prompts).lower()
    found: dict[str, Embedding] = {}
    for embeddings in all_of:
        for word, embedding in embeddings.items():
            if word.lower() not in text:
                continue
            before = found.setdefault(word, embedding)
            if any(not torch.equal(before[name], vectors) for name, vectors in embedding.items()):
                raise AdapterError(
                    f'Two adapters of the stack teach the word "{word}".', "Use one of them at a time."
                )
    return found


@contextmanager
@torch.no_grad()
def spoken(
    family: Family, embeddings: Mapping[str, Embedding], prompts: Sequence[str]
) -> Iterator[dict[str, list[int]]]:
    """Inside, ids that no prompt uses have the embeddings' vectors: word -> ids; after it, their own again.

    Ids of the vocabulary, because CLIP finds the end of a text by the largest id.
    """
    if not embeddings:
        yield {}
        return
    used = set(family.tokenize(prompts, weighted=True).ids.flatten().tolist())
    free = (number for number in range(max(used), 0, -1) if number not in used)
    words = {word: [next(free) for _ in next(iter(vectors.values()))] for word, vectors in embeddings.items()}
    rows = [row for ids in words.values() for row in ids]
    tables = _tables(family)
    kept = {name: table.weight[rows] for name, table in tables.items()}
    try:
        for name, table in tables.items():
            own = [embedding[name].to(table.weight) for embedding in embeddings.values()]
            table.weight[rows] = torch.cat(own)
        yield words
    finally:
        for name, table in tables.items():
            table.weight[rows] = kept[name]


def _tables(family: Family) -> dict[str, nn.Embedding]:
    """The vectors of all tokens, by text encoder."""
    return {
        name: root.get_input_embeddings()  # type: ignore[operator]  # transformers' own way to them
        for name, root in family.components.items()
        if name.startswith("text_encoder")
    }
