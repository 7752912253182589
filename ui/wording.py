"""Options as the page calls them, also in sentences that call them by their paths."""

import re

from sdlora.config import TrainConfig
from sdlora.options import Leaf, walk

# What the sections of a run's options are called.
SECTIONS = {
    "base": "Base model",
    "data": "Pictures and captions",
    "adapter": "Adapter",
    "objective": "Loss",
    "optimizer": "Optimizer",
    "schedule": "Learning rate over time",
    "loop": "Training loop",
    "preview": "Previews",
    "output": "The file that comes out",
}


def label_of(leaf: Leaf) -> str:
    """The words for a leaf; what chooses a plug-in is called after its section."""
    if leaf.path.endswith(".kind") and not leaf.meta.label:
        return leaf.path.split(".")[-2].replace("_", " ").capitalize()
    return leaf.label


def in_labels(sentence: str) -> str:
    """The sentence with a run's options called as their fields are: `loop.steps` is “Steps”."""
    return _PATH.sub(lambda found: _NAMES[found[1]], sentence)


def _name(leaf: Leaf) -> str:
    """The label, after the section that has to be opened to find it."""
    folded = "" if leaf.meta.level == "basic" else f"{SECTIONS[leaf.path.split('.')[0]]} › "
    return f"“{folded}{label_of(leaf)}”"


_NAMES = {leaf.path: _name(leaf) for leaf in walk(TrainConfig) if leaf.meta.level != "hidden"}
_PATH = re.compile(
    r"(?<![\w.-])(?:--)?(" + "|".join(map(re.escape, sorted(_NAMES, reverse=True))) + r")(?!\w|\.\w)"
)
