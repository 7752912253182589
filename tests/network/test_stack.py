"""Stacks: patched weights, live adapters and merged files are the same thing."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdlora.adapters import SPECS
from sdlora.adapters.lora import LoraSpec
from sdlora.contracts import Family
from sdlora.errors import AdapterError
from sdlora.loading import load_family
from sdlora.network.attach import attached, create
from sdlora.network.change import Change
from sdlora.network.codec import AdapterFile, save
from sdlora.network.merge import merge
from sdlora.network.stack import Entry, Patch, stacked
from tests.conftest import TinyModel
from tests.network.test_attach import answer, awake

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}  # fp32 files; the UNet adds up some hundred layers' rounding


def saved(family: Family, path: Path, *, seed: int = 0, targets: str = "attention", rank: int = 4) -> Path:
    """A file of random adapters."""
    network = create(family, LoraSpec(rank=rank, targets=targets), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save(path, network.adapters, family_name=family.name, dtype="fp32")
    return path


def weights(family: Family) -> dict[str, Tensor]:
    """Copies of all weights."""
    return {
        f"{c}.{n}": p.detach().clone()
        for c, root in family.components.items()
        for n, p in root.named_parameters()
    }


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_patched_weights_answer_as_live_adapters(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    family = tiny_sd1.family
    network = awake(create(family, LoraSpec(rank=4, targets="all+conv"), seed=0))
    save(tmp_path / "x.safetensors", network.adapters, family_name="sd1", dtype="fp32")
    base = answer(family)
    with attached(family, network):
        live = answer(family)
    with stacked(family, [Entry(tmp_path / "x.safetensors")]):
        patched = answer(family)
    assert float((live - base).abs().max()) > 0.1
    torch.testing.assert_close(patched, live, **TOLERANCE)


def test_a_merged_file_answers_as_the_stack(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    family = tiny_sd1.family
    first = saved(family, tmp_path / "a.safetensors", seed=1, targets="all+conv", rank=3)
    second = saved(family, tmp_path / "b.safetensors", seed=2, rank=5)
    entries = [Entry(first, 0.8), Entry(second, 0.5, text_weight=-0.3)]
    merge(entries, output=tmp_path / "c.safetensors", dtype="fp32")
    base = answer(family)
    with stacked(family, entries):
        stack = answer(family)
    with stacked(family, [Entry(tmp_path / "c.safetensors")]):
        merged = answer(family)
    assert float((stack - base).abs().max()) > 0.1
    torch.testing.assert_close(merged, stack, **TOLERANCE)


def test_the_base_comes_back_bit_for_bit_also_after_an_error(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    family = tiny_sd1.family
    before = weights(family)
    entry = Entry(saved(family, tmp_path / "a.safetensors"), 0.7)
    with stacked(family, [entry, entry]):
        assert not equal(weights(family), before)
    assert equal(weights(family), before)
    with pytest.raises(ZeroDivisionError), stacked(family, [entry]):
        raise ZeroDivisionError
    assert equal(weights(family), before)


def test_a_file_that_fails_leaves_the_base_untouched(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    family = tiny_sd1.family
    before = weights(family)
    good = Entry(saved(family, tmp_path / "a.safetensors"))
    with pytest.raises(AdapterError, match="cannot be read"), stacked(family, [good, Entry(tmp_path / "no")]):
        pass
    assert equal(weights(family), before)


def test_the_order_of_a_stack_and_a_weight_of_zero_do_not_matter(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    family = tiny_sd1.family
    first, second = (Entry(saved(family, tmp_path / f"{n}.safetensors", seed=n), 0.6) for n in (1, 2))
    with stacked(family, [first, second]):
        one = weights(family)
    with stacked(family, [second, first, Entry(first.file, 0.0)]):
        other = weights(family)
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_the_text_encoder_has_a_weight_of_its_own(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    family = tiny_sd1.family
    before = weights(family)
    entry = Entry(saved(family, tmp_path / "a.safetensors"), 1.0, text_weight=0.0)
    with stacked(family, [entry]) as reports:
        after = weights(family)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"unet"}
    assert reports[0].layers == {"unet": 128, "text_encoder": 48} and not reports[0].unmatched


def test_every_weight_of_a_stack_is_its_own_plus_the_deltas(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    """Layers alike are written at once; files of several kinds that overlap must not mix them up."""
    family = tiny_sd1.family
    before = weights(family)
    loha = awake(create(family, SPECS.get("loha")(rank=2, targets="attn2.to_k,ff"), seed=3))
    save(tmp_path / "loha.safetensors", loha.adapters, family_name="sd1", dtype="fp32")
    conv = awake(create(family, LoraSpec(rank=3, tucker=True, targets="resnets.*conv1,attn1"), seed=4))
    save(tmp_path / "conv.safetensors", conv.adapters, family_name="sd1", dtype="fp32")
    entries = [
        Entry(saved(family, tmp_path / "lora.safetensors", targets="all+conv"), 0.7, text_weight=-0.4),
        Entry(tmp_path / "conv.safetensors", change=Change(blocks=tuple(0.1 * n for n in range(17)))),
        Entry(tmp_path / "loha.safetensors", 0.5),
    ]
    expected = dict(before)
    for entry in entries:
        for layer, adapter in AdapterFile.open(entry.file).resolve(family).adapters.items():
            name = f"{layer.component}.{layer.path}.weight"
            change = adapter.delta(before[name]).detach()
            expected[name] = expected[name] + entry.weight_at(layer) * change
    with stacked(family, entries):
        after = weights(family)
    for name, weight in expected.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_a_card_without_room_carries_the_same_bits(
    tiny_sd1: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(str(tiny_sd1.folder), device="cuda", dtype=torch.float16)
    before = weights(family)
    dora = awake(create(family, SPECS.get("dora")(rank=2, targets="attn2.to_k"), seed=3))
    save(tmp_path / "dora.safetensors", dora.adapters, family_name="sd1")
    stack = [
        Entry(saved(family, tmp_path / "a.safetensors", targets="all+conv")),
        Entry(tmp_path / "dora.safetensors"),
    ]
    found = []
    for room in (0, 1 << 60):
        monkeypatch.setattr("sdlora.network.stack.ROOM", room)
        with stacked(family, stack):
            found.append(weights(family))
        assert equal(weights(family), before)
    assert equal(*found) and not equal(found[0], before)


def test_switching_stacks_gives_the_weights_of_a_fresh_one(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    family = tiny_sd1.family
    before = weights(family)
    files = [
        saved(family, tmp_path / f"{n}.safetensors", seed=n, targets=t)
        for n, t in enumerate(("attn1", "attn2", "ff"))
    ]
    patch, draw = Patch(family), random.Random(0)
    for _ in range(6):
        stack = [
            Entry(file, draw.choice((-0.5, 0.5, 1.0))) for file in draw.sample(files, draw.randint(0, 3))
        ]
        patch.apply(stack)
        switched = weights(family)
        patch.restore()
        assert equal(weights(family), before)
        with stacked(family, stack):
            assert equal(weights(family), switched)
        patch.apply(stack)
    patch.restore()
    assert equal(weights(family), before)
