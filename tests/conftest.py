"""Fixtures that more than one folder of tests uses."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sdlora.contracts import Family
from sdlora.loading import load_family
from tests.models import make_sd1
from tests.pictures import make_folder


@dataclass(frozen=True)
class TinyModel:
    """A base model's folder and the family loaded from it, on the CPU in fp32."""

    folder: Path
    family: Family


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A Stable Diffusion 1 of true topology, 64 pixels, random weights of a fixed seed."""
    folder = make_sd1(tmp_path_factory.mktemp("models") / "tiny-sd1")
    return TinyModel(folder, load_family(str(folder), device="cpu", dtype=torch.float32))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Six drawn pictures of three shapes, with captions."""
    return make_folder(tmp_path / "pictures")
