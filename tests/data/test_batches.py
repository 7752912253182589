import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from sdlora.config import TrainConfig
from sdlora.contracts import Conditioning, Step
from sdlora.data.batches import Batches, prepare
from sdlora.data.cache import LatentCache, View
from sdlora.data.folder import scan
from sdlora.errors import ConfigError
from sdlora.options import build
from tests.conftest import TinyModel
from tests.pictures import draw


class Maker:
    """Batches of a folder for the tiny model, with options."""

    def __init__(self, model: TinyModel, folder: Path, cache: Path) -> None:
        self.family, self.folder, self.cache = model.family, folder, cache

    def __call__(self, *, train_text: bool = False, **values: object) -> Batches:
        options = {name.replace("__", "."): value for name, value in values.items()}
        config = build(TrainConfig, {"loop.batch_size": 2, **options})
        return prepare(scan(self.folder), config, self.family, cache=self.cache, train_text=train_text)


@pytest.fixture
def made(tiny_sd1: TinyModel, image_folder: Path, tmp_path: Path) -> Maker:
    return Maker(tiny_sd1, image_folder, tmp_path / "cache")


def tensors(steps: tuple[Step, ...]) -> Iterator[torch.Tensor]:
    for step in steps:
        for part in step:
            if isinstance(part, torch.Tensor):
                yield part
            elif isinstance(part, Conditioning):
                yield part.states


def same(one: tuple[Step, ...], other: tuple[Step, ...]) -> bool:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


VARYING = {"data__flip": True, "data__captions__dropout": 0.5, "objective__noise_offset": 0.1}


