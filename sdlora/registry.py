"""Plug-ins of a package, found by name.

A plug-in folder (`families/`, `adapters/`, `objectives/`, `optimizers/`) holds one feature a file.
Its registry imports every module of the folder on first use, so that no list has to be edited.
"""

import importlib
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from typing import Generic, TypeVar

from sdlora.errors import ConfigError

T = TypeVar("T", bound=type)


class Registry(Generic[T]):
    """The classes that the modules of `package` register, by name."""

    def __init__(self, package: str, noun: str) -> None:
        self.package = package
        self.noun = noun
        self._found: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: the class is found under `name` from now on."""

        def keep(plugin: T) -> T:
            if name in self._found:
                raise ValueError(f"two {self.noun}s are called {name!r}")
            self._found[name] = plugin
            return plugin

        return keep

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._load()))

    def items(self) -> tuple[tuple[str, T], ...]:
        """All (name, plug-in) pairs, sorted by name."""
        return tuple(sorted(self._load().items()))

    def get(self, name: str) -> T:
        """The plug-in called `name`. Raises ConfigError that names the nearest one."""
        found = self._load()
        if name not in found:
            near = get_close_matches(name, found, n=1)
            hint = f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(sorted(found))}."
            raise ConfigError(f'"{name}" is no known {self.noun}.', hint)
        return found[name]

    def _load(self) -> dict[str, T]:
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._loaded = True
        return self._found
