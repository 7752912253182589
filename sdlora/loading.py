"""From what a person calls a base model to a loaded family.

`builtin` is the base that ships with the package; else it is a folder in diffusers' layout, a single
.safetensors file in the original one, or a Hub id. Weights are only ever read from safetensors files.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files as resources
from pathlib import Path
from types import MappingProxyType

import torch

from sdlora.base import hub
from sdlora.base.files import (
    PICKLES,
    Config,
    ModelFiles,
    ModelFolder,
    check_unet,
    damaged,
    native_size,
    pickled,
)
from sdlora.base.original import OriginalFile
from sdlora.contracts import Family
from sdlora.errors import ModelAbsent, ModelError
from sdlora.families import FAMILIES
from sdlora.noise import NoiseProcess, Prediction

BUILTIN = "builtin"
_RESTORE = "Restore it: `git checkout -- sdlora/assets/builtin` in a clone, else install sdlora again."


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model is, told without its weights.

    `prediction` is None where only loading it will tell; `native_size` in pixels, `bytes` of weight files.
    """

    name: str
    family: str
    title: str
    prediction: Prediction | None
    zero_terminal: bool
    native_size: int
    path: Path
    bytes: int
    files: ModelFiles = field(compare=False)

    @property
    def text(self) -> str:
        """What was detected: "Stable Diffusion XL, 1024 pixels, predicts v, zero-terminal SNR"."""
        predicts = {"epsilon": "predicts epsilon", "v_prediction": "predicts v"}
        noise = [predicts.get(self.prediction or "", "what it predicts is measured at loading")]
        if self.zero_terminal:
            noise.append("zero-terminal SNR")
        return ", ".join([self.title, f"{self.native_size} pixels", *noise])


def load_family(
    model: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    family: str = "auto",
    prediction: str = "auto",
    zero_terminal: str = "auto",
    roots: Sequence[Path] = (),
    on_bytes: hub.OnBytes = lambda done, total: None,
    waiting: bool = False,
) -> Family:
    """The base model on `device`, frozen, computing in `dtype`.

    `family`, `prediction` and `zero_terminal` override what was detected, with the words of the options.
    If `waiting`, its networks lie in the machine's memory until `residence` brings them to `device`.
    `roots` are folders in which a bare name is looked for; a Hub id is downloaded, which tells `on_bytes`.
    Raises ModelError in one sentence when there is no such model, or it is damaged or of no known family.
    """

    def check(files: ModelFiles, name: Path) -> None:
        with _damage_told(model, name):
            check_unet(files.config("unet"), name)
            if family == "auto":
                _family_name(files, name)

    path = find(model, roots, otherwise=lambda: hub.fetch(model, check=check, on_bytes=on_bytes))
    with _damage_told(model, path):
        files = open_model(path, noise=_noise(prediction, zero_terminal))
        kind = FAMILIES.get(_family_name(files, path) if family == "auto" else family)
        place = torch.device("cpu" if waiting else device)
        loaded = kind.load(files, device=place, dtype=dtype)
        loaded.device = torch.device(device)
        return loaded


def describe(
    model: str,
    *,
    family: str = "auto",
    prediction: str = "auto",
    zero_terminal: str = "auto",
    roots: Sequence[Path] = (),
) -> ModelInfo:
    """What the model is, without loading it. The words and what is raised are those of `load_family`."""
    path = find(model, roots, otherwise=lambda: hub.cached(model))
    with _damage_told(model, path):
        files = open_model(path, noise=_noise(prediction, zero_terminal))
        kind = FAMILIES.get(_family_name(files, path) if family == "auto" else family)
        scheduler = files.config("scheduler")
        known = NoiseProcess.of_scheduler(scheduler) if scheduler.get("prediction_type", "epsilon") else None
        return ModelInfo(
            name=model if model == BUILTIN else path.stem if path.is_file() else path.name,
            family=kind.name,
            title=kind.title,
            prediction=known.prediction if known else None,
            zero_terminal=bool(scheduler.get("rescale_betas_zero_snr")),
            native_size=native_size(files),
            path=path,
            bytes=sum(file.stat().st_size for file in files.weights),
            files=files,
        )


