"""Base model families. One file here is one family: how it is recognised, loaded, and asked to predict."""

from sdlora.contracts import Family
from sdlora.registry import Registry

FAMILIES: Registry[type[Family]] = Registry("sdlora.families", "model family")

__all__ = ["FAMILIES"]
