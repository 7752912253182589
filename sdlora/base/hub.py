"""Base models from the Hugging Face Hub, by id: `owner/name`, or `owner/name/file.safetensors`.

huggingface_hub does the work and honours HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN; it goes on where
a connection broke, and after an interruption with the files that are still missing. Only what a family reads
is fetched, fp16 where there is a choice, and nothing pickled. What is here already needs no network.
"""

import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdlora.base.files import Config, ModelFiles, ModelFolder, damaged, pickled, read_header
from sdlora.base.original import OriginalFile
from sdlora.errors import ModelError, StorageError
from sdlora.files import free_bytes, storage_error

OnBytes = Callable[[int, int], None]
"""Called with the bytes that are there, and all, about once a second; what it raises ends the download."""
Check = Callable[[ModelFiles, Path], object]
"""Called with files that hold no weights yet, and what they are called; raises ModelError to refuse them."""

_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+\.safetensors))?")
_CONFIGURATION = re.compile(
    r"model_index\.json|(unet|vae|text_encoder(_2)?)/config\.json|scheduler/scheduler_config\.json"
    r"|tokenizer(_2)?/(vocab\.json|merges\.txt|tokenizer_config\.json|special_tokens_map\.json)"
)
_SPARE = 1 << 28  # bytes that stay free on the disk
_TELL = 1.0  # seconds between two calls of OnBytes


def is_id(model: str) -> bool:
    """Whether `model` has the form of a Hub id."""
    return _ID.fullmatch(model) is not None


def cached(model: str) -> Path | None:
    """The folder or file of a Hub id when all of it is on this machine.

    Of a repository without folders it is the one model that is here.
    """
    from huggingface_hub import try_to_load_from_cache

    repository, file = _split(model)
    found = try_to_load_from_cache(repository, file or "model_index.json")
    path = Path(found) if isinstance(found, str) else None if file else _only_file(repository)
    if path is None:
        return None
    path = path.parent if path.name == "model_index.json" else path
    try:
        for weights in ModelFolder(path).weights if path.is_dir() else [path]:
            read_header(weights)
    except ModelError:
        return None
    return path


def fetch(model: str, *, check: Check, on_bytes: OnBytes = lambda done, total: None) -> Path:
    """The folder or file of a Hub id, downloaded when it is not on this machine.

    Raises ModelError when there is no such model, or no network, or `check` does so, and StorageError when
    the disk is too small, before the download starts.
    """
    path = cached(model)
    if path is not None:
        return path
    from huggingface_hub import constants

    repository, file = _split(model)
    listing = _listing(repository)
    if file and file not in listing:
        raise ModelError(f"{repository} on the Hub holds no file {file}.", _near(model, file, listing))
    chosen = [file] if file else choose(model, listing)
    missing = {name: listing[name].file_size or 0 for name in chosen if listing[name].will_download}
    cache, needed = Path(constants.HF_HUB_CACHE), sum(missing.values())
    if (free := free_bytes(cache)) < needed + _SPARE:
        raise StorageError(
            f"{model} needs {needed / 1e9:.1f} GB, and {cache} has {free / 1e9:.1f} GB free.",
            "Free some space, or name a folder on another disk in HF_HOME.",
        )
    revision = next(iter(listing.values())).commit_hash
    small = [name for name in chosen if _CONFIGURATION.fullmatch(name)]
    large = [name for name in chosen if name not in small]
    # first what tells whether the gigabytes are worth it
    if small:
        path = _downloaded(repository, small, revision=revision, reporter=_reporter(None, 0))
        check(ModelFolder(path), Path(model))
    else:
        header = _header(repository, large[0], revision=revision)
        check(OriginalFile(Path(model), header=header), Path(model))
    reporter = _reporter(on_bytes, sum(missing.get(name, 0) for name in large))
    path = _downloaded(repository, large, revision=revision, reporter=reporter)
    if file:
        return path / file
    return path if "model_index.json" in chosen else path / chosen[0]


def choose(model: str, names: Iterable[str]) -> list[str]:
    """The files of a repository that make a base model. Raises ModelError when there is no such set."""
    names = set(names)
    if "model_index.json" in names and "unet/config.json" not in names:
        raise ModelError(
            f"{model} on the Hub has no UNet, so it is no Stable Diffusion model that sdlora knows.",
            "Choose an SD 1.x, SD 2.x or SDXL model.",
        )
    if "model_index.json" in names:
        weights = [file for component in _components(names) for file in _weights(model, component, names)]
        return sorted([*filter(_CONFIGURATION.fullmatch, names), *weights])
    single = sorted(name for name in names if name.endswith(".safetensors"))
    if len(single) == 1:
        return single
    if single:
        raise ModelError(
            f"{model} on the Hub holds {len(single)} models.",
            f"Name one of them, such as {model}/{single[0]}.",
        )
    raise ModelError(f"{model} on the Hub holds no base model in safetensors files.", "Choose another model.")


