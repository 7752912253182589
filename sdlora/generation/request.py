"""What a person asks for: one picture or several of one prompt, as an option tree and as JSON."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdlora.errors import ConfigError
from sdlora.generation import words
from sdlora.generation.prompt import Tag, extract_tags, resolve_tags
from sdlora.generation.solvers import SOLVERS
from sdlora.generation.words import LARGEST
from sdlora.network.chain import with_ancestors
from sdlora.network.stack import Entry
from sdlora.options import build, flatten, option


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """Everything that decides the pictures; picture i has the seed `seed + i`."""

    base: str = option(
        "builtin", "The base: `builtin`, a folder, a .safetensors file or a Hub id", level="basic"
    )
    prompt: str = option("", "What to draw; `(word:1.2)`, `[word]` and `BREAK` are understood", level="basic")
    negative: str = option("", "What not to draw", label="Negative prompt", level="basic")
    width: int = option(0, "Width; 0 is the base's own", low=0, high=4096, unit="pixels", level="basic")
    height: int = option(0, "Height; 0 is the base's own", low=0, high=4096, unit="pixels", level="basic")
    steps: int = option(20, "Sampling steps", low=1, high=1000, level="basic")
    guidance: float = option(
        4.5, "How closely to follow the prompt; 1 ignores the negative one", low=1, high=30
    )
    solver: str = option(next(iter(SOLVERS)), "How the noise is removed", choices=tuple(SOLVERS))
    seed: int = option(0, "The seed of the first picture; the next ones count up", low=0, high=2**32 - 1)
    count: int = option(1, "How many pictures", low=1, high=64)
    clip_skip: int = option(
        1,
        "Take the text encoder's n-th layer from the end; SD 2.x and SDXL begin at the second",
        low=1,
        high=12,
        unit="layers",
    )
    prediction: str = option(
        "auto",
        "What the base's UNet predicts; `auto` detects it",
        choices=("auto", "epsilon", "v_prediction"),
    )
    zero_terminal: str = option(
        "auto",
        "Whether the base's last timestep is pure noise; `auto` detects it",
        choices=("auto", "on", "off"),
        label="Zero-terminal SNR",
    )
    stack: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, object], stack: tuple[Entry, ...] = ()) -> "GenerateRequest":
        """The request of option values, checked. Raises ConfigError that names what is wrong."""
        return dataclasses.replace(build(cls, values), stack=stack)

    @classmethod
    def from_json(cls, text: str) -> "GenerateRequest":
        """The request that `to_json` wrote. Raises ConfigError when it is none."""
        values, stack = request_object(text)
        tags = (entry_tag(entry, name="file") for entry in stack)
        return cls.of(values, tuple(tag.entry(Path(tag.name)) for tag in tags))

    def to_json(self) -> str:
        """The request as JSON; `from_json` gives an equal one."""
        stack = [{"file": str(entry.file), **weights_told(entry)} for entry in self.stack]
        return json.dumps({**flatten(self), "stack": stack}, ensure_ascii=False)

    def with_prompt_adapters(self, folders: tuple[Path, ...]) -> "GenerateRequest":
        """The same with the `<lora:...>` tags of the prompt as entries of the stack, and what all build on.

        Raises AdapterError for an adapter that is not in the folders.
        """
        prompt, tags = extract_tags(self.prompt)
        stack = with_ancestors(self.stack + resolve_tags(tags, folders), folders)
        return dataclasses.replace(self, prompt=prompt, stack=stack)


def request_object(text: str) -> tuple[dict[str, object], list[object]]:
    """Option values and stack of a request in JSON. Raises ConfigError when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError("The request is no JSON.", f"{error}.") from None
    stack = value.pop("stack", []) if isinstance(value, dict) else None
    if not isinstance(stack, list):
        raise ConfigError("The request is no JSON object with a list as its stack.", "Write it with sdlora.")
    return value, stack


def weights_told(entry: Entry) -> dict[str, object]:
    """What a stack's entry in JSON says besides its file; `change` in `words`, if anything varies."""
    told: dict[str, object] = {"weight": entry.weight, "text_weight": entry.text_weight}
    change = words.write(entry.change)
    return {**told, "change": change} if change else told


def entry_tag(value: object, *, name: str) -> Tag:
    """A stack's entry in JSON, by what it holds under `name`. Raises ConfigError when it is none."""
    told = value if isinstance(value, dict) else {}
    weights = [float(told[key]) for key in ("weight", "text_weight") if _is_number(told.get(key))]
    wanted = 1 if told.get("text_weight") is None else 2
    change, named = told.get("change", {}), told.get(name)
    sound = isinstance(named, str) and len(weights) == wanted and all(abs(w) <= LARGEST for w in weights)
    if not isinstance(named, str) or not sound or not _is_words(change):
        raise ConfigError(
            f"{value!r:.80} is no adapter of a stack.", f"It needs {name}, weight and text_weight."
        )
    return Tag(named, weights[0], weights[1] if wanted == 2 else None, *words.read(change))


def _is_words(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
