"""What is made of adapters is made by the worker, can be stopped, and is told in words and figures."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sdlora.adapters import SPECS
from sdlora.errors import AdapterError, Cancelled, UserError
from sdlora.network.attach import create
from sdlora.network.change import Change
from sdlora.network.codec import AdapterFile, save
from sdlora.network.loose import loras
from sdlora.network.merge import METHODS
from sdlora.network.stack import stacked
from sdlora.service import workshop
from sdlora.service.jobs import Job
from sdlora.service.studio import Entry, Studio
from tests.conftest import TinyModel
from tests.network.test_attach import answer, awake
from tests.network.test_stack import saved
from tests.service.test_jobs import SECONDS

PEFT_SUFFIXES = (".lora_A.weight", ".lora_B.weight")


@pytest.fixture
def pair(studio: Studio, tmp_path: Path, tiny_sd1: TinyModel) -> list[Entry]:
    files = [
        saved(tiny_sd1.family, tmp_path / f"{name}.safetensors", seed=len(name)) for name in ("ink", "zibbo")
    ]
    return [Entry(studio.library.add(file).path) for file in files]


def ended(studio: Studio, job: Job) -> Job:
    made = studio.jobs.wait(job.number, SECONDS)
    assert made.state == "done", f"{made.error} {made.hint}"
    return made


def test_every_way_of_merging_gives_an_adapter_of_the_library(studio: Studio, pair: list[Entry]) -> None:
    for method in METHODS:
        job = ended(studio, studio.merge(pair, name=f"by-{method}", method=method, rank=3))
        assert studio.library.named(f"by-{method}") == job.files[0]
        assert job.told["ranks"] == ([8, 8] if method == "concat" else [3, 3])
        assert job.steps == len(loras(AdapterFile.open(job.files[0])))


def test_a_smaller_copy_has_the_rank_that_was_asked_for(studio: Studio, pair: list[Entry]) -> None:
    job = ended(studio, studio.resize(pair[0].file, name="small", rank=2, energy=1.0, format="peft"))
    assert job.told["ranks"] == [2, 2] and 0 < job.told["kept"] < 1
    assert all(key.endswith(PEFT_SUFFIXES) for key in AdapterFile.open(job.files[0]).container.entries)


def test_a_baked_model_is_a_base_and_gives_its_adapter_back(
    studio: Studio, pair: list[Entry], tiny_sd1: TinyModel
) -> None:
    baked = ended(studio, studio.bake(pair[:1], base="builtin", name="inked"))
    assert ("inked", str(baked.files[0])) in [(n, str(Path(p))) for n, p in studio.models.names()]
    taken = ended(studio, studio.extract(str(baked.files[0]), base="builtin", name="again", rank=4))
    with stacked(tiny_sd1.family, [Entry(pair[0].file)]):
        wanted = answer(tiny_sd1.family)
    with stacked(tiny_sd1.family, [Entry(taken.files[0])]):
        torch.testing.assert_close(answer(tiny_sd1.family), wanted, rtol=1e-2, atol=1e-2)  # saved in fp16
    with pytest.raises(UserError, match="exists already"):
        studio.bake(pair, base="builtin", name="inked")


def test_a_mix_is_compared_pair_by_pair_and_balanced(studio: Studio, pair: list[Entry]) -> None:
    fading = Entry(pair[1].file, 0.5, change=Change(curve=((0.0, 0.0), (1.0, 1.0))))
    job = ended(studio, studio.compare([pair[0], pair[0], fading]))
    same, *others = job.told["pairs"]
    assert same["energy"] == pytest.approx(2) and same["overlap"] == pytest.approx(1, abs=1e-4)
    assert all(abs(found["cosine"]) < 0.2 for found in others)
    assert job.told["scale"] < 0.6
    assert [weight for weight, _ in job.told["balanced"]] == pytest.approx(
        [job.told["scale"], job.told["scale"], job.told["scale"] / 2]
    )
    assert {path.suffix for path in job.files} == {".png", ".csv"}


def test_adapters_of_one_name_are_compared_in_pictures_of_their_own(
    studio: Studio, pair: list[Entry], tiny_sd1: TinyModel
) -> None:
    (studio.library.folder / "other").mkdir()
    namesake = saved(tiny_sd1.family, studio.library.folder / "other" / "ink.safetensors", seed=9)
    job = ended(studio, studio.compare([pair[0], Entry(namesake), pair[1]]))
    assert len({found["pictures"] for found in job.told["pairs"]}) == 3
    assert len({path.read_bytes() for path in job.files if path.suffix == ".csv"}) == 3


def test_a_mix_with_another_kind_is_compared_on_a_base_that_it_fits(
    studio: Studio, pair: list[Entry], tiny_sd1: TinyModel
) -> None:
    network = awake(create(tiny_sd1.family, SPECS.get("loha")(rank=2, targets="attn2"), seed=0))
    path = studio.library.folder / "loha.safetensors"
    save(path, network.adapters, family_name="sd1")
    job = ended(studio, studio.compare([pair[0], Entry(path)]))
    assert job.told["base"] and -1 < job.told["pairs"][0]["cosine"] < 1


def test_an_adapter_is_measured_in_pictures_and_tables(studio: Studio, pair: list[Entry]) -> None:
    job = ended(studio, studio.measure(pair[0].file))
    assert job.told["directions"] == 4 and 1 <= job.told["needed"] <= 4
    for path in job.files:
        if path.suffix == ".png":
            Image.open(path).verify()
    table = (studio.measures / "ink by direction.csv").read_text().splitlines()
    strengths = [float(line.split(",")[1]) for line in table[1:]]
    assert strengths == sorted(strengths, reverse=True) and len(strengths) == 4


@pytest.mark.parametrize(("kind", "directions"), [("oft", 32), ("norm", 0)])
def test_every_kind_is_measured_on_a_base_that_it_fits(
    kind: str, directions: int, tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    network = awake(create(tiny_sd1.family, SPECS.get(kind)(), seed=0))
    file = save(tmp_path / "other.safetensors", network.adapters, family_name="sd1").path
    message = {"kind": "measure", "file": str(file), "pictures": str(tmp_path), "models": []}
    with pytest.raises(AdapterError, match="none of their family"):
        workshop.work(message | {"bases": []}, lambda done, total: None)
    done = workshop.work(message | {"bases": [str(tiny_sd1.folder)]}, lambda done, total: None)
    assert done.told["directions"] == directions and len(done.files) == (4 if directions else 2)


@pytest.mark.parametrize("kind", ["merge", "resize"])
def test_what_is_cancelled_leaves_no_file(tmp_path: Path, tiny_sd1: TinyModel, kind: str) -> None:
    file = saved(tiny_sd1.family, tmp_path / "ink.safetensors")
    entry = {"file": str(file), "weight": 1.0, "text_weight": None}
    message = {
        "kind": kind,
        "stack": [entry, entry],
        "file": str(file),
        "base": "",
        "method": "svd",
        "output": str(tmp_path / "new.safetensors"),
        "rank": 2,
        "density": 0.5,
        "energy": 1.0,
        "format": "kohya",
    }

    def at(done: int, total: int) -> None:
        if done == 5:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        workshop.work(message, at)
    assert [path.name for path in tmp_path.iterdir()] == ["ink.safetensors"]
