"""Stacks that change while sampling: the same answers as patched weights, at every step and place."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sdlora.adapters import SPECS
from sdlora.contracts import Layer
from sdlora.errors import AdapterError, ConfigError
from sdlora.network import blocks
from sdlora.network.attach import create
from sdlora.network.change import Change, parse_curve, turns, window
from sdlora.network.codec import save
from sdlora.network.live import mixed
from sdlora.network.names import to_sgm
from sdlora.network.stack import Entry, Patch, stacked
from tests.conftest import TinyModel
from tests.network import oracle
from tests.network.test_attach import answer, awake
from tests.network.test_stack import TOLERANCE, equal, saved, weights

RISING = Change(curve=((0.0, 0.0), (1.0, 1.0)))
WHOLE = Change(box=(0, 0, 1, 1))
LATENT = (8, 8)


@pytest.fixture(scope="module")
def files(tiny_sd1: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs, one of them with convolutions, and a LoHa."""
    folder = tmp_path_factory.mktemp("files")
    lora = [
        saved(tiny_sd1.family, folder / f"{n}.safetensors", seed=n, targets=t)
        for n, t in enumerate(("attention", "all+conv"))
    ]
    loha = awake(create(tiny_sd1.family, SPECS.get("loha")(rank=2), seed=3))
    save(folder / "loha.safetensors", loha.adapters, family_name="sd1", dtype="fp32")
    return [*lora, folder / "loha.safetensors"]


@pytest.mark.parametrize("step", [0, 3, 7])
def test_a_curve_gives_at_each_step_what_constant_weights_give(
    step: int, files: list[Path], tiny_sd1: TinyModel
) -> None:
    family = tiny_sd1.family
    falling = Change(curve=((0.0, 1.0), (1.0, -0.5)))
    entries = [
        Entry(files[0], 0.8, change=RISING),
        Entry(files[1], 0.5, change=falling),
        Entry(files[2], 0.6, change=RISING),
    ]
    with mixed(family, entries, latent_size=LATENT) as mix:
        mix.at(step, 8)
        live = answer(family)
    part = step / 7
    at = [0.8 * part, 0.5 * (1 - 1.5 * part), 0.6 * part]
    constant = [Entry(e.file, w, text_weight=e.weight) for e, w in zip(entries, at, strict=True)]
    with stacked(family, constant):
        torch.testing.assert_close(live, answer(family), **TOLERANCE)


def test_constant_entries_beside_changing_ones_are_patched(files: list[Path], tiny_sd1: TinyModel) -> None:
    family = tiny_sd1.family
    before = weights(family)
    entries = [Entry(files[0], 0.7), Entry(files[1], 0.5, change=RISING)]
    with mixed(family, entries, latent_size=LATENT) as mix:
        mix.at(7, 8)
        live = answer(family)
        assert [applied.entry for applied in mix.reports] == entries
    with stacked(family, [Entry(files[0], 0.7), Entry(files[1], 0.5)]):
        torch.testing.assert_close(live, answer(family), **TOLERANCE)
    assert equal(weights(family), before)


