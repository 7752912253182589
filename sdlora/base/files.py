"""The files of a base model, looked at without reading a weight.

`ModelFiles` is what a family is recognised by and loaded from. Everything that is wrong with a file is said
here in one sentence, before any long work starts.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import safe_open
from torch import Tensor

from sdlora.errors import ModelError
from sdlora.files import sha256

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Config = Mapping[str, Any]  # Any: values of a foreign JSON file

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_NETWORKS = frozenset(("unet", "vae", "text_encoder", "text_encoder_2"))
_HEADER_LIMIT = 100 << 20


class ModelFiles(Protocol):
    """A base model on disk: networks by component, named as diffusers names them."""

    path: Path

    @property
    def components(self) -> frozenset[str]:
        """The networks that are there, e.g. `unet`."""
        ...

    @property
    def weights(self) -> tuple[Path, ...]:
        """Every file that holds weights."""
        ...

    def config(self, component: str) -> Config:
        """The configuration of a component or of the `scheduler`."""
        ...

    def tensors(self, component: str) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of a component on the CPU, read one by one."""
        ...

    def tokenizer(self, component: str) -> "CLIPTokenizer":
        """The tokenizer called `tokenizer` or `tokenizer_2`."""
        ...


class ModelFolder:
    """A folder in diffusers' layout: one sub-folder a component; `noise` overrides its scheduler."""

    def __init__(self, path: Path, *, noise: Config = MappingProxyType({})) -> None:
        self.path, self._noise = path, noise
        self.index = read_json(path / "model_index.json")
        # an absent part is written as [null, null]
        parts = {name for name, part in self.index.items() if isinstance(part, list) and part[0]}
        self.components = frozenset(parts & _NETWORKS)
        if "unet" not in parts:
            raise ModelError(
                f"The model folder {path} is for {self.index.get('_class_name')}, which has no UNet.",
                "Choose an SD 1.x, SD 2.x or SDXL model.",
            )
        needed = parts & (_NETWORKS | {"tokenizer", "tokenizer_2", "scheduler"})
        missing = sorted(name for name in needed if not (path / name).is_dir())
        if missing:
            raise ModelError(
                f"The model folder {path} lacks its sub-folder {', '.join(missing)}.",
                "Copy or download the model again, with all of its sub-folders.",
            )

    @property
    def weights(self) -> tuple[Path, ...]:
        return tuple(file for name in sorted(self.components) for file in self._files(name))

    def config(self, component: str) -> Config:
        if component == "scheduler":
            return {**read_json(self.path / component / "scheduler_config.json"), **self._noise}
        return read_json(self.path / component / "config.json")

    def tensors(self, component: str) -> Iterator[tuple[str, Tensor]]:
        for file in self._files(component):
            yield from read_tensors(file)

    def tokenizer(self, component: str) -> "CLIPTokenizer":
        from transformers import CLIPTokenizer  # takes seconds, and listing models needs none of it

        folder = self.path / component
        read_json(folder / "vocab.json")
        if not (folder / "merges.txt").is_file():
            raise _lacks(folder / "merges.txt")
        try:
            tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise damaged(folder, str(error)) from error
        return tokenizer

    def _files(self, component: str) -> tuple[Path, ...]:
        """The weight files of a component: full precision before fp16, whole before in shards."""
        folder = self.path / component
        stem = "model" if component.startswith("text") else "diffusion_pytorch_model"
        for variant in ("", ".fp16"):
            whole = folder / f"{stem}{variant}.safetensors"
            shards = folder / f"{stem}.safetensors.index{variant}.json"
            if whole.is_file():
                return (whole,)
            if shards.is_file():
                names = sorted(set(read_json(shards).get("weight_map", {}).values()))
                return tuple(folder / Path(str(name)).name for name in names)
        if any(file.suffix in PICKLES for file in folder.iterdir()):
            raise pickled(folder)
        raise ModelError(
            f"The folder {folder} holds no {stem}.safetensors.", "Copy or download the model again."
        )


def read_json(path: Path) -> dict[str, Any]:  # Any: values of a foreign JSON file
    """The object in a JSON file. Raises ModelError when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _lacks(path) from None
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(value, dict):
        raise damaged(path, "it is no JSON object")
    return value


def read_header(path: Path) -> dict[str, Any]:  # Any: values of a foreign JSON header
    """The header of a safetensors file: tensor name -> {dtype, shape, data_offsets}, and `__metadata__`.

    Raises ModelError when the header lies or the file is shorter than the header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _HEADER_LIMIT + 1
        if length > min(_HEADER_LIMIT, size - 8):
            raise damaged(path, "it has no safetensors header")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            end = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise damaged(path, "its header is no safetensors header") from error
    if size < end:
        raise ModelError(
            f"{path} is incomplete: {size:,} of {end:,} bytes are there.", "Download the file again."
        )
    return dict(header)


def read_tensors(path: Path, *, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of a safetensors file whose name begins with `prefix`, on the CPU."""
    names = [name for name in read_header(path) if name.startswith(prefix) and name != "__metadata__"]
    with safe_open(path, framework="pt") as file:
        for name in names:
            yield name, file.get_tensor(name)


def weights_hash(files: ModelFiles) -> str:
    """Hex SHA-256 of the weights: of the one file, or of the hashes of several in their order."""
    hashes = [_file_hash(file, *_stamp(file)) for file in files.weights]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def native_size(files: ModelFiles) -> int:
    """The side in pixels that the model was trained at."""
    levels = len(files.config("vae")["block_out_channels"])
    return int(files.config("unet")["sample_size"]) << (levels - 1)


def check_unet(config: Config, path: Path) -> None:
    """Raises ModelError, by name, for the configuration of a UNet that is no text-to-image one."""
    channels = config.get("in_channels")
    kinds = {9: "an inpainting model", 8: "an image-editing model", 5: "a depth model"}
    if channels != 4:
        raise ModelError(
            f"{path} is {kinds.get(int(channels or 0), 'no text-to-image model')}: "
            f"its UNet takes {channels} channels instead of 4.",
            "Choose the text-to-image model that it was made from.",
        )
    if config.get("time_cond_proj_dim"):
        raise ModelError(
            f"{path} is an LCM: its UNet is told the guidance, which training would have to know.",
            "Choose the model that it was made from, with an LCM adapter for few steps.",
        )


def damaged(path: Path, reason: str) -> ModelError:
    """The error for a file that cannot be read."""
    return ModelError(f"{path} is damaged: {reason}.", "Copy or download the file again.")


def pickled(path: Path) -> ModelError:
    """The error for weights that only Python's pickle could read."""
    return ModelError(
        f"{path} holds pickled weights, which can run any program when opened.",
        "Take the model's .safetensors file, or convert it where you trust it: load it with "
        "torch.load(..., weights_only=True) and write it with safetensors.torch.save_file.",
    )


def _lacks(path: Path) -> ModelError:
    return ModelError(f"The model lacks its file {path}.", "Copy or download the model again.")


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, modified: int) -> str:
    # size and time of change make the remembered hash that of this content
    return sha256(path)
