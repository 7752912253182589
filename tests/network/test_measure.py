"""Numbers and pictures of adapters, against what follows from their deltas written out."""

import csv
import io
from pathlib import Path

import pytest
import torch

from sdlora.adapters import SPECS
from sdlora.errors import AdapterError
from sdlora.network.attach import create
from sdlora.network.codec import AdapterFile, save
from sdlora.network.loose import loras, shape_of
from sdlora.network.measure import balanced, change_of, conflict, inner, similarities, similarity
from sdlora.network.picture import bars, curve, heatmap, table
from sdlora.network.profile import profile
from sdlora.network.stack import Entry
from tests.conftest import TinyModel
from tests.network.test_attach import awake
from tests.network.test_merge import deltas
from tests.network.test_stack import saved


@pytest.fixture(scope="module")
def files(tiny_sd1: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [
        saved(
            tiny_sd1.family, folder / f"{rank}.safetensors", seed=rank, rank=rank, targets="attn2,conv1,fc1"
        )
        for rank in (3, 5)
    ]


def whole(path: Path) -> dict[str, torch.Tensor]:
    """Every delta of a file, flat."""
    return {
        layer.path: lora.delta(torch.empty(shape_of(lora))).detach().flatten().double()
        for layer, lora in loras(AdapterFile.open(path)).items()
    }


def test_inner_products_are_those_of_the_deltas(files: list[Path]) -> None:
    one, two = (loras(AdapterFile.open(path)) for path in files)
    first, second = (whole(path) for path in files)
    for layer, lora in one.items():
        expected = float(first[layer.path] @ second[layer.path])
        assert inner(lora, two[layer]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_norms_by_block_add_up(files: list[Path]) -> None:
    found = profile(files[0]).norms
    total = sum(float(delta @ delta) for delta in whole(files[0]).values())
    assert sum(norm**2 for norm in found.values()) == pytest.approx(total, rel=1e-4)
    assert list(found)[:2] == ["BASE", "IN01"] and "MID" in found


def test_spectra_are_those_of_the_deltas(files: list[Path]) -> None:
    held = loras(AdapterFile.open(files[0]))
    for layer, s in profile(files[0]).spectra.items():
        lora = held[layer]
        expected = torch.linalg.svdvals(lora.delta(torch.empty(shape_of(lora))).detach().flatten(1))[: len(s)]
        torch.testing.assert_close(s, expected, rtol=1e-3, atol=1e-4)


def test_similarity_is_the_papers_formula(files: list[Path]) -> None:
    layer, first = next(iter(loras(AdapterFile.open(files[0])).items()))
    second = loras(AdapterFile.open(files[1]))[layer]
    left, right = (
        torch.linalg.svd(a.down.detach().flatten(1), full_matrices=False).Vh for a in (first, second)
    )
    got = similarity(first, second)
    for i in range(1, 4):
        for j in range(1, 6):
            expected = (left[:i] @ right[:j].T).norm() ** 2 / min(i, j)
            assert float(got[i - 1, j - 1]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    own = similarity(first, first)
    torch.testing.assert_close(own.diagonal(), torch.ones(3))
    assert len(similarities(*files)) == len(loras(AdapterFile.open(files[0])))


def test_an_adapter_meets_itself_fully_and_its_opposite_cancels(files: list[Path]) -> None:
    same = conflict(Entry(files[0]), Entry(files[0]))
    assert (same.cosine, same.energy, same.overlap) == pytest.approx((1, 2, 1), rel=1e-4)
    against = conflict(Entry(files[0]), Entry(files[0], -1.0))
    assert (against.cosine, against.energy) == pytest.approx((-1, 0), abs=1e-4)
    strangers = conflict(Entry(files[0]), Entry(files[1]))
    assert abs(strangers.cosine) < 0.1 and strangers.energy == pytest.approx(1, abs=0.1)
    assert strangers.blocks.keys() == profile(files[0]).norms.keys()


def test_a_balanced_stack_is_as_strong_as_its_strongest_part(files: list[Path]) -> None:
    stack = [Entry(files[0], 1.0), Entry(files[1], 0.5), Entry(files[0], 0.8, text_weight=0.2)]
    after = balanced(stack)

    def strength(entries: list[Entry]) -> float:
        total: dict[str, torch.Tensor] = {}
        for entry in entries:
            for layer, lora in loras(AdapterFile.open(entry.file)).items():
                delta = entry.weight_at(layer) * lora.delta(torch.empty(shape_of(lora))).detach()
                total[layer.path] = total.get(layer.path, torch.zeros_like(delta)) + delta
        return sum(float(delta.double().square().sum()) for delta in total.values())

    assert strength(list(after)) == pytest.approx(max(strength([entry]) for entry in stack), rel=1e-3)
    assert after[0].weight / after[1].weight == pytest.approx(2)
    assert balanced([stack[0]]) == (stack[0],)


def test_pictures_and_tables_show_the_numbers(files: list[Path]) -> None:
    values = profile(files[0]).norms
    layer, s = next(iter(profile(files[0]).spectra.items()))
    for image in (
        bars(values, title="Norms"),
        curve(s.tolist(), title=layer.path),
        heatmap(torch.rand(3, 5), title="phi"),
        bars({}, title="none"),
        curve([], title="none"),
    ):
        assert image.mode == "RGB" and min(image.size) > 30
    hot, cold = (heatmap(torch.full((1, 1), value), title="").getpixel((10, 30)) for value in (1.0, 0.0))
    assert hot == (253, 231, 37) and cold == (68, 1, 84)
    rows = list(csv.reader(io.StringIO(table([("a,b", 1.5)], header=("name", "norm")))))
    assert rows == [["name", "norm"], ["a,b", "1.5"]]


KINDS_OF_SPECS = {
    "loha": {"rank": 2},
    "lokr": {"rank": 2},
    "dora": {"rank": 2},
    "glora": {"rank": 2},
    "oft": {"block": 4},
    "ia3": {},
    "full": {},
}


@pytest.mark.parametrize("kind", KINDS_OF_SPECS)
def test_every_kind_is_measured_by_its_deltas_on_its_base(
    kind: str, files: list[Path], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    family = tiny_sd1.family
    spec = SPECS.get(kind)(targets="attn2,fc1", **KINDS_OF_SPECS[kind])
    other = save(
        tmp_path / "x", awake(create(family, spec, seed=0)).adapters, family_name="sd1", dtype="fp32"
    )
    entries = [Entry(files[0], 0.7), Entry(other.path, -0.5)]
    with pytest.raises(AdapterError, match="more than LoRA"):
        conflict(*entries)
    one, two = (deltas(family, entry.file) for entry in entries)
    shared = one.keys() & two.keys()
    a, b = (
        torch.cat([entry.weight * found[name].flatten() for name in shared]).double()
        for entry, found in zip(entries, (one, two), strict=True)
    )
    found = conflict(*entries, family=family)
    assert found.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-5)
    assert found.energy == pytest.approx(float((a + b) @ (a + b) / (a @ a + b @ b)), abs=1e-5)
    same = conflict(entries[1], entries[1], family=family)
    assert (same.cosine, same.energy, same.overlap) == pytest.approx((1, 2, 1), rel=1e-4)
    first, second = balanced([entries[1], entries[1]], family=family)
    assert first.weight == second.weight == pytest.approx(-0.25, rel=1e-4)
    told, adapters = profile(other.path, family=family), other.resolve(family).adapters
    assert sum(norm**2 for norm in told.norms.values()) == pytest.approx(
        sum(told.energies.values()), rel=1e-4
    )
    for layer, s in told.spectra.items():
        change = change_of(adapters[layer], layer, family)
        assert isinstance(change, torch.Tensor)
        expected = torch.linalg.svdvals(change)[: len(s)]
        torch.testing.assert_close(s, expected, rtol=1e-2, atol=1e-3)
    assert 0 < told.held <= 1 + 1e-6 and len(told.mean) <= 32


@pytest.mark.parametrize(("kind", "targets"), [("norm", "norm1"), ("bias", "fc1")])
def test_changes_of_normalisations_and_biases_count(
    kind: str, targets: str, tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    network = awake(create(tiny_sd1.family, SPECS.get(kind)(targets=targets), seed=0))
    file = Entry(save(tmp_path / "x", network.adapters, family_name="sd1", dtype="fp32").path)
    against = conflict(file, Entry(file.file, -1.0), family=tiny_sd1.family)
    assert (against.cosine, against.energy) == pytest.approx((-1, 0), abs=1e-5)
    told = profile(file.file, family=tiny_sd1.family)
    assert max(told.norms.values()) > 0 and not told.spectra and not told.mean


def test_a_lora_is_measured_the_same_with_and_without_its_base(
    files: list[Path], tiny_sd1: TinyModel
) -> None:
    pair = [Entry(file) for file in files]
    loose, based = conflict(*pair), conflict(*pair, family=tiny_sd1.family)
    assert (loose.cosine, loose.energy, loose.overlap) == pytest.approx(
        (based.cosine, based.energy, based.overlap)
    )
