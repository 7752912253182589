"""Merging, resizing, extracting and baking: what is exact, what is closest, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from peft.utils.merge_utils import ties as peft_ties
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora.adapters import SPECS
from sdlora.adapters.lora import Lora
from sdlora.contracts import Family
from sdlora.errors import AdapterError, SdloraError
from sdlora.loading import load_family
from sdlora.network import sidecar
from sdlora.network.attach import attached, create
from sdlora.network.codec import AdapterFile, Format, save
from sdlora.network.info import inspect
from sdlora.network.merge import dare, merge, ties
from sdlora.network.metadata import PEFT_KEY
from sdlora.network.names import index
from sdlora.network.resize import extract, resize
from sdlora.network.spectrum import of_lora, of_matrix, of_product, rank_for
from sdlora.network.stack import Entry, stacked
from tests.conftest import TinyModel
from tests.network import oracle
from tests.network.test_attach import answer, awake
from tests.network.test_codec import UNET as WRITERS
from tests.network.test_codec import of, written
from tests.network.test_stack import TOLERANCE, saved


@pytest.fixture(scope="module")
def files(tiny_sd1: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs of different ranks and a LoHa."""
    folder = tmp_path_factory.mktemp("files")
    found = [
        saved(tiny_sd1.family, folder / f"{rank}.safetensors", seed=rank, rank=rank, targets=targets)
        for rank, targets in ((3, "attn2,conv1"), (5, "attn2"))
    ]
    loha = awake(create(tiny_sd1.family, SPECS.get("loha")(rank=2, targets="attn2"), seed=3))
    save(folder / "loha.safetensors", loha.adapters, family_name="sd1", dtype="fp32")
    return [*found, folder / "loha.safetensors"]


def deltas(family: Family, file: Path) -> dict[str, Tensor]:
    """The deltas of a file on the family."""
    return {
        f"{layer.component}.{layer.path}": adapter.delta(
            family.components[layer.component].get_submodule(layer.path).get_parameter("weight")
        ).detach()
        for layer, adapter in AdapterFile.open(file).resolve(family).adapters.items()
    }


def summed(family: Family, entries: list[Entry]) -> dict[str, Tensor]:
    """The weighted sum of the deltas of a stack."""
    total: dict[str, Tensor] = {}
    for entry in entries:
        for name, delta in deltas(family, entry.file).items():
            total[name] = total.get(name, torch.zeros_like(delta)) + entry.weight * delta
    return total


def close(got: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5) -> bool:
    return got.keys() == expected.keys() and all(
        float((got[name] - delta).norm()) <= rtol * float(delta.norm()) for name, delta in expected.items()
    )


