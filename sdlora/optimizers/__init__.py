"""Optimizers. One file here is one optimizer: its options and how it is built from parameter groups."""

from sdlora.registry import Registry

OPTIMIZERS: Registry[type] = Registry("sdlora.optimizers", "optimizer")

__all__ = ["OPTIMIZERS"]
