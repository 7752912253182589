"""A base model is found, told apart and loaded, or refused in one sentence."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdlora.base.files import weights_hash
from sdlora.errors import ConfigError, ModelError
from sdlora.loading import describe, find, load_family, open_model
from tests.conftest import TinyModel
from tests.original import write_original


@pytest.fixture
def folder(tiny_sd1: TinyModel, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_sd1.folder, tmp_path / "model"))


def refused(model: Path | str, **options: str) -> str:
    """The sentence with which the model is refused."""
    with pytest.raises(ModelError) as error:
        load_family(str(model), device="cpu", dtype=torch.float32, **options)
    assert error.value.hint
    return error.value.message


def test_a_model_is_described_without_its_weights(tiny_sd1: TinyModel) -> None:
    info = describe(str(tiny_sd1.folder))
    assert (info.name, info.family, info.title) == ("tiny-sd1", "sd1", "Stable Diffusion 1.x")
    assert (info.prediction, info.native_size) == ("epsilon", 64)
    assert weights_hash(info.files) == tiny_sd1.family.hash
    assert info.bytes == sum(file.stat().st_size for file in tiny_sd1.folder.rglob("*.safetensors"))


def test_builtin_is_the_folder_that_the_variable_names(
    tiny_sd1: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDLORA_BUILTIN", str(tiny_sd1.folder))
    assert describe("builtin").path == tiny_sd1.folder
    monkeypatch.setenv("SDLORA_BUILTIN", "/nowhere")
    assert "/nowhere" in refused("builtin")


def test_a_bare_name_is_looked_up_in_the_roots(tiny_sd1: TinyModel) -> None:
    assert describe("tiny-sd1", roots=[tiny_sd1.folder.parent]).path == tiny_sd1.folder
    assert refused("no-such") == 'There is no model "no-such".'


def test_a_name_without_its_ending_is_found_below_the_roots_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    shutil.move(folder, tmp_path / "sub" / "cartoon")
    write_original(tmp_path / "sub" / "cartoon", tmp_path / "sub" / "photo-v2.safetensors", family="sd1")
    roots = [tmp_path / "none", tmp_path]
    assert find("cartoon", roots, otherwise=lambda: None) == tmp_path / "sub" / "cartoon"
    assert find("photo-v2", roots, otherwise=lambda: None) == tmp_path / "sub" / "photo-v2.safetensors"
    with pytest.raises(ModelError) as error:
        find("cartoons", roots, otherwise=lambda: None)
    assert error.value.hint == 'Did you mean "cartoon"?'


@pytest.mark.parametrize("nothing", ["", "  "])
def test_no_name_is_no_model(nothing: str) -> None:
    assert refused(nothing) == "No base model is named."


def test_the_hash_changes_with_a_weight(tiny_sd1: TinyModel, folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_in.bias"] += 1
    save_file(tensors, file)
    assert weights_hash(open_model(folder)) != tiny_sd1.family.hash


def test_fp16_weights_are_loaded_in_the_wanted_precision(tiny_sd1: TinyModel, folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(half, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    file.unlink()
    unet = load_family(str(folder), device="cpu", dtype=torch.float32).components["unet"]
    for name, tensor in unet.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, half[name].float())


def test_shards_are_put_together(tiny_sd1: TinyModel, folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, file.with_name(part))
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    file.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()
    unet = load_family(str(folder), device="cpu", dtype=torch.float32).components["unet"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in unet.state_dict().items())


def test_everything_is_frozen_and_in_evaluation_mode(tiny_sd1: TinyModel) -> None:
    for network in tiny_sd1.family.components.values():
        assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_a_missing_sub_folder_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    assert refused(folder) == f"The model folder {folder} lacks its sub-folder vae."


def test_a_half_downloaded_file_is_told(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    size = file.stat().st_size
    with file.open("rb+") as opened:
        opened.truncate(size // 2)
    assert refused(folder) == f"{file} is incomplete: {size // 2:,} of {size:,} bytes are there."


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 4, struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"[]", b"x" * 100]
)
def test_a_lying_header_is_told(folder: Path, content: bytes) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(content)
    assert refused(folder).startswith(f"{file} is damaged: ")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    save_file(tensors, file)
    assert "lacks 1 of" in refused(folder) and "conv_in.bias" in refused(folder)


def test_pickled_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"cposix\nsystem\n(S'touch /tmp/owned'\ntR.")
    assert "pickled weights" in refused(tmp_path / "model.ckpt")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    assert "pickled weights" in refused(folder)


def test_an_inpainting_model_is_refused_by_name(folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    assert "an inpainting model" in refused(folder)


def test_a_model_that_is_told_the_guidance_is_refused(folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "time_cond_proj_dim": 256}))
    assert "is an LCM" in refused(folder)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, tmp_path / "ink.safetensors")
    assert "is an adapter, not a base model" in refused(tmp_path / "ink.safetensors")


def test_a_single_file_is_described_without_its_weights(tiny_sdxl: TinyModel, tmp_path: Path) -> None:
    path = write_original(tiny_sdxl.folder, tmp_path / "some-mix.safetensors", family="sdxl")
    info = describe("some-mix.safetensors", roots=[tmp_path])
    assert (info.name, info.family, info.prediction) == ("some-mix", "sdxl", "epsilon")
    assert (info.native_size, info.path, info.bytes) == (1024, path, path.stat().st_size)


def test_a_half_downloaded_single_file_is_told(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    path = write_original(tiny_sd1.folder, tmp_path / "x.safetensors", family="sd1")
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 1)
    assert refused(path).startswith(f"{path} is incomplete: ")


def test_a_folder_without_an_index_is_no_model(tmp_path: Path) -> None:
    assert "holds no model_index.json" in refused(tmp_path)


def test_zero_terminal_snr_with_epsilon_is_refused(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    assert "cannot be combined" in refused(folder)
    noise = load_family(str(folder), device="cpu", dtype=torch.float32, prediction="v_prediction").noise
    assert noise.zero_terminal and noise.prediction == "v_prediction"
    noise = load_family(str(folder), device="cpu", dtype=torch.float32, zero_terminal="off").noise
    assert not noise.zero_terminal and noise.prediction == "epsilon"


def test_a_description_says_what_was_detected_or_what_a_person_knows_better(folder: Path) -> None:
    assert describe(str(folder)).text == "Stable Diffusion 1.x, 64 pixels, predicts epsilon"
    told = describe(str(folder), family="sd2", prediction="v_prediction", zero_terminal="on")
    assert told.text == "Stable Diffusion 2.x, 64 pixels, predicts v, zero-terminal SNR"
    with pytest.raises(ModelError, match="cannot be combined"):
        describe(str(folder), zero_terminal="on")


def test_a_folder_of_a_model_without_a_unet_is_told(folder: Path) -> None:
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert refused(folder).endswith(" is for FluxPipeline, which has no UNet.")


def test_an_unknown_family_names_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match="sd1"):
        load_family(str(folder), device="cpu", dtype=torch.float32, family="sd11")
