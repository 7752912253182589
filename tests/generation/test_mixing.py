"""Pictures of stacks that change over the steps, the blocks and the picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.generation.prompt import extract_tags
from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.network.change import Change, parse_curve, window
from sdlora.network.stack import Entry, Patch
from tests.conftest import TinyModel
from tests.network.test_stack import equal, saved, weights

REQUEST = GenerateRequest(prompt="a red cat", negative="blue", steps=5, seed=7)
WEIGHT = 4.0  # enough that the UNet of random weights answers to it, at text weight 0


@pytest.fixture(scope="module")
def ink(tiny_sd1: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes pictures a lot."""
    return saved(tiny_sd1.family, tmp_path_factory.mktemp("loras") / "ink.safetensors")


def drawn(tiny: TinyModel, *stack: Entry, patch: Patch | None = None, count: int = 1) -> np.ndarray:
    """The last of `count` pictures with this stack, as [H,W,3] of 0 to 255."""
    request = replace(REQUEST, stack=stack, count=count)
    return np.asarray(generate(tiny.family, request, patch=patch)[-1]).astype(int)


def curved(ink: Path, curve: str) -> Entry:
    return Entry(ink, WEIGHT, 0.0, Change(curve=parse_curve(curve)))


def differ(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference in steps of 1/255."""
    return int(np.abs(one - other).max())


def test_a_curve_of_zeros_is_the_base_and_of_ones_the_constant_stack(tiny_sd1: TinyModel, ink: Path) -> None:
    base, constant = drawn(tiny_sd1), drawn(tiny_sd1, Entry(ink, WEIGHT, 0.0))
    assert differ(drawn(tiny_sd1, curved(ink, "0@0,0@1")), base) == 0
    # the same sums in another order
    assert differ(drawn(tiny_sd1, curved(ink, "1@0,1@1")), constant) <= 1
    fading = drawn(tiny_sd1, curved(ink, "1@0,0@0.5"))
    assert differ(fading, base) > 10 and differ(fading, constant) > 10


def test_a_window_that_ends_before_the_last_steps_is_not_one_that_begins_there(
    tiny_sd1: TinyModel, ink: Path
) -> None:
    early, late = (
        drawn(tiny_sd1, Entry(ink, WEIGHT, 0.0, Change(curve=window(*ends)))) for ends in ((0, 0.5), (0.6, 1))
    )
    assert differ(early, late) > 10


def test_every_picture_begins_with_the_first_step(tiny_sd1: TinyModel, ink: Path) -> None:
    """Nine pictures are two batches; the last one is a batch of its own."""
    entry = curved(ink, "1@0,0@0.5")
    alone = replace(REQUEST, seed=REQUEST.seed + 8, stack=(entry,))
    expected = np.asarray(generate(tiny_sd1.family, alone)[0]).astype(int)
    assert differ(drawn(tiny_sd1, entry, count=9), expected) <= 1


def test_a_box_changes_its_half_of_the_picture_more(tiny_sd1: TinyModel, ink: Path) -> None:
    base = drawn(tiny_sd1)
    middle = base.shape[1] // 2
    for box, inside in (((0, 0, 0.5, 1), np.s_[:, :middle]), ((0.5, 0, 1, 1), np.s_[:, middle:])):
        changed = np.abs(drawn(tiny_sd1, Entry(ink, WEIGHT, 0.0, Change(box=box))) - base)
        total, part = changed.sum(), changed[inside].sum()
        assert part > 1.2 * (total - part)


def test_a_mask_is_the_box_it_shows(tiny_sd1: TinyModel, ink: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "left.png")
    ways = (Change(mask=tmp_path / "left.png"), Change(box=(0, 0, 0.5, 1)))
    one, other = (drawn(tiny_sd1, Entry(ink, WEIGHT, 0.0, change)) for change in ways)
    assert differ(one, other) <= 1


def test_words_of_a_prompt_change_the_picture(tiny_sd1: TinyModel, ink: Path) -> None:
    pictures = [drawn(tiny_sd1)]
    for words in ("0:4", "0:4:end=0.4", "0:4:style=0", "0:4:box=0,0,0.5,1", "0:4@0,0@0.5"):
        (tag,) = extract_tags(f"<lora:ink:{words}>")[1]
        pictures.append(drawn(tiny_sd1, tag.entry(ink)))
    assert all(differ(a, b) > 2 for n, a in enumerate(pictures) for b in pictures[:n])


def test_a_patch_kept_between_requests_draws_what_a_new_one_draws(tiny_sd1: TinyModel, ink: Path) -> None:
    family = tiny_sd1.family
    before = weights(family)
    stacks = [
        (Entry(ink, WEIGHT),),
        (Entry(ink, 0.5), curved(ink, "1@0,0@0.5")),
        (curved(ink, "0@0,1@1"),),
        (),
    ]
    expected = [drawn(tiny_sd1, *stack) for stack in stacks]
    assert equal(weights(family), before)
    patch = Patch(family)
    for stack, picture in zip([*stacks, *reversed(stacks)], [*expected, *reversed(expected)], strict=True):
        assert differ(drawn(tiny_sd1, *stack, patch=patch), picture) == 0
    drawn(tiny_sd1, Entry(ink, 0.8), patch=patch)
    patch.restore()
    assert equal(weights(family), before)