@pytest.mark.parametrize("kind", ["dora", "oft", "glora"])
def test_what_was_patched_before_does_not_reach_changing_adapters(
    kind: str, files: list[Path], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    """The deltas of these kinds depend on the weight, which is the base's own whatever it carries now."""
    family = tiny_sd1.family
    network = awake(create(family, SPECS.get(kind)(targets="attn2.to_q"), seed=3))
    save(tmp_path / "x.safetensors", network.adapters, family_name="sd1", dtype="fp32")
    entries = [Entry(tmp_path / "x.safetensors", 0.7, change=RISING)]
    answers = []
    for before in ([], [Entry(files[0], 3.0)]):
        patch = Patch(family)
        patch.apply(before)
        with mixed(family, entries, latent_size=LATENT, patch=patch) as mix:
            mix.at(1, 2)
            answers.append(answer(family))
        patch.restore()
    assert torch.equal(*answers)


def test_adapters_take_turns(files: list[Path], tiny_sd1: TinyModel) -> None:
    family = tiny_sd1.family
    expected = []
    for file in files[:2]:
        with stacked(family, [Entry(file, 1.0, 0.0)]):
            expected.append(answer(family))
    entries = [Entry(file, 1.0, 0.0, change) for file, change in zip(files[:2], turns(2), strict=True)]
    with mixed(family, entries, latent_size=LATENT) as mix:
        for step in range(3):
            mix.at(step, 10)
            torch.testing.assert_close(answer(family), expected[step % 2], **TOLERANCE)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_region_that_is_everything_is_no_region(
    number: int, files: list[Path], tiny_sd1: TinyModel
) -> None:
    family = tiny_sd1.family
    with mixed(family, [Entry(files[number], 0.5, change=WHOLE)], latent_size=LATENT) as mix:
        mix.at(0, 8)
        live = answer(family)
    with stacked(family, [Entry(files[number], 0.5)]):
        torch.testing.assert_close(live, answer(family), **TOLERANCE)


def test_regions_without_a_place_change_nothing(files: list[Path], tiny_sd1: TinyModel) -> None:
    family = tiny_sd1.family
    base = answer(family)
    nowhere = [Entry(file, 0.5, 0.0, Change(box=(0, 0, 0, 0))) for file in files]
    with mixed(family, nowhere, latent_size=LATENT):
        torch.testing.assert_close(answer(family), base, **TOLERANCE)


def test_a_cross_attention_answers_in_each_region_by_its_own_adapter(
    tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    """In the first block every place depends on itself and the text alone, so halves can be compared."""
    family = tiny_sd1.family
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    module = family.components["unet"].get_submodule(path)
    file = saved(family, tmp_path / "a.safetensors", targets=path.replace(".", r"\.") + ",self_attn.q_proj")
    torch.manual_seed(0)
    tokens, text = torch.randn(1, 64, 32), torch.randn(1, 77, 32)

    def ask() -> Tensor:
        with torch.no_grad():
            result: Tensor = module(tokens, encoder_hidden_states=text)
        return result

    base = ask()
    with stacked(family, [Entry(file)]):
        on = ask()
    left = Change(box=(0, 0, 0.5, 1))
    with mixed(family, [Entry(file, change=left)], latent_size=LATENT):
        got = ask().reshape(8, 8, 32)
    torch.testing.assert_close(got[:, :4], on.reshape(8, 8, 32)[:, :4])
    torch.testing.assert_close(got[:, 4:], base.reshape(8, 8, 32)[:, 4:])
    assert not torch.allclose(on, base)


def test_masks_are_read_from_pictures(tmp_path: Path) -> None:
    image = Image.new("L", (64, 32))
    image.paste(255, (0, 0, 32, 32))
    image.save(tmp_path / "mask.png")
    assert torch.equal(Change(mask=tmp_path / "mask.png").area(4, 8), Change(box=(0, 0, 0.5, 1)).area(4, 8))
    (tmp_path / "no.png").write_text("no")
    with pytest.raises(AdapterError, match="cannot be read"):
        Change(mask=tmp_path / "no.png").area(4, 4)


def test_any_number_of_adapters_costs_the_kernels_of_one(files: list[Path], tiny_sd1: TinyModel) -> None:
    family = tiny_sd1.family

    def kernels(count: int) -> int:
        entries = [Entry(files[0], 0.1, 0.0, RISING)] * count
        with mixed(family, entries, latent_size=LATENT) as mix, Counter() as counter:
            mix.at(1, 2)
            counter.count = 0
            answer(family)
        return counter.count

    assert kernels(1) == kernels(3) == kernels(8)
    with stacked(family, [Entry(files[0], 0.1)] * 8), Counter() as constant:
        answer(family)
    with Counter() as none:
        answer(family)
    assert constant.count == none.count


class Counter(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operators that run."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's form
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_block_lists_name_true_blocks() -> None:
    for family, sizes in ((oracle.sd15(), (17, 26)), (oracle.sdxl(), (12, 20))):
        unet = family.components["unet"]
        found = {
            blocks.block_of(Layer("unet", path))
            for path, m in unet.named_modules()
            if isinstance(m, nn.Linear)
        }
        attended = {
            blocks.block_of(Layer("unet", path)) for path, _ in unet.named_modules() if ".attn1.to_q" in path
        }
        short, long = (set(blocks.LISTS[size]) for size in sizes)
        assert attended == short - {"BASE"} and found - {""} <= long


def test_a_block_weight_of_zero_silences_its_block_alone(files: list[Path], tiny_sd1: TinyModel) -> None:
    family = tiny_sd1.family
    names = blocks.LISTS[17]
    only_mid = tuple(float(name == "MID") for name in names)
    before = weights(family)
    with stacked(family, [Entry(files[0], change=Change(blocks=only_mid))]):
        after = weights(family)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("unet.mid_block") for name in changed)
    assert to_sgm("mid_block_attentions_0_proj_in") == "middle_block_1_proj_in"


def test_named_parts_become_lists() -> None:
    style = dict(zip(blocks.LISTS[12], blocks.by_parts("sdxl", {"style": 0.0}), strict=True))
    assert {name for name, value in style.items() if value == 0} == {"OUT01"}
    assert len(blocks.by_parts("sd1", {})) == 17
    for wrong in (lambda: blocks.by_parts("sd1", {"mood": 1}), lambda: blocks.by_parts("flux", {})):
        refused(wrong)


def test_curves_and_lists_are_parsed_or_refused() -> None:
    assert parse_curve("0@0, 1@0.5") == ((0.0, 0.0), (0.5, 1.0))
    assert [Change(curve=parse_curve("0@0,1@0.5")).at(s, 5) for s in range(5)] == [0, 0.5, 1, 1, 1]
    assert [Change(curve=parse_curve("1@0,1@0.5,0@0.5")).at(s, 5) for s in range(5)] == [1, 1, 0, 0, 0]
    assert [Change(curve=window(0.25, 0.5)).at(s, 5) for s in range(5)] == [0, 1, 1, 0, 0]
    assert len(blocks.parse(",".join(["1"] * 26))) == 26
    for wrong in ("1", "1@2", "x@0", "", "1@0;2@1"):
        refused(lambda text=wrong: parse_curve(text))
    for wrong in ("1,2,3", "a,b"):
        refused(lambda text=wrong: blocks.parse(text))


def refused(call: Callable[[], object]) -> None:
    """The call raises ConfigError."""
    with pytest.raises(ConfigError):
        call()