@pytest.mark.parametrize("train_text", [False, True])
def test_a_step_is_the_same_however_one_gets_there(made: Maker, train_text: bool) -> None:
    straight = made(train_text=train_text, **VARYING)
    steps = [straight.at(step) for step in range(12)]
    fresh = made(train_text=train_text, **VARYING)
    for step in (11, 3, 7, 3, 0):
        assert same(fresh.at(step), steps[step])
    assert all(same(a, b) for a, b in zip(islice(fresh.stream(5), 7), steps[5:], strict=True))
    assert not same(steps[0], steps[len(steps) // 2])


def test_another_seed_is_another_run(made: Maker) -> None:
    one, other = (made(loop__seed=seed).at(0)[0] for seed in (0, 1))
    assert not torch.equal(one.noise, other.noise)


def test_noise_does_not_depend_on_batch_mates(made: Maker) -> None:
    """The same draws of a pass in batches of 1 and of 3 have the same noise and timesteps."""

    def drawn(batch_size: int) -> dict[int, tuple[float, ...]]:
        batches = made(loop__batch_size=batch_size)
        steps = [batches.at(step)[0] for step in range(batches.batches_per_pass)]
        return {
            hash(latents.numpy().tobytes()): (float(noise.sum()), int(timestep))
            for step in steps
            for latents, noise, timestep, weight in zip(*step[:3], step.weight, strict=True)
            if weight == 1
        }

    ones, threes = drawn(1), drawn(3)
    assert len(ones) == 6
    assert threes
    assert threes.items() <= ones.items()


def test_every_step_has_the_shapes_of_its_bucket(made: Maker) -> None:
    batches = made(loop__batch_size=4)
    for step in range(batches.batches_per_pass):
        (one,) = batches.at(step)
        b, c, h, w = one.latents.shape
        assert (b, c) == (4, 4)
        assert one.noise.shape == one.latents.shape
        assert (one.timesteps.shape, one.timesteps.dtype, one.weight.shape) == ((4,), torch.int64, (4,))
        assert one.conditioning is not None
        assert one.conditioning.states.shape == (4, 77, 32)
        assert (one.tokens, one.sizes, one.mask) == (None, None, None)
        assert h * w <= 64


def test_accumulation_splits_the_same_stream(made: Maker) -> None:
    plain, accumulated = made(), made(loop__accumulate=3)
    for step in range(4):
        assert same(accumulated.at(step), sum((plain.at(3 * step + i) for i in range(3)), ()))
    assert accumulated.steps_per_pass * 3 == plain.steps_per_pass == plain.batches_per_pass


def test_parts_of_batches_are_the_batches_of_one(made: Maker) -> None:
    whole = made(loop__batch_size=4, **VARYING)
    parts = [whole.part(number, of=2) for number in range(2)]
    for step in range(whole.batches_per_pass + 1):
        halves = [list(tensors(part.at(step))) for part in parts]
        joined = [torch.cat(pair) for pair in zip(*halves, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(joined, tensors(whole.at(step)), strict=True))


KEEPING = {"objective__preservation": 0.5, "data__captions__trigger": "cat"}


@pytest.mark.parametrize("train_text", [False, True])
def test_a_fourth_of_the_samples_also_keeps_what_is_said_without_the_trigger(
    made: Maker, train_text: bool
) -> None:
    for caption in made.folder.glob("*.txt"):
        caption.write_text("a cat on a mat")
    shared = {"loop__batch_size": 6, "train_text": train_text, "data__captions__dropout": 0}
    learned, kept = made(**shared, **KEEPING).at(0)
    assert same((learned,), made(**shared, data__captions__trigger="cat").at(0)) and not learned.keeps
    assert kept.keeps and kept.weight.tolist() == [0.5, 0.5]
    for part in ("latents", "noise", "timesteps"):
        assert torch.equal(getattr(kept, part), getattr(learned, part)[::4])
    for caption in made.folder.glob("*.txt"):
        caption.write_text("a on a mat")
    (without,) = made(**shared).at(0)
    if train_text:
        assert torch.equal(kept.tokens, without.tokens[::4])
    else:
        assert torch.equal(kept.conditioning.states, without.conditioning.states[::4])


@pytest.mark.parametrize(("batch_size", "keeping"), [(1, "1000"), (2, "1010"), (3, "1111")])
def test_small_batches_keep_as_much_in_fewer_steps(made: Maker, batch_size: int, keeping: str) -> None:
    batches = made(loop__batch_size=batch_size, **KEEPING)
    steps = [batches.at(step) for step in range(4)]
    assert [len(step) for step in steps] == [1 + int(kept) for kept in keeping]
    assert steps[0][1].weight.tolist() == [0.5 * 4 / keeping.count("1")]


def test_without_a_trigger_nothing_is_kept(made: Maker) -> None:
    assert same(made(objective__preservation=0.5).at(0), made().at(0))


def test_parts_of_batches_keep_what_the_batches_of_one_keep(made: Maker) -> None:
    whole = made(loop__batch_size=8, **KEEPING)
    parts = [whole.part(number, of=2) for number in range(2)]
    halves = [list(tensors(part.at(1))) for part in parts]
    joined = [torch.cat(pair) for pair in zip(*halves, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(joined, tensors(whole.at(1)), strict=True))


def test_one_mask_gives_every_batch_a_mask(made: Maker) -> None:
    draw((64, 64), "white").save(made.folder / "0-red-masklabel.png")
    batches = made()
    masks = [batches.at(step)[0].mask for step in range(batches.batches_per_pass)]
    assert all(mask is not None and mask.shape[:2] == (2, 1) for mask in masks)
    assert {float(mask.min()) == 1 for mask in masks if mask is not None} == {True, False}


@pytest.mark.parametrize("caption", ["a red cat, " * 40, "{a red cat|" + "a red cat " * 40 + "|a cat}"])
def test_tokens_keep_one_length_when_one_caption_is_long(made: Maker, caption: str) -> None:
    (made.folder / "0-red.txt").write_text(caption)
    batches = made(train_text=True)
    lengths = {batches.at(step)[0].tokens.shape[-1] for step in range(batches.batches_per_pass)}  # type: ignore[union-attr]  # tokens are asked for
    assert len(lengths) == 1
    assert lengths.pop() > 77


def test_sdxl_gets_pooled_states_and_sizes(tiny_sdxl: TinyModel, image_folder: Path, tmp_path: Path) -> None:
    make = Maker(tiny_sdxl, image_folder, tmp_path / "cache")
    step = make(loop__batch_size=4, data__resolution=64).at(0)[0]
    assert step.conditioning is not None
    assert step.conditioning.pooled is not None
    assert step.conditioning.pooled.shape[0] == 4
    assert step.sizes is not None
    height, width = step.latents.shape[2] * 8, step.latents.shape[3] * 8
    for original_height, original_width, top, left, target_height, target_width in step.sizes.tolist():
        assert (target_height, target_width) == (height, width)
        assert (original_height, original_width) in {(64, 64), (64, 96), (96, 64)}
        assert min(top, left) == 0


def test_captions_that_vary_come_as_tokens(made: Maker) -> None:
    step = made(data__captions__shuffle=True, data__captions__trigger="cat").at(0)[0]
    assert step.conditioning is None
    assert step.tokens is not None
    assert step.tokens.shape == (2, 1, 77)


def test_one_caption_of_alternatives_makes_captions_tokens(made: Maker) -> None:
    assert made().at(0)[0].tokens is None
    (made.folder / "0-red.txt").write_text("a {red|scarlet} cat")
    steps = [made().at(step)[0] for step in range(40)]
    assert all(step.conditioning is None and step.tokens is not None for step in steps)
    texts = {
        tuple(row) for step in steps if step.tokens is not None for row in step.tokens.flatten(0, 1).tolist()
    }
    assert len(texts) > len({item.caption for item in scan(made.folder).items})


def test_a_closed_stream_leaves_no_thread(made: Maker) -> None:
    import threading

    before = threading.active_count()
    stream = made().stream()
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


def test_an_unreadable_cache_entry_is_raised_where_it_is_asked_for(
    made: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(cache: LatentCache, view: View) -> None:
        raise OSError("gone")

    batches = made()
    monkeypatch.setattr(LatentCache, "read", read)
    with pytest.raises(OSError, match="gone"):
        next(batches.stream())


def test_the_cache_keeps_to_its_limit_and_a_run_to_what_it_needs(
    made: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made()
    shard = next(made.cache.rglob("*.safetensors"))
    old = shard.with_name("old.safetensors")
    old.write_bytes(shard.read_bytes())
    os.utime(old, (0, 0))
    monkeypatch.setenv("SDLORA_CACHE_GB", "0")
    made()
    assert shard.exists() and not old.exists()
    monkeypatch.setenv("SDLORA_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="SDLORA_CACHE_GB"):
        made()
