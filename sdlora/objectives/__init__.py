"""Training objectives. One file here is one objective: its options and its loss per sample."""

from sdlora.registry import Registry

OBJECTIVES: Registry[type] = Registry("sdlora.objectives", "objective")

__all__ = ["OBJECTIVES"]
