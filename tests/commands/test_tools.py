"""The commands that work on adapters, as they are typed."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdlora.adapters import SPECS
from sdlora.cli import main
from sdlora.network.attach import create
from sdlora.network.chain import set_parent
from sdlora.network.codec import AdapterFile, save
from sdlora.network.container import Container, write
from tests.conftest import TinyModel
from tests.network.test_attach import awake
from tests.network.test_stack import saved


@pytest.fixture
def library(tiny_sd1: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of adapters of a home, with `one`, and `two` in a folder below, which builds on it."""
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path))
    folder = tmp_path / "models/Lora"
    (folder / "below").mkdir(parents=True)
    saved(tiny_sd1.family, folder / "one.safetensors", seed=1, targets="attn2.to_k", rank=3)
    saved(tiny_sd1.family, folder / "below/two.safetensors", seed=2, targets="attn2.to_k", rank=3)
    set_parent(folder / "below/two.safetensors", folder / "one.safetensors")
    return folder


def test_names_of_the_library_are_files_for_every_tool(library: Path, tmp_path: Path) -> None:
    assert main(["resize", "two", "--rank", "2", "--output", str(tmp_path / "small.safetensors")]) == 0
    assert {a[0] for a in shapes(tmp_path / "small.safetensors")} == {2}
    assert main(["merge", "one:0.5", "two", "--output", str(tmp_path / "both.safetensors")]) == 0
    assert {a[0] for a in shapes(tmp_path / "both.safetensors")} == {6}


def test_inspect_draws_where_an_adapter_acts(library: Path, tmp_path: Path) -> None:
    assert main(["inspect", "one", "--pictures", str(tmp_path / "new/folder")]) == 0
    for name in ("norms", "spectra"):
        with Image.open(tmp_path / f"new/folder/{name}.png") as picture:
            assert picture.width == 640
    rows = list(csv.reader((tmp_path / "new/folder/spectra.csv").read_text().splitlines()))
    assert rows[0] == ["layer", "1", "2", "3"] and len(rows) == 1 + len(shapes(library / "one.safetensors"))


def test_inspect_draws_other_kinds_on_the_base_that_is_named(
    library: Path, tiny_sd1: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = awake(create(tiny_sd1.family, SPECS.get("norm")(targets="norm1"), seed=0))
    save(library / "norm.safetensors", network.adapters, family_name="sd1")
    words = ["inspect", "norm", "--pictures", str(tmp_path)]
    assert main(words) == 2 and "Name the base model" in capsys.readouterr().err
    assert main([*words, "--base", str(tiny_sd1.folder)]) == 0
    assert "one direction each" in capsys.readouterr().err and (tmp_path / "norms.png").exists()


def test_generate_tells_what_was_applied(
    library: Path, tiny_sd1: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Container.open(library / "below/two.safetensors")
    tensors = {**held.read(held.entries), "junk.key": torch.ones(1)}
    tensors = {name: 0 * tensor for name, tensor in tensors.items()}
    write(library / "below/two.safetensors", tensors, held.metadata)
    words = ["generate", "x", "--base", str(tiny_sd1.folder), "--steps", "1", "--adapter", "two:0.1:0"]
    assert main([*words, "--output", str(tmp_path / "x.png")]) == 0
    told = capsys.readouterr().err
    layers = len(shapes(library / "one.safetensors"))
    for sentence in (
        f"one.safetensors: {layers} layers of unet",
        f"two.safetensors: {layers} layers of unet",
        "two.safetensors: It changes nothing: all its deltas are zero.",
        f"two.safetensors: 1 of its {3 * layers + 1} keys name nothing in the base, such as junk.key",
    ):
        assert sentence in told


def shapes(path: Path) -> list[tuple[int, ...]]:
    """Of the factors that read."""
    file = AdapterFile.open(path)
    return [s.shape for key, s in file.container.entries.items() if key.endswith("lora_down.weight")]
