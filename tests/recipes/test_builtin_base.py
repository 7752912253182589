"""The recipe runs from end to end at its tiny scale, and what it once made at full scale is sound."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.quality import base, judge, painter
from recipes.builtin_base.__main__ import main
from recipes.builtin_base.export import LIMIT_BYTES
from sdlora.data.folder import scan

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "sdlora" / "assets" / "builtin"
PARTS = {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the whole recipe was run at its tiny scale, on made-up icons."""
    pytest.importorskip("resvg_py", reason="the recipe draws its icons with resvg-py")
    folder = tmp_path_factory.mktemp("tiny")
    places = {name: folder / name for name in ("work", "assets", "datasets")}
    flags = [word for name, path in places.items() for word in (f"--{name}", str(path))]
    command = [sys.executable, "-m", "recipes.builtin_base", "all", "--tiny", "--device", "cpu", *flags]
    subprocess.run(
        [*command, "--judge", str(folder / "judge" / "judge.safetensors")],
        cwd=ROOT, check=True, capture_output=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def shipped() -> painter.Painter:
    return painter.load(ASSETS)


def folder_of(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


@pytest.mark.slow
def test_the_tiny_recipe_makes_a_folder_that_paints(tiny: Path) -> None:
    assert folder_of(tiny / "assets") == PARTS
    pixels = painter.load(tiny / "assets").paint(["a circle", ""], steps=2)
    assert pixels.shape == (2, 3, 32, 32) and pixels.isfinite().all()


@pytest.mark.slow
def test_the_tiny_recipe_makes_a_judge_and_its_reference(tiny: Path) -> None:
    jury = judge.load(tiny / "judge" / "judge.safetensors")
    assert {"circle", "red-apple", "zibbo"} <= set(jury.subjects)
    assert set(json.loads((tiny / "judge" / "reference.json").read_text())) == {
        "real",
        "rebuilt",
        "rebuilt_l1",
    }


@pytest.mark.slow
def test_a_stage_that_is_done_is_not_done_again(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precision = torch.get_float32_matmul_precision()
    main(["vae", "--tiny", "--work", str(tiny / "work")])
    torch.set_float32_matmul_precision(precision)
    assert "[vae]" in (told := capsys.readouterr().out) and "steps" not in told


def test_the_shipped_base_has_the_layout_and_the_size_it_promises() -> None:
    index = json.loads((ASSETS / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline" and folder_of(ASSETS) == PARTS
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= LIMIT_BYTES


@pytest.mark.filterwarnings("ignore")
def test_diffusers_own_pipeline_loads_the_shipped_base_and_paints() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red apple", num_inference_steps=2).images[0]
    low, high = picture.convert("L").getextrema()
    assert picture.size == (128, 128) and high - low > 20


def test_the_shipped_base_paints_the_subject_and_the_background_it_is_asked_for(
    shipped: painter.Painter,
) -> None:
    jury = judge.load(ROOT / "benchmarks" / "quality" / "judge.safetensors")
    asked = [
        base.Request(subject=subject, set=style, background=background)
        for subject, style, background in (
            ("cat", "fluent-emoji", "sky blue"), ("rocket", "twemoji", "pink"),
            ("pizza", "noto", "white"), ("octopus", "noto", "yellow"),
        )
    ]  # fmt: skip
    told = base.verdict(jury, shipped.paint([r.prompt for r in asked], steps=12), asked)
    assert told["subject_top5"] >= 0.75 and told["background"] >= 0.75


def test_the_same_seed_paints_the_same_picture_in_every_batch(shipped: painter.Painter) -> None:
    together = shipped.paint(["a key", "a sun"], steps=3, seed=5)
    alone = shipped.paint(["a sun"], steps=3, seed=6)
    assert torch.allclose(together[1], alone[0], atol=1e-3)


@pytest.mark.parametrize(("name", "count"), [("ink-style", 24), ("character", 16)])
def test_a_sample_dataset_is_small_captioned_and_licensed(name: str, count: int) -> None:
    folder = ROOT / "datasets" / name
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == count and (folder / "LICENSE").is_file()
    assert all(path.with_suffix(".txt").read_text().strip() for path in pictures)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**20
    assert scan(folder).problems == ()
