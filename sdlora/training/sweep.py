"""Which runs a sweep asks for, what runs of one pass may differ in, and what they do differ in."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.errors import ConfigError

DATASET = "data.folder"
TRIGGER = "data.captions.trigger"
_NAMES = "output.name"


OWN = (
    "adapter.",
    "data.folder",
    "data.repeats",
    "data.captions.",
    "optimizer.",
    "schedule.",
    "output.",
    "preview.",
)
"""Options that may differ from run to run, by how their names begin."""
OWN_OF_LOOP = {"loop.steps", "loop.seed", "loop.clip", "loop.ema", "loop.save_every", "loop.keep"}


def require_alike(configs: Sequence[TrainConfig]) -> None:
    """Raises ConfigError that names what the runs must have in common and have not."""
    first, *others = (options.flatten(config) for config in configs)
    for other in others:
        for path in {**first, **other}:
            own = path.startswith(OWN) or path in OWN_OF_LOOP
            if not own and first.get(path) != other.get(path):
                raise ConfigError(
                    f"Runs that train together share {path}, but it is {first.get(path)} in one and"
                    f" {other.get(path)} in another.",
                    "Give it one value, or train them one after the other.",
                )


def asked(
    stem: str, datasets: Sequence[str], swept: Mapping[str, Sequence[str]], *, triggers: Sequence[str] = ()
) -> dict[str, dict[str, str]]:
    """Name -> own options of each run: every dataset with every combination of the swept values.

    A run is called after its values, and after its dataset when there are several, else `stem`. `triggers`
    are the words of the datasets, one for each. Raises ConfigError when there are not as many, or when two
    runs would be the same.
    """
    if triggers and len(triggers) != len(datasets):
        raise ConfigError(
            f"{len(triggers)} trigger words are given, and the number of datasets is {len(datasets)}.",
            "Give one for each dataset in their order, or one for all.",
        )
    word = {dataset: {TRIGGER: trigger} for dataset, trigger in zip(datasets, triggers, strict=False)}
    found: dict[str, dict[str, str]] = {}
    for dataset, *values in itertools.product(datasets, *swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        words = [f"{path.rpartition('.')[2]}-{value}" for path, value in chosen.items()]
        name = "-".join([stem if len(datasets) == 1 else Path(dataset).name, *words])
        if name in found:
            raise ConfigError(f"Two runs would both be {name}.", "Name every value and every dataset once.")
        found[name] = {DATASET: dataset, **word.get(dataset, {}), _NAMES: name, **chosen}
    return found


def differences(configs: Sequence[TrainConfig]) -> tuple[dict[str, options.Value | None], ...]:
    """For each run, path -> value of the options in which runs differ, besides their names.

    The option that changes most often from run to run is the last. A value is None where the option does not
    belong to the run's kind of adapter. Trigger words that go with their datasets are not told apart.
    """
    flat = [options.flatten(config) for config in configs]
    paths = dict.fromkeys(path for values in flat for path in values if path != _NAMES)
    differing = [path for path in paths if len({values.get(path) for values in flat}) > 1]
    words = {(values.get(DATASET), values.get(TRIGGER)) for values in flat}
    if TRIGGER in differing and len(words) == len({values.get(DATASET) for values in flat}):
        differing.remove(TRIGGER)
    differing.sort(key=lambda path: [values.get(path) == flat[0].get(path) for values in flat], reverse=True)
    return tuple({path: values.get(path) for path in differing} for values in flat)
