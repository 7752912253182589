"""The judge knows what it shall judge, and the loop to compare with learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.quality import judge, painter, plain
from benchmarks.quality.lora import DATASETS, INK_SET, NAME
from sdlora.loading import builtin

JUDGE = DATASETS.parent / "benchmarks" / "quality" / "judge.safetensors"


@pytest.fixture(scope="module")
def jury() -> judge.Jury:
    return judge.load(JUDGE)


def pictures(folder: Path) -> torch.Tensor:
    """[N,3,H,H] in [-1,1] of a dataset's pictures, in the order of their names."""
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def test_the_judge_knows_the_style_and_the_character_of_the_sample_datasets(jury: judge.Jury) -> None:
    ink, figure = pictures(DATASETS / "ink-style"), pictures(DATASETS / "character")
    subjects = [path.stem for path in sorted((DATASETS / "ink-style").glob("*.png"))]
    assert set(jury.styles_of(ink)) == {INK_SET} and jury.ranks(ink, subjects).max() < 5
    assert NAME not in jury.subjects_of(ink)
    assert INK_SET not in jury.styles_of(figure)
    captions = [path.read_text("utf-8") for path in sorted((DATASETS / "character").glob("*.txt"))]
    alone = torch.tensor([" and " not in caption for caption in captions])
    assert alone.sum() == len(captions) // 2 and set(jury.subjects_of(figure[alone])) == {NAME}
    beside = figure[~alone]
    assert jury.ranks(beside, [NAME] * len(beside)).max() < 3


@pytest.mark.slow
def test_the_plain_loop_makes_the_steps_it_is_given_and_learns() -> None:
    model = painter.load(builtin())
    before = model.paint(["an ink icon of a key"], steps=2)
    run = plain.PlainRun(rank=4, rate=1e-2, batch=2, steps=2)
    assert plain.train(model, DATASETS / "ink-style", run)["steps"] == 2
    assert not torch.equal(model.paint(["an ink icon of a key"], steps=2), before)