def find(model: str, roots: Sequence[Path], *, otherwise: Callable[[], Path | None]) -> Path:
    """The folder or file that `model` names: itself, in or below one of `roots`, or `otherwise` for a Hub id.

    Raises ModelError when there is none.
    """
    if model == BUILTIN:
        return builtin()
    if not model.strip():
        raise ModelError("No base model is named.", "Give `builtin`, a folder, a file or a Hub id.")
    for path in (Path(model).expanduser(), *(root / model for root in roots)):
        if path.exists():
            return path.resolve()
    known = {path.stem if path.is_file() else path.name: path for root in roots for path in models_in(root)}
    if model in known:
        return known[model].resolve()
    if hub.is_id(model):
        if (fetched := otherwise()) is not None:
            return fetched
        raise ModelAbsent(f"{model} is not on this machine yet.", "It is downloaded when it is first used.")
    near = get_close_matches(model, known, n=1)
    places = ", ".join(str(root) for root in roots) or "the current folder"
    raise ModelError(
        f'There is no model "{model}".',
        f'Did you mean "{near[0]}"?'
        if near
        else f"Give `builtin`, a folder, a file or a Hub id; names are looked up in {places}.",
    )


def located(model: str, roots: Sequence[Path]) -> str:
    """`model` as it is found from everywhere: as a path when it lies on this machine, else as it is.

    Raises ModelError when it is neither there nor a Hub id.
    """
    hub_id = Path()
    found = find(model, roots, otherwise=lambda: hub_id)
    return model if model == BUILTIN or found is hub_id else str(found)


def models_in(folder: Path) -> Iterator[Path]:
    """The single files and model folders in `folder` and below, by name."""
    for path in sorted(folder.rglob("*"), key=lambda path: path.as_posix().casefold()):
        inside_model = any((parent / "model_index.json").exists() for parent in path.parents)
        is_model = path.suffix == ".safetensors" or (path / "model_index.json").exists()
        if is_model and not inside_model:
            yield path


def builtin() -> Path:
    """The folder of the built-in base, or the one that the variable SDLORA_BUILTIN names."""
    named = os.environ.get("SDLORA_BUILTIN")
    path = Path(named) if named else Path(str(resources("sdlora"))) / "assets" / "builtin"
    if not (path / "model_index.json").is_file():
        raise ModelError(f"The built-in base lacks its file {path / 'model_index.json'}.", _RESTORE)
    return path


def open_model(path: Path, *, noise: Config = MappingProxyType({})) -> ModelFiles:
    """The model's files, looked at but not read; `noise` overrides what they say in their scheduler.

    Raises ModelError when they are no base model.
    """
    if path.is_dir() and (path / "model_index.json").is_file():
        return ModelFolder(path, noise=noise)
    if path.is_dir():
        raise ModelError(
            f"{path} holds no model_index.json, so it is no model folder.",
            "Choose the folder that holds unet/, vae/ and text_encoder/, or a .safetensors file.",
        )
    if path.suffix in PICKLES:
        raise pickled(path)
    return OriginalFile(path, noise=noise)


def _noise(prediction: str, zero_terminal: str) -> Config:
    """The words of two options as a scheduler's configuration has them; `auto` says nothing."""
    told: dict[str, object] = {} if prediction == "auto" else {"prediction_type": prediction}
    if zero_terminal != "auto":
        told["rescale_betas_zero_snr"] = zero_terminal == "on"
    return told


@contextmanager
def _damage_told(model: str, path: Path) -> Iterator[None]:
    """Inside, a configuration of the wrong form is a ModelError, and the built-in base says what mends it."""
    try:
        yield
    except ModelError as error:
        raise ModelError(error.message, _RESTORE if model == BUILTIN else error.hint) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"its configuration is of another form ({type(error).__name__}: {error})"
        raise damaged(path, reason) from error


def _family_name(files: ModelFiles, path: Path) -> str:
    for name, kind in FAMILIES.items():
        if kind.matches(files):
            return name
    networks = ", ".join(sorted(files.components)) or "nothing that is known here"
    known = ", ".join(kind.title for _, kind in FAMILIES.items())
    raise ModelError(f"{path} is of no known family: it holds {networks}.", f"Known are: {known}.")
