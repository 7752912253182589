"""Where a person's things lie: one folder with the sub-folders that other tools use as well.

    datasets/  models/Stable-diffusion/  models/Lora/  runs/  outputs/txt2img-images/  cache/  trash/

It is the folder named by the variable SDLORA_HOME, else the current one.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The folders under `root`, each replaceable by one that a person has already."""

    root: Path
    datasets: Path = field(default=Path("datasets"))
    models: Path = field(default=Path("models/Stable-diffusion"))
    adapters: Path = field(default=Path("models/Lora"))
    runs: Path = field(default=Path("runs"))
    outputs: Path = field(default=Path("outputs/txt2img-images"))
    cache: Path = field(default=Path("cache"))
    trash: Path = field(default=Path("trash"))

    def __post_init__(self) -> None:
        for name in ("datasets", "models", "adapters", "runs", "outputs", "cache", "trash"):
            # an absolute folder stays what it is
            object.__setattr__(self, name, (self.root / getattr(self, name)).expanduser())

    @classmethod
    def default(cls) -> "Home":
        """The home that SDLORA_HOME names, else the current folder."""
        return cls(Path(os.environ.get("SDLORA_HOME") or Path.cwd()).expanduser().resolve())
