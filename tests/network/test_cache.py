"""What is kept in memory, what leaves, and what builds on what."""

import base64
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sdlora.adapters.lora import Lora
from sdlora.contracts import Family, Layer
from sdlora.errors import AdapterError
from sdlora.network import sidecar
from sdlora.network.bundle import Bundle
from sdlora.network.cache import AdapterCache
from sdlora.network.chain import set_parent, with_ancestors
from sdlora.network.codec import AdapterFile, save
from sdlora.network.info import inspect, short_hash
from sdlora.network.stack import Entry, Patch
from tests.conftest import TinyModel
from tests.network import oracle
from tests.network.test_live import Counter
from tests.network.test_stack import equal, saved, weights


@pytest.fixture
def files(tiny_sd1: TinyModel, tmp_path: Path) -> list[Path]:
    return [
        saved(tiny_sd1.family, tmp_path / f"{n}.safetensors", seed=n, targets="attn2.to_k") for n in range(3)
    ]


def test_files_are_read_once_until_they_change(files: list[Path], tiny_sd1: TinyModel) -> None:
    cache = AdapterCache(tiny_sd1.family)
    first = cache.resolve(files[0])
    assert cache.resolve(files[0]) is first
    os.utime(files[0], ns=(1, 1))
    assert cache.resolve(files[0]) is not first
    with pytest.raises(AdapterError, match="cannot be read"):
        cache.resolve(files[0].with_name("missing"))


def test_the_least_recently_used_leaves_first(files: list[Path], tiny_sd1: TinyModel) -> None:
    one = AdapterCache(tiny_sd1.family)
    one.resolve(files[0])
    cache = AdapterCache(tiny_sd1.family, limit=2 * one.bytes)
    held = [cache.resolve(path) for path in files[:2]]
    cache.resolve(files[0])
    cache.resolve(files[2])
    assert len(cache) == 2 and cache.bytes == cache.limit
    assert cache.resolve(files[0]) is held[0] and cache.resolve(files[1]) is not held[1]
    cache.keep_to(0)
    assert len(cache) == 1


def test_a_switch_writes_only_layers_that_differ(files: list[Path], tiny_sd1: TinyModel) -> None:
    family = tiny_sd1.family
    before = weights(family)
    patch = Patch(family, cache=AdapterCache(family))
    patch.apply([Entry(files[0]), Entry(files[1], text_weight=0.5)])
    versions = {n: p._version for n, p in family.components["unet"].named_parameters()}
    patch.apply([Entry(files[0]), Entry(files[1], text_weight=0.7)])
    assert versions == {n: p._version for n, p in family.components["unet"].named_parameters()}
    patch.restore()
    assert equal(weights(family), before)


def test_a_switch_on_sdxl_is_few_operators(tmp_path: Path) -> None:
    """722 layers of true sizes, whose weights have no memory; one by one they would be thousands."""
    base = oracle.sdxl()
    family = cast(Family, SimpleNamespace(**vars(base), device=torch.device("meta")))
    layers = {
        Layer("unet", path): module
        for path, module in base.components["unet"].named_modules()
        if ".attentions." in path and isinstance(module, nn.Linear)
    }
    for name in "ab":
        loras = {
            layer: Lora(torch.ones(1, m.in_features), torch.ones(m.out_features, 1), alpha=1)
            for layer, m in layers.items()
        }
        save(tmp_path / f"{name}.safetensors", loras, family_name="sdxl")
    patch = Patch(family)
    for name in "ab":
        patch.apply([Entry(tmp_path / f"{name}.safetensors")])
    with Counter() as counter:
        reports = patch.apply([Entry(tmp_path / "a.safetensors")])
    assert reports[0].layers == {"unet": 722} and counter.count < 700


