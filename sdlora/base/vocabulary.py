"""CLIP's tokenizer from the merges that ship with sdlora.

The vocabulary follows from them: the 256 bytes, the same ending a word, the merges, start and end.
"""

import gzip
from functools import lru_cache
from importlib.resources import files as resources

from transformers import CLIPTokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"


@lru_cache(maxsize=4)
def clip_tokenizer(pad: str = _END) -> CLIPTokenizer:
    """CLIP's tokenizer of 49,408 tokens, padding with the token `pad`."""
    packed = resources("sdlora").joinpath("assets", "families", "clip-merges.txt.gz").read_bytes()
    merges = [
        (first, second) for first, second in map(str.split, gzip.decompress(packed).decode().splitlines())
    ]
    letters = [chr(code) for code in _letters()]
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), _START, _END]
    vocabulary = {word: index for index, word in enumerate(words)}
    # its annotation says list[str]; the tokenizer below it takes pairs only
    return CLIPTokenizer(vocabulary, merges, pad_token=pad, model_max_length=77)  # type: ignore[arg-type]


def _letters() -> list[int]:
    """The code point that byte-level BPE writes for each byte: printable ones are themselves (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*printable, *range(256, 256 + 256 - len(printable))]