def _near(model: str, file: str, names: Iterable[str]) -> str:
    near = get_close_matches(file, [name for name in names if name.endswith(".safetensors")], n=1, cutoff=0.4)
    return f'Did you mean "{model.removesuffix(file)}{near[0]}"?' if near else "Look at its page of the Hub."


def _downloaded(repository: str, names: Iterable[str], *, revision: str, reporter: type) -> Path:
    """The folder that holds these files of the repository."""
    from huggingface_hub import snapshot_download

    exactly = [re.sub(r"([*?[])", r"[\1]", name) for name in names]
    with _reached(repository):
        folder = snapshot_download(repository, revision=revision, allow_patterns=exactly, tqdm_class=reporter)
    return Path(folder)


def _header(repository: str, file: str, *, revision: str) -> Config:
    """The header of a safetensors file of the repository, as `read_header` gives that of one that is here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        with _reached(repository):
            found = HfApi().parse_safetensors_file_metadata(repository, file, revision=revision)
    except SafetensorsParsingError as error:
        raise damaged(Path(repository) / file, "its header is no safetensors header") from error
    return {**{name: vars(tensor) for name, tensor in found.tensors.items()}, "__metadata__": found.metadata}


@contextmanager
def _reached(repository: str) -> Iterator[None]:
    """Inside, what the network or the disk did is told in words."""
    from huggingface_hub import constants, errors

    try:
        yield
    except OSError as error:
        if error.errno is None:  # of the network, not of the disk
            raise _unreachable(repository, error) from error
        raise storage_error(Path(constants.HF_HUB_CACHE), error) from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # re-exported without saying so
        raise _unreachable(repository, error) from error


def _only_file(repository: str) -> Path | None:
    """The one single-file model that this machine has of a repository: no VAE and no adapter, but a base."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        files = list(Path(snapshot_download(repository, local_files_only=True)).rglob("*.safetensors"))
    except LocalEntryNotFoundError:
        return None
    models = [file for file in files if _is_model(file)]
    return models[0] if len(models) == 1 else None


def _is_model(file: Path) -> bool:
    try:
        OriginalFile(file)
    except ModelError:
        return False
    return True


def _components(names: Iterable[str]) -> list[str]:
    known = ("text_encoder", "text_encoder_2", "unet", "vae")
    return [component for component in known if f"{component}/config.json" in names]


def _weights(model: str, component: str, names: set[str]) -> list[str]:
    stem = "model" if component.startswith("text") else "diffusion_pytorch_model"
    for variant in (".fp16", ""):
        if (whole := f"{component}/{stem}{variant}.safetensors") in names:
            return [whole]
    shards = re.compile(rf"{component}/{stem}(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)")
    if found := sorted(filter(shards.fullmatch, names)):
        return found
    raise pickled(Path(model) / component)


def _split(model: str) -> tuple[str, str]:
    match = _ID.fullmatch(model)
    if match is None:
        raise ModelError(f'"{model}" is no Hub id.', "A Hub id is written owner/name.")
    return match[1], match[2] or ""


def _listing(repository: str) -> Mapping[str, Any]:  # Any: huggingface_hub's DryRunFileInfo
    """Name -> what is known of every file of the repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, GatedRepoError, RepositoryNotFoundError

    try:
        found = snapshot_download(repository, dry_run=True, tqdm_class=_reporter(None, 0))
    except DryRunError as error:
        if isinstance(error.__cause__, GatedRepoError):
            raise ModelError(
                f"{repository} is given out only to people who agreed to its terms.",
                "Agree on its page of the Hub, and put your token into HF_TOKEN.",
            ) from error
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise ModelError(
                f'There is no model "{repository}", neither here nor on the Hub.',
                "Check the name; for a private model put your token into HF_TOKEN.",
            ) from error
        raise _unreachable(repository, error.__cause__ or error) from error
    return {info.filename: info for info in found}


def _unreachable(model: str, error: BaseException) -> ModelError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return ModelError(
            f"{model} is not on this machine, and HF_HUB_OFFLINE is set.", "Unset it to download."
        )
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ModelError(
        f"{model} could not be downloaded: {reason}",
        "Check the network, then try again: files that are here already are kept.",
    )


def _reporter(on_bytes: OnBytes | None, total: int) -> type:
    """A progress bar's class that shows nothing and tells `on_bytes` instead."""
    from huggingface_hub.utils.tqdm import tqdm

    told_at = 0.0

    class Reporter(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:  # Any: a progress bar's many options
            told = {**options, "disable": False, "file": io.StringIO()}
            super().__init__(*args, **told)  # type: ignore[no-untyped-call]  # of a foreign class

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal told_at
            shown: bool | None = super().update(n)
            now = time.monotonic()
            if on_bytes is not None and self.unit == "B" and (self.n >= total or now - told_at >= _TELL):
                told_at = now
                on_bytes(min(int(self.n), total), total)
            return shown

    return Reporter