def test_a_stack_that_breaks_off_halfway_leaves_no_trace(
    files: list[Path], tiny_sd1: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = tiny_sd1.family
    before = weights(family)
    patch = Patch(family)
    patch.apply([Entry(files[0])])
    whole = weights(family)
    factors, left = Bundle.factors, iter(range(1))

    def scarce(bundle: Bundle, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        if next(left, None) is None:
            raise MemoryError
        return factors(bundle, rows)

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(Bundle, "factors", scarce)
        patch.apply([Entry(files[1])])
    assert not equal(weights(family), whole)
    patch.apply([Entry(files[0])])
    assert equal(weights(family), whole)
    patch.apply([])
    assert equal(weights(family), before)


def test_a_child_brings_its_ancestors(files: list[Path], tmp_path: Path) -> None:
    hashes = [short_hash(AdapterFile.open(path)) for path in files]
    set_parent(files[1], files[0])
    set_parent(files[2], files[1])
    (tmp_path / "broken.safetensors").write_text("none")
    child = Entry(files[2], 0.5)
    chain = (Entry(files[0]), Entry(files[1]), child)
    assert with_ancestors([child], []) == with_ancestors(chain, []) == chain
    weighted = (Entry(files[1], 0.3), child)
    assert with_ancestors(weighted, []) == (Entry(files[0]), *weighted)
    assert [AdapterFile.open(path).container.payload_hash()[:12] for path in files] == hashes
    (tmp_path / "deep/er").mkdir(parents=True)
    moved = files[0].rename(tmp_path / "deep/er/0.safetensors")
    with pytest.raises(AdapterError, match="not here"):
        with_ancestors([child], [])
    assert with_ancestors([child], [tmp_path / "deep"])[0] == Entry(moved)
    set_parent(files[1], None)
    assert with_ancestors([child], []) == (Entry(files[1]), child)


def test_families_without_an_end_are_refused(files: list[Path]) -> None:
    set_parent(files[1], files[0])
    set_parent(files[0], files[1])
    with pytest.raises(AdapterError, match="its own ancestor"):
        with_ancestors([Entry(files[0])], [])
    with pytest.raises(AdapterError, match="its own ancestor"):
        set_parent(files[2], files[2])


def test_only_what_we_laid_beside_an_adapter_is_replaced(tmp_path: Path) -> None:
    path, pictures = tmp_path / "ink.safetensors", [tmp_path / f"{n}.png" for n in range(3)]
    for number, picture in enumerate(pictures):
        Image.new("RGB", (600, 400), (number, 0, 0)).save(picture)
    beside, card = path.with_suffix(".preview.png"), path.with_suffix(".json")

    def first_pixel() -> int:
        with Image.open(beside) as opened:
            return int(opened.convert("RGB").getpixel((0, 0))[0])  # type: ignore[index]  # three numbers

    for number in (0, 1):
        sidecar.accompany(path, card={"description": str(number)}, picture=pictures[number])
        assert first_pixel() == number and json.loads(card.read_text()) == {"description": "0"}
    sidecar.take_along(path, tmp_path / "copy.safetensors")
    assert sidecar.read(tmp_path / "copy") == {"description": "0"} and sidecar.preview(tmp_path / "copy")
    shutil.copyfile(pictures[2], beside)
    sidecar.accompany(path, card={}, picture=pictures[0])
    assert first_pixel() == 2


def test_a_thumbnail_is_a_small_jpeg(tmp_path: Path) -> None:
    Image.effect_noise((1024, 512), 90).convert("RGB").save(tmp_path / "x.png")
    head, _, content = sidecar.thumbnail(tmp_path / "x.png").partition(",")
    assert head == "data:image/jpeg;base64" and len(content) < 64 << 10
    with Image.open(io.BytesIO(base64.b64decode(content))) as opened:
        assert opened.format == "JPEG" and opened.size == (256, 128)


def test_a_sidecar_is_written_beside_what_others_wrote(files: list[Path]) -> None:
    card = files[0].with_suffix(".json")
    card.write_text(json.dumps({"notes": "mine", "preferred weight": 0.5}))
    sidecar.write(
        files[0], triggers=("zwx", "cat"), weight=0.8, family_name="sd1", picture=Image.new("RGB", (8, 8))
    )
    told = json.loads(card.read_text())
    assert told["notes"] == "mine" and told["sd version"] == "SD1"
    info = inspect(files[0])
    assert info.triggers == ("zwx", "cat") and info.weight == 0.8
    assert sidecar.preview(files[0]) == files[0].with_suffix(".preview.png")
    assert sidecar.preview(files[1]) is None
