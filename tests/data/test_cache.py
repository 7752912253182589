import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sdlora.contracts import Family
from sdlora.data.buckets import Bucket
from sdlora.data.cache import RECENT, LatentCache, TextCache, View, prune
from sdlora.data.folder import scan
from sdlora.data.images import load
from sdlora.data.shards import Shards
from sdlora.errors import Cancelled
from tests.conftest import TinyModel
from tests.pictures import draw

SQUARE = Bucket(64, 64)


class Counter:
    """Counts what was encoded; `stop` cancels after so many."""

    def __init__(self, stop: int = -1) -> None:
        self.done = 0
        self.stop = stop

    def __call__(self, done: int, total: int) -> None:
        self.done = done
        if done == self.stop:
            raise Cancelled("enough")


def views(folder: Path) -> list[View]:
    return [View(item, SQUARE, flip) for item in scan(folder).items for flip in (False, True)]


def filled(folder: Path, family: Family, wanted: list[View]) -> tuple[LatentCache, int]:
    counter = Counter()
    cache = LatentCache(folder, family)
    cache.fill(wanted, counter)
    return cache, counter.done


@pytest.fixture
def family(tiny_sd1: TinyModel) -> Family:
    return tiny_sd1.family


def test_the_cache_holds_what_the_vae_says(image_folder: Path, tmp_path: Path, family: Family) -> None:
    wanted = views(image_folder)
    cache, encoded = filled(tmp_path / "cache", family, wanted)
    assert encoded == 12
    for view in wanted:
        latents, mask = cache.read(view)
        expected = family.encode_images(load(view.item, view.bucket, flip=view.flip)[None])[0]
        assert torch.equal(latents, expected)
        assert mask is None


def test_nothing_is_encoded_twice(image_folder: Path, tmp_path: Path, family: Family) -> None:
    filled(tmp_path / "cache", family, views(image_folder))
    assert filled(tmp_path / "cache", family, views(image_folder))[1] == 0


def test_a_moved_and_renamed_image_is_still_known(image_folder: Path, tmp_path: Path, family: Family) -> None:
    filled(tmp_path / "cache", family, views(image_folder))
    moved = image_folder.rename(tmp_path / "elsewhere")
    (moved / "0-red.png").rename(moved / "renamed.png")
    assert filled(tmp_path / "cache", family, views(moved))[1] == 0


def test_a_changed_image_mask_size_or_vae_is_encoded_again(
    image_folder: Path, tmp_path: Path, family: Family
) -> None:
    cache = tmp_path / "cache"
    filled(cache, family, views(image_folder))
    draw((64, 64), "black").save(image_folder / "0-red.png")
    assert filled(cache, family, views(image_folder))[1] == 2
    draw((96, 64), "white").save(image_folder / "1-green-masklabel.png")
    masked, encoded = filled(cache, family, views(image_folder))
    assert encoded == 2
    assert masked.read(views(image_folder)[2])[1] is not None
    assert (
        filled(cache, family, [view._replace(bucket=Bucket(64, 56)) for view in views(image_folder)])[1] == 12
    )
    other = dataclasses.replace(family, hash="another VAE")  # type: ignore[type-var]  # families are dataclasses
    assert filled(cache, other, views(image_folder))[1] == 12


def test_what_was_encoded_before_a_stop_is_kept(image_folder: Path, tmp_path: Path, family: Family) -> None:
    with pytest.raises(Cancelled):
        LatentCache(tmp_path / "cache", family).fill(views(image_folder), Counter(stop=5))
    assert filled(tmp_path / "cache", family, views(image_folder))[1] == 7


ENDLESS = """
import sys, torch
from pathlib import Path
from sdlora.data import cache
from sdlora.data.folder import scan
from sdlora.data.buckets import Bucket
from sdlora.loading import load_family
cache.SHARD_ENTRIES = 1
family = load_family(sys.argv[1], device="cpu", dtype=torch.float32)
views = [cache.View(item, Bucket(8 * n, 64)) for item in scan(Path(sys.argv[2])).items for n in range(2, 20)]
print("ready", flush=True)
cache.LatentCache(Path(sys.argv[3]), family).fill(views, lambda done, total: print(done, flush=True))
"""


