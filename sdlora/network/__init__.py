"""Adapters on a model: files, attaching, stacks, merging."""
