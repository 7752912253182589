"""Starting points for a run: three lengths and three subjects, each a few options unlike the defaults.

The command line's `--preset` and the page's cards read the same table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from sdlora.errors import ConfigError
from sdlora.options import Value


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of options: dotted path -> value."""

    title: str
    summary: str
    values: Mapping[str, Value]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "quick": Preset(
            title="Quick",
            summary="A first look. Few steps, high learning rate.",
            values={
                "loop.steps": 300,
                "loop.batch_size": 2,
                "adapter.rank": 16,
                "adapter.alpha": 16.0,
                "optimizer.lr": 3e-4,
                "optimizer.text_lr": 1e-4,
                "preview.every": 100,
                "loop.ema": 0.0,
            },
        ),
        "balanced": Preset(
            title="Balanced",
            summary="Right for most sets of 10 to 50 pictures.",
            values={
                "loop.steps": 1000,
                "loop.batch_size": 2,
                "adapter.rank": 16,
                "adapter.alpha": 8.0,
                "optimizer.lr": 2e-4,
                "optimizer.text_lr": 5e-5,
                "preview.every": 0,
                "loop.ema": 0.0,
            },
        ),
        "thorough": Preset(
            title="Thorough",
            summary="Finest detail. Low learning rate, averaged weights.",
            values={
                "loop.steps": 3000,
                "loop.batch_size": 2,
                "adapter.rank": 32,
                "adapter.alpha": 16.0,
                "optimizer.lr": 1e-4,
                "optimizer.text_lr": 3e-5,
                "preview.every": 0,
                "loop.ema": 0.998,
            },
        ),
    }
)

# What some presets change is said by all, so that choosing one undoes another.
COMMON: Mapping[str, Value] = MappingProxyType(
    {
        "adapter.text_encoder": True,
        "schedule.shape": "cosine",
        "objective.min_snr_gamma": 5.0,
        "objective.preservation": 0.0,
    }
)

# The options that the page shows together with the presets.
SUBJECT, MODEL = "output.subject", "base.model"

# What a subject asks for whatever the length: a style must answer to captions that never name it. Nothing is
# mirrored, a style neither: that cost the measured one five pictures of a hundred (see the model card).
SUBJECTS: Mapping[str, Mapping[str, Value]] = MappingProxyType(
    {
        "style": {"data.captions.dropout": 0.1},
        "character": {"data.captions.dropout": 0.05},
        "object": {"data.captions.dropout": 0.05},
    }
)


# The built-in base is narrow, so each weight must move further: its learning rates are some ten times those
# of the large bases. All are measured, see its model card. A quick style minds the noisy steps where a style
# shows, and leaves the text encoder alone, which teaches it no better.
BUILTIN: Mapping[str, Mapping[str, Value]] = MappingProxyType(
    {
        "quick": {
            "loop.steps": 225,
            "optimizer.lr": 4e-3,
            "optimizer.text_lr": 1e-3,
            "adapter.text_encoder": False,
            "objective.min_snr_gamma": 2.0,
        },
        "balanced": {"optimizer.lr": 2.5e-3, "optimizer.text_lr": 6e-4},
        "thorough": {"optimizer.lr": 1.2e-3, "optimizer.text_lr": 3e-4},
    }
)
# A figure is in its name more than in its look, so the text encoder learns faster than the UNet. It is kept
# from showing where nobody called it, and learns until it holds beside a style (decision 010).
FIGURES: Mapping[str, Mapping[str, Value]] = MappingProxyType(
    {
        "quick": {
            "loop.steps": 300,
            "optimizer.lr": 3e-3,
            "optimizer.text_lr": 4e-3,
            "objective.preservation": 0.2,
        },
        "balanced": {
            "loop.steps": 600,
            "optimizer.lr": 2e-3,
            "optimizer.text_lr": 3e-3,
            "objective.preservation": 0.2,
        },
        "thorough": {
            "loop.steps": 1500,
            "optimizer.lr": 6e-4,
            "optimizer.text_lr": 1.2e-3,
            "objective.preservation": 0.2,
        },
    }
)


def preset(name: str, *, subject: str = "style", model: str = "") -> dict[str, Value]:
    """The options of the preset `name` for `subject` (style, character or object) on the base `model`.

    Raises ConfigError for an unknown name, naming the nearest.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(PRESETS)}."
        raise ConfigError(f'"{name}" is no known preset.', hint)
    return {
        **COMMON,
        **PRESETS[name].values,
        **SUBJECTS.get(subject, {}),
        **(_builtin(name, subject) if model == "builtin" else {}),
    }


def _builtin(name: str, subject: str) -> dict[str, Value]:
    return {**(BUILTIN if subject == "style" else FIGURES)[name], "loop.batch_size": 4}
