"""Which layers of a base are adapted: presets and patterns become layers."""

import re
from collections.abc import Iterator
from difflib import get_close_matches

from torch import nn

from sdlora.adapters import Placement
from sdlora.contracts import Family, Layer
from sdlora.errors import ConfigError


def resolve(
    family: Family, placement: Placement, types: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
) -> tuple[Layer, ...]:
    """The layers of `types` that the placement names, in the order of the model.

    Raises ConfigError for a pattern that is no regular expression or matches no layer.
    """
    candidates = [layer for layer, module in layers(family, types) if _wanted(layer.component, placement)]
    if not candidates:
        raise ConfigError(
            "Neither the UNet nor the text encoder is to be taught.",
            "Switch adapter.unet or adapter.text_encoder on.",
        )
    chosen: set[Layer] = set()
    for name in filter(None, (part.strip() for part in placement.targets.split(","))):
        # A preset's patterns match whole paths, a person's any part of one.
        whole = "|".join(f"^(?:{pattern})$" for pattern in family.presets.get(name, ()))
        pattern = _compiled(whole or name)
        matched = {layer for layer in candidates if pattern.search(layer.path)}
        if not matched:
            raise ConfigError(
                f'adapter.targets = "{name}" matches no layer of {family.title}.', _nearest(name, family)
            )
        chosen |= matched
    if not chosen:
        raise ConfigError("adapter.targets is empty.", f"Presets: {', '.join(family.presets)}.")
    return tuple(layer for layer in candidates if layer in chosen)


def layers(family: Family, types: tuple[type[nn.Module], ...]) -> Iterator[tuple[Layer, nn.Module]]:
    """Every layer of `types` in the family's components, with its module."""
    for component, root in family.components.items():
        for path, module in root.named_modules():
            if isinstance(module, types):
                yield Layer(component, path), module


def _wanted(component: str, placement: Placement) -> bool:
    return placement.unet if component == "unet" else placement.text_encoder


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f'adapter.targets = "{pattern}" is no regular expression: {error}.',
            "Name a preset, or a part of the layers' paths such as attn2.",
        ) from None


def _nearest(name: str, family: Family) -> str:
    parts = {part for layer, _ in layers(family, (nn.Linear, nn.Conv2d)) for part in layer.path.split(".")}
    words = {*family.presets, *(part for part in parts if not part.isdigit())}
    near = get_close_matches(name, words, n=1)
    return f'Did you mean "{near[0]}"?' if near else f"Presets: {', '.join(family.presets)}."
