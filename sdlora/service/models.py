"""The base models on this machine: the built-in one, and what lies in the home's folders of models."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from sdlora.errors import ModelError, SdloraError
from sdlora.files import safe_name
from sdlora.loading import BUILTIN, ModelInfo, describe, models_in


class Models:
    """The base models in `folders`, and the built-in one. New ones go to the first folder."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folder = folders[0]
        self.folders = tuple(folders)

    def names(self) -> tuple[tuple[str, str], ...]:
        """(what a person reads, what a configuration says) of each, the built-in one first."""
        found = [("Built-in", BUILTIN)]
        for folder in self.folders:
            found += [(path.relative_to(folder).as_posix(), path.as_posix()) for path in models_in(folder)]
        return tuple(found)

    def describe(self, model: str) -> ModelInfo:
        """What the model is. Raises ModelError in words when it cannot be used."""
        return describe(model, roots=self.folders)

    def of(self, families: Collection[str]) -> list[str]:
        """The models of these families, as a configuration names them."""
        found = []
        for _, model in self.names():
            with suppress(SdloraError):  # one that cannot be used is of no family
                if self.describe(model).family in families:
                    found.append(model)
        return found

    def output(self, name: str) -> Path:
        """Where a new model called `name` goes. Raises ModelError when that name is taken or empty."""
        if not name.strip():
            raise ModelError("The new model needs a name.", "For example base-with-ink.")
        path = self.folder / safe_name(name)
        if path.exists():
            raise ModelError(f"{path.name} exists already.", "Choose another name.")
        return path

    def size(self, model: str) -> int:
        """The side in pixels that the model was trained at; 512 when it cannot be used."""
        try:
            return self.describe(model).native_size
        except SdloraError:
            return 512
