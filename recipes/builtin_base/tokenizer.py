"""A byte-pair vocabulary in CLIP's form, learned from our captions.

Out: `vocab.json`, `merges.txt` and the configuration that `CLIPTokenizer` loads. The order of the
vocabulary is CLIP's: 256 bytes, the same bytes ending a word, the merges, start, end.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
"""Tokens of one prompt, start and end included, as in every Stable Diffusion 1."""


def learn(texts: Iterable[str], folder: Path, *, merges: int) -> None:
    """`folder` holds a CLIP tokenizer whose merges are the commonest of the texts."""
    words = Counter(word for text in texts for word in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()))
    pairs = _merges({(*word[:-1], word[-1] + "</w>"): n for word, n in words.items()}, merges)
    letters = list(_byte_letters())
    vocabulary = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in pairs), START, END]
    vocabulary = list(dict.fromkeys(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": LENGTH,
                "do_lower_case": True,
                **special,
            },
            indent=2,
        )
    )


def _merges(words: dict[tuple[str, ...], int], wanted: int) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding in order (Sennrich et al. 2016), ties by spelling."""
    found: list[tuple[str, str]] = []
    while len(found) < wanted:
        counts: Counter[tuple[str, str]] = Counter()
        for parts, n in words.items():
            for pair in zip(parts, parts[1:], strict=False):
                counts[pair] += n
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        found.append(best)
        words = {_merged(parts, best): n for parts, n in words.items()}
    return found


def _merged(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def _byte_letters() -> Iterable[str]:
    """CLIP's printable letter for each of the 256 bytes, in CLIP's order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, plain)
    yield from (chr(256 + i) for i in range(256 - len(plain)))
