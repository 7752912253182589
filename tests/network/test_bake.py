"""Baked models answer as the stack that went into them, in whatever form they are kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdlora.adapters import SPECS
from sdlora.base.files import ModelFolder
from sdlora.base.original import OriginalFile
from sdlora.contracts import Family
from sdlora.errors import AdapterError
from sdlora.families import FAMILIES
from sdlora.loading import load_family
from sdlora.network.attach import create
from sdlora.network.bake import bake
from sdlora.network.codec import save
from sdlora.network.stack import Entry, stacked
from tests.conftest import TinyModel
from tests.network.test_attach import awake
from tests.network.test_stack import equal, saved, weights
from tests.original import write_original

UNET = "unet/diffusion_pytorch_model"


def entries(family: Family, folder: Path) -> list[Entry]:
    """A LoRA of all layers, and changes of biases."""
    bias = awake(create(family, SPECS.get("bias")(targets="to_out,fc"), seed=3))
    save(folder / "b.safetensors", bias.adapters, family_name=family.name, dtype="fp32")
    return [
        Entry(saved(family, folder / "a.safetensors", targets="attn2|conv|self_attn|text_projection"), 0.8),
        Entry(folder / "b.safetensors", 0.5),
    ]


def single(path: Path, folder: Path) -> Family:
    """The family in a single file, whose sizes are those of a folder."""
    file = OriginalFile(path, rest=ModelFolder(folder))
    return FAMILIES.get(file.family).load(file, device=torch.device("cpu"), dtype=torch.float32)


def test_a_folder_becomes_a_folder(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    family = tiny_sd1.family
    before, stack = weights(family), entries(family, tmp_path)
    bake(family, stack, output=tmp_path / "baked")
    assert equal(weights(family), before)
    with stacked(family, stack):
        assert equal(
            weights(load_family(str(tmp_path / "baked"), device="cpu", dtype=torch.float32)), weights(family)
        )
    with pytest.raises(AdapterError, match="exists already"):
        bake(family, stack, output=tmp_path / "baked")
    with pytest.raises(AdapterError, match="a folder"):
        bake(family, stack, output=tmp_path / "baked.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors", "baked"}


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_a_single_file_becomes_a_single_file(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tiny: TinyModel = request.getfixturevalue(f"tiny_{name}")
    source = write_original(tiny.folder, tmp_path / "base.safetensors", family=name)
    family = single(source, tiny.folder)
    stack = entries(family, tmp_path)
    bake(family, stack, output=tmp_path / "baked.safetensors")
    with stacked(family, stack):
        assert equal(weights(single(tmp_path / "baked.safetensors", tiny.folder)), weights(family))
    old, new = load_file(source), load_file(tmp_path / "baked.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in old.items()} == {n: (t.shape, t.dtype) for n, t in new.items()}
    untouched = [
        n for n in old if n.startswith("first_stage_model.") or "23.ln_1" in n or "position_ids" in n
    ]
    assert untouched and all(torch.equal(old[n], new[n]) for n in untouched)
    with pytest.raises(AdapterError, match="a .safetensors file"):
        bake(family, stack, output=tmp_path / "folder")


def test_models_in_parts_and_of_half_precision_stay_so(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    import shutil

    source = shutil.copytree(tiny_sd1.folder, tmp_path / "base")
    whole = {n: t.half() for n, t in load_file(source / f"{UNET}.safetensors").items()}
    (source / f"{UNET}.safetensors").unlink()
    names = sorted(whole)
    shards = {f"diffusion_pytorch_model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for shard, held in shards.items():
        save_file({n: whole[n] for n in held}, source / "unet" / shard)
    index = {"metadata": {}, "weight_map": {n: shard for shard, held in shards.items() for n in held}}
    (source / f"{UNET}.safetensors.index.json").write_text(json.dumps(index))
    (source / "whole.safetensors").write_bytes(b"the same model in another layout")
    family = load_family(str(source), device="cpu", dtype=torch.float32)
    stack = entries(family, tmp_path)
    bake(family, stack, output=tmp_path / "baked")
    with stacked(family, stack):
        expected = {n: t.half().float() if n.startswith("unet.") else t for n, t in weights(family).items()}
    assert equal(weights(load_family(str(tmp_path / "baked"), device="cpu", dtype=torch.float32)), expected)
    assert not (tmp_path / "baked/whole.safetensors").exists()
