"""Adapter kinds. One file here is one kind: its tensors in a file, its delta, its training form, its options."""

from sdlora.contracts import Adapter
from sdlora.registry import Registry

KINDS: Registry[type[Adapter]] = Registry("sdlora.adapters", "adapter kind")
SPECS: Registry[type] = Registry("sdlora.adapters", "adapter kind")

__all__ = ["KINDS", "SPECS"]
