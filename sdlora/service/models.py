"""The base models on this machine: the built-in one, and what lies in `models/Stable-diffusion`."""

from pathlib import Path

from sdlora.errors import ModelError, SdloraError
from sdlora.files import safe_name
from sdlora.loading import BUILTIN, ModelInfo, describe


class Models:
    """The base models in `folder`, and the built-in one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> tuple[tuple[str, str], ...]:
        """(what a person reads, what a configuration says) of each, the built-in one first."""
        found = [("Built-in", BUILTIN)]
        for path in sorted(self.folder.rglob("*"), key=lambda p: p.as_posix().casefold()):
            inside_model = any((parent / "model_index.json").exists() for parent in path.parents)
            is_model = path.suffix == ".safetensors" or (path / "model_index.json").exists()
            if is_model and not inside_model:
                found.append((path.relative_to(self.folder).as_posix(), path.as_posix()))
        return tuple(found)

    def describe(self, model: str) -> ModelInfo:
        """What the model is. Raises ModelError in words when it cannot be used."""
        return describe(model, roots=[self.folder])

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
