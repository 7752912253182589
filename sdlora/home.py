"""Where a person's things lie: one folder with the sub-folders that other tools use as well.

    datasets/  models/Stable-diffusion/  models/Lora/  runs/  outputs/txt2img-images/  cache/  trash/

It is the folder named by the variable SDLORA_HOME, else the current one. Base models and adapters of other
tools are found where they are: in folders named by flags, and in those of ComfyUI's extra_model_paths.yaml.
The variable SDLORA_CACHE_GB limits what is kept in cache/.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from sdlora import extra_paths
from sdlora.errors import ConfigError

# As flags of the command line and of the page, and as variables for the processes that these start.
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "--ckpt-dir": "SDLORA_CKPT_DIR",
        "--lora-dir": "SDLORA_LORA_DIR",
        "--extra-model-paths-config": "SDLORA_EXTRA_MODEL_PATHS",
    }
)
CACHE_GB = "SDLORA_CACHE_GB"


@dataclass(frozen=True)
class Home:
    """The folders under `root`, each replaceable by one that a person has already.

    What is new goes to `models` and `adapters`; what is there is looked for in `more_...` too.
    """

    root: Path
    datasets: Path = field(default=Path("datasets"))
    models: Path = field(default=Path("models/Stable-diffusion"))
    adapters: Path = field(default=Path("models/Lora"))
    runs: Path = field(default=Path("runs"))
    outputs: Path = field(default=Path("outputs/txt2img-images"))
    cache: Path = field(default=Path("cache"))
    trash: Path = field(default=Path("trash"))
    more_models: tuple[Path, ...] = ()
    more_adapters: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name in ("datasets", "models", "adapters", "runs", "outputs", "cache", "trash"):
            # an absolute folder stays what it is
            object.__setattr__(self, name, (self.root / getattr(self, name)).expanduser())

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """The folders that base models are looked for in, in this order."""
        return tuple(dict.fromkeys((self.models, *self.more_models)))

    @property
    def adapter_folders(self) -> tuple[Path, ...]:
        """The folders that adapters are looked for in, in this order."""
        return tuple(dict.fromkeys((self.adapters, *self.more_adapters)))

    @classmethod
    def default(cls) -> "Home":
        """The home that SDLORA_HOME names, else the current folder. Raises ConfigError like `at`."""
        return cls.at(Path(os.environ.get("SDLORA_HOME") or Path.cwd()).expanduser().resolve())

    @classmethod
    def at(cls, root: Path, **named: Path) -> "Home":
        """The home at `root` with the folders elsewhere that the variables and ComfyUI's file name.

        Raises ConfigError when that file is not of its form.
        """
        files = [root / extra_paths.NAME] if (root / extra_paths.NAME).is_file() else []
        extras = [
            extra
            for file in (*files, *_named("--extra-model-paths-config"))
            for extra in extra_paths.read(file)
        ]
        extras.sort(key=lambda extra: not extra.is_default)

        def folders(flag: str, kind: str) -> tuple[Path, ...]:
            return (*_named(flag), *(extra.folder for extra in extras if extra.kind == kind))

        more_models, more_adapters = folders("--ckpt-dir", "checkpoints"), folders("--lora-dir", "loras")
        return cls(root, **named, more_models=more_models, more_adapters=more_adapters)


def cache_limit() -> int:
    """Bytes that encoded images and captions may take: what SDLORA_CACHE_GB says, else 20 GB.

    Raises ConfigError when that is no such number.
    """
    told = os.environ.get(CACHE_GB) or "20"
    try:
        return int(float(told) * 1e9)
    except (ValueError, OverflowError):
        raise ConfigError(f'{CACHE_GB} = "{told}" is no number of gigabytes.', "Write 20, or 0.5.") from None


def name_elsewhere(flag: str, path: str) -> None:
    """This process and those that it starts know `path` too, by a flag of ELSEWHERE."""
    found = [*_named(flag), Path(path).expanduser().resolve()]
    os.environ[ELSEWHERE[flag]] = os.pathsep.join(map(str, found))


def _named(flag: str) -> list[Path]:
    return [Path(part) for part in os.environ.get(ELSEWHERE[flag], "").split(os.pathsep) if part]