def test_a_killed_process_loses_nothing_it_had_written(
    image_folder: Path, tmp_path: Path, tiny_sd1: TinyModel
) -> None:
    command = [sys.executable, "-c", ENDLESS, *map(str, (tiny_sd1.folder, image_folder, tmp_path / "cache"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdout.readline()
        process.kill()
        told = [int(line) for line in process.stdout.read().splitlines() if line.isdigit()]
    wanted = [View(item, Bucket(8 * n, 64)) for item in scan(image_folder).items for n in range(2, 20)]
    cache, encoded = filled(tmp_path / "cache", tiny_sd1.family, wanted)
    assert 0 < encoded <= len(wanted) - max(told, default=1)
    view = wanted[0]
    assert torch.equal(
        cache.read(view)[0], tiny_sd1.family.encode_images(load(view.item, view.bucket)[None])[0]
    )


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "header"])
def test_a_damaged_shard_is_encoded_again(
    image_folder: Path, tmp_path: Path, family: Family, damage: str
) -> None:
    wanted = views(image_folder)
    filled(tmp_path / "cache", family, wanted)
    (shard,) = (tmp_path / "cache").rglob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-5] ^= damage == "flipped"
    data[3] ^= 255 * (damage == "header")
    shard.write_bytes(data[: {"cut": len(data) // 2, "empty": 0}.get(damage, len(data))])
    cache, encoded = filled(tmp_path / "cache", family, wanted)
    assert encoded == 12
    assert torch.equal(cache.read(wanted[0])[0], family.encode_images(load(*wanted[0][:2])[None])[0])


def test_two_runs_may_fill_the_same_cache(image_folder: Path, tmp_path: Path, family: Family) -> None:
    first, second = (LatentCache(tmp_path / "cache", family) for _ in range(2))
    wanted = views(image_folder)
    first.fill(wanted[:8], Counter())
    second.fill(wanted[4:], Counter())
    assert filled(tmp_path / "cache", family, wanted)[1] == 0
    assert torch.equal(first.read(wanted[5])[0], second.read(wanted[5])[0])


def made_long_ago(folder: Path, name: str, *, hours: float) -> Path:
    """A file of a kilobyte in a cache, last used so many hours ago."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(1000))
    os.utime(file, (time.time() - hours * 3600,) * 2)
    return file


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    names = ("latents/a/1.safetensors", "texts/a/1.safetensors", "latents/b/1.safetensors", "texts/b/.1.part")
    files = [made_long_ago(tmp_path, name, hours=2 + number) for number, name in enumerate(names)]
    other = made_long_ago(tmp_path, "measures/1.json", hours=99)
    new = made_long_ago(tmp_path, "texts/b/1.safetensors", hours=RECENT / 3600 - 0.5)
    prune(tmp_path, limit=3000)
    assert [file.exists() for file in (*files, new, other)] == [True, True, False, False, True, True]
    prune(tmp_path, limit=0)
    assert [file.exists() for file in (*files, new, other)] == [False] * 4 + [True, True]


def test_a_run_reads_on_from_what_another_removed(image_folder: Path, tmp_path: Path, family: Family) -> None:
    wanted = views(image_folder)
    folder = tmp_path / "cache"
    running, _ = filled(folder, family, wanted)
    before = running.read(wanted[3])[0].clone()
    for file in folder.rglob("*.safetensors"):
        os.utime(file, (0, 0))
    prune(folder, limit=0)
    assert not list(folder.rglob("*.safetensors"))
    assert torch.equal(running.read(wanted[3])[0], before)
    assert filled(folder, family, wanted)[1] == 12


def test_using_a_shard_keeps_it(image_folder: Path, tmp_path: Path, family: Family) -> None:
    wanted = views(image_folder)
    filled(tmp_path, family, wanted)
    (shard,) = tmp_path.rglob("*.safetensors")
    os.utime(shard, (0, 0))
    filled(tmp_path, family, wanted[:1])
    prune(tmp_path, limit=0)
    assert shard.exists()


def test_an_entry_is_what_was_written(tmp_path: Path) -> None:
    entry = {"states": torch.randn(3, 4, dtype=torch.bfloat16), "pooled": torch.randn(5)[::2]}
    Shards(tmp_path).write({"k": entry})
    again = Shards(tmp_path)
    again.hold(["k"])
    assert "k" in again
    assert {name: tensor.dtype for name, tensor in again.read("k").items()} == {
        "states": torch.bfloat16,
        "pooled": torch.float32,
    }
    assert all(torch.equal(tensor, entry[name]) for name, tensor in again.read("k").items())


def test_captions_are_as_the_text_encoder_says(tmp_path: Path, family: Family) -> None:
    captions = ["a red cat", "", "a " * 100]
    cache = TextCache(tmp_path, family, clip_skip=2)
    counter = Counter()
    cache.fill(captions, counter)
    assert counter.done == 3
    tokens = family.tokenize(captions)
    assert tokens.ids.shape[-1] == 154
    expected = family.encode_text(tokens, clip_skip=2).states
    for number, caption in enumerate(captions):
        assert torch.allclose(cache.read(caption).states, expected[number], atol=1e-5)


def test_captions_are_encoded_again_when_they_change_length_or_layer(tmp_path: Path, family: Family) -> None:
    def encoded(captions: list[str], clip_skip: int) -> int:
        counter = Counter()
        TextCache(tmp_path, family, clip_skip=clip_skip).fill(captions, counter)
        return counter.done

    assert encoded(["a cat", "a dog"], 1) == 2
    assert encoded(["a dog", "a cat"], 1) == 0
    assert encoded(["a dog", "a cat"], 2) == 2
    assert encoded(["a cat", "a " * 100], 1) == 2  # both are two chunks long now
