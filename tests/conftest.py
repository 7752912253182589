"""What every test meets: no network, no telemetry, a reason for each skip; fixtures of several folders."""

import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # heavy: a run of the light tests alone must not wait for torch
    from sdlora.contracts import Family

ROOT = Path(__file__).resolve().parent.parent

# Before anything of theirs is imported. Child processes inherit all of it, and find sdlora from any folder.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # workers side by side must not spin
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it once, whatever test comes first
os.environ.pop("SDLORA_HOME", None)


@cache
def find_chromium() -> str | None:
    """The browser that drives the page in tests."""
    names = (os.environ.get("SDLORA_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@cache
def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("browser") and find_chromium() is None:
        pytest.skip("no Chromium: `apt-get install chromium`, or name one in SDLORA_CHROMIUM")
    if item.get_closest_marker("gpu") and not has_cuda():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser, for playwright's `executable_path`."""
    return find_chromium() or pytest.skip("no Chromium")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """The folder of adapters that other tools wrote, which SDLORA_FIXTURES names."""
    folder = os.environ.get("SDLORA_FIXTURES")
    return Path(folder) if folder else pytest.skip("SDLORA_FIXTURES names no folder of other tools' files")


@dataclass(frozen=True)
class TinyModel:
    """A base model's folder and the family loaded from it, on the CPU in fp32."""

    folder: Path
    family: "Family"


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A Stable Diffusion 1 of true topology, 64 pixels, random weights of a fixed seed."""
    return make_tiny("sd1", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A Stable Diffusion 2 that predicts v; else as `tiny_sd1`."""
    return make_tiny("sd2", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """An SDXL; else as `tiny_sd1`."""
    return make_tiny("sdxl", tmp_path_factory.mktemp("models"))


def make_tiny(family: str, root: Path) -> TinyModel:
    """The tiny model of the family, in `root`/tiny-FAMILY and loaded."""
    import torch

    from sdlora.loading import load_family
    from tests import models

    makers = {"sd1": models.make_sd1, "sd2": models.make_sd2, "sdxl": models.make_sdxl}
    folder = makers[family](root / f"tiny-{family}")
    return TinyModel(folder, load_family(str(folder), device="cpu", dtype=torch.float32))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Six drawn pictures of three shapes, with captions."""
    from tests.pictures import make_folder

    return make_folder(tmp_path / "pictures")