@pytest.mark.parametrize("method", ["concat", "svd"])
def test_enough_rank_keeps_the_stack(
    method: str, files: list[Path], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    entries = [Entry(files[0], 0.8), Entry(files[1], -0.5)]
    output = tmp_path / "x.safetensors"
    made = merge(entries, output=output, method=method, rank=8, dtype="fp32")  # type: ignore[arg-type]  # a Method
    assert close(deltas(tiny_sd1.family, output), summed(tiny_sd1.family, entries), 1e-4)
    assert made.kept == pytest.approx(1, abs=1e-6) and made.ranks == (3, 8)
    parents = json.loads(AdapterFile.open(output).metadata["sdlora.parents"])
    assert [(p["name"], p["weight"]) for p in parents] == [("3", 0.8), ("5", -0.5)]


def test_less_rank_is_the_closest_and_says_what_it_keeps(
    files: list[Path], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    entries = [Entry(files[0]), Entry(files[1])]
    made = merge(entries, output=tmp_path / "x", method="svd", rank=2, dtype="fp32")
    kept = total = 0.0
    got, whole = deltas(tiny_sd1.family, tmp_path / "x"), summed(tiny_sd1.family, entries)
    for name, delta in whole.items():
        s = torch.linalg.svdvals(delta.flatten(1))
        # Eckart and Young: the squared distance is that of the singular values left out
        left = float(s[2:].square().sum())
        assert float((got[name] - delta).norm() ** 2) == pytest.approx(left, rel=1e-3, abs=1e-5)
        kept, total = kept + float(s[:2].square().sum()), total + float(s.square().sum())
    assert made.kept == pytest.approx(kept / total, rel=1e-4)


def test_any_mix_of_kinds_is_merged_on_its_base(
    files: list[Path], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    entries = [Entry(files[1], 0.5), Entry(files[2], 0.7)]
    with pytest.raises(AdapterError, match="more than LoRA"):
        merge(entries, output=tmp_path / "x", method="svd")
    family = tiny_sd1.family
    with pytest.raises(AdapterError, match="side by side"):
        merge(entries, output=tmp_path / "x", family=family)
    merge(entries, output=tmp_path / "x", method="svd", rank=32, dtype="fp32", family=family)
    assert close(deltas(family, tmp_path / "x"), summed(family, entries), 1e-4)


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_ties_equals_pefts(density: float) -> None:
    parts = [torch.randn(12, 20) for _ in range(3)]
    expected = peft_ties(parts, torch.ones(3), density)
    torch.testing.assert_close(ties(parts, density), expected)


def test_dare_keeps_the_mean_and_its_density() -> None:
    delta = torch.ones(200, 200)
    dropped = dare([delta], 0.25, seed=1)
    assert float((dropped != 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert torch.equal(dropped, dare([delta], 0.25, seed=1))


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_ties_and_dare_of_everything_are_the_plain_merge(
    method: str, files: list[Path], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    merge([Entry(files[0], 0.5)], output=tmp_path / "x", method=method, density=1.0, rank=9, dtype="fp32")  # type: ignore[arg-type]  # a Method
    assert close(
        deltas(tiny_sd1.family, tmp_path / "x"), summed(tiny_sd1.family, [Entry(files[0], 0.5)]), 1e-3
    )


def test_the_fast_spectrum_is_the_slow_one() -> None:
    up, down = torch.randn(40, 6), torch.randn(6, 90)
    spectrum = of_product(up, down)
    torch.testing.assert_close(spectrum.s, torch.linalg.svdvals(up @ down)[:6])
    torch.testing.assert_close(spectrum.u * spectrum.s @ spectrum.v.T, up @ down, rtol=1e-4, atol=1e-4)
    rough = of_matrix(torch.randn(300, 6) @ torch.randn(6, 400), 6)
    assert rough.kept(6) == pytest.approx(rough.energy, rel=1e-5)


def test_ranks_are_chosen_by_energy_and_ratio() -> None:
    s = torch.tensor([4.0, 2.0, 1.0, 0.5])  # squares 16, 4, 1, 0.25 of 21.25
    assert [rank_for(s, energy=e) for e in (0.5, 16 / 21.25, 0.8, 0.99, 1.0)] == [1, 1, 2, 4, 4]
    assert [rank_for(s, ratio=r) for r in (1.5, 3, 5, 100)] == [1, 2, 3, 4]
    assert rank_for(torch.zeros(3), energy=0.5) >= 1


def test_resizing_to_the_own_rank_changes_nothing(
    files: list[Path], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    made = resize(files[0], output=tmp_path / "x", dtype="fp32")
    assert close(deltas(tiny_sd1.family, tmp_path / "x"), deltas(tiny_sd1.family, files[0]), 1e-4)
    assert made.kept == pytest.approx(1) and made.ranks == (3, 3)


def test_resizing_keeps_the_energy_that_is_asked_for(files: list[Path], tmp_path: Path) -> None:
    made = resize(files[1], output=tmp_path / "x", energy=0.8, dtype="fp32")
    assert 0.8 <= made.kept < 1 and made.ranks[1] < 5
    assert resize(files[1], output=tmp_path / "y", rank=2, dtype="fp32").ranks == (2, 2)


def test_a_tucker_core_is_resized_too(tmp_path: Path) -> None:
    layer = torch.nn.Conv2d(12, 20, 3)
    spec = SPECS.get("lora")(rank=4, conv_rank=4, tucker=True)
    lora = Lora.create(layer, spec, torch.Generator())
    torch.nn.init.normal_(lora.up)
    spectrum = of_lora(lora)
    whole = spectrum.lora(4, layer.weight.shape).delta(layer.weight)
    torch.testing.assert_close(whole, lora.delta(layer.weight), rtol=1e-4, atol=1e-5)


def test_what_was_added_is_extracted(files: list[Path], tiny_sd1: TinyModel, tmp_path: Path) -> None:
    base = tiny_sd1.family
    tuned = load_family(str(tiny_sd1.folder), device="cpu", dtype=torch.float32)
    with stacked(tuned, [Entry(files[0], 0.8)]):
        made = extract(tuned, base, output=tmp_path / "x", rank=4, dtype="fp32")
    assert made.kept == pytest.approx(1, abs=1e-4)
    assert close(deltas(base, tmp_path / "x"), summed(base, [Entry(files[0], 0.8)]), 1e-3)
    with pytest.raises(AdapterError, match="do not differ"):
        extract(tuned, base, output=tmp_path / "y")


@pytest.mark.parametrize("kind", ["norm", "bias"])
def test_changes_that_lora_cannot_hold_are_not_merged_but_baked(
    kind: str, tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    family = tiny_sd1.family
    targets = {"norm": "norm1", "bias": "ff.net.2,fc1"}[kind]
    network = awake(create(family, SPECS.get(kind)(targets=targets), seed=0))
    file = save(tmp_path / "x.safetensors", network.adapters, family_name="sd1", dtype="fp32").path
    with pytest.raises(SdloraError, match="no place"):
        merge([Entry(file)], output=tmp_path / "y", method="svd", rank=4, family=family)
    with attached(family, network):
        live = answer(family)
    with stacked(family, [Entry(file)]):
        torch.testing.assert_close(answer(family), live, **TOLERANCE)


def test_adapters_of_two_families_are_not_merged(files: list[Path], tmp_path: Path) -> None:
    written(WRITERS["kohya sgm"](of(oracle.tiny_sdxl(), "unet")), tmp_path / "xl")
    with pytest.raises(AdapterError, match=r"Stable Diffusion 1.x.*Stable Diffusion XL"):
        merge([Entry(files[0]), Entry(tmp_path / "xl")], output=tmp_path / "x")
    wider = {k: torch.cat([t, t]) if ".lora_up." in k else t for k, t in load_file(files[1]).items()}
    save_file(wider, tmp_path / "wide", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="unlike width"):
        merge([Entry(files[1]), Entry(tmp_path / "wide")], output=tmp_path / "x")
    with pytest.raises(AdapterError, match="Nothing to merge"):
        merge([], output=tmp_path / "x")


@pytest.mark.parametrize("tool", ["merge", "resize", "extract"])
def test_every_tool_writes_pefts_form_with_the_same_deltas(
    tool: str, files: list[Path], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    base = tiny_sd1.family

    def make(output: Path, format: Format) -> dict[str, Tensor]:
        if tool == "merge":
            merge([Entry(files[0], 0.8), Entry(files[1])], output=output, dtype="fp32", format=format)
        elif tool == "resize":
            resize(files[0], output=output, rank=2, dtype="fp32", format=format)
        else:
            tuned = load_family(str(tiny_sd1.folder), device="cpu", dtype=torch.float32)
            with stacked(tuned, [Entry(files[0])]):
                extract(tuned, base, output=output, rank=2, dtype="fp32", format=format)
        return deltas(base, output)

    assert close(make(tmp_path / "peft", "peft"), make(tmp_path / "kohya", "kohya"), 1e-6)
    paths = {f"{layer.component}.{layer.path}" for layer in index(base).values()}
    for key in AdapterFile.open(tmp_path / "peft").container.entries:
        path, side, _ = key.replace("text_model.", "").rsplit(".", 2)
        assert path in paths and side in ("lora_A", "lora_B")
    assert PEFT_KEY in AdapterFile.open(tmp_path / "peft").metadata


def test_a_merged_file_answers_to_the_words_of_all(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    files = [saved(tiny_sd1.family, tmp_path / f"{name}.safetensors") for name in ("one", "two", "three")]
    sidecar.write(files[0], triggers=["zwx", "ink"])
    sidecar.write(files[2], triggers=["ink", "ohwx"])
    both = tmp_path / "both.safetensors"
    merge([Entry(file) for file in files], output=both)
    assert inspect(both).triggers == ("zwx", "ink", "ohwx")
