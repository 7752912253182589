"""A picture restores the request that made it; foreign texts cannot hurt."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from sdlora.errors import ConfigError, UserError
from sdlora.generation.png import parameters, picture_request, read_parameters, read_png, save_png
from sdlora.generation.request import GenerateRequest
from sdlora.network.change import Change, turns, window
from sdlora.network.stack import Entry
from sdlora.service.mix import Masks

PICTURE = Image.new("RGB", (64, 96), "red")


@pytest.fixture
def request_of_two(tmp_path: Path) -> GenerateRequest:
    """A request with two adapters in tmp_path/loras and awkward words."""
    folder = tmp_path / "loras"
    folder.mkdir()
    entries = []
    for name, value in (("ink", 1.0), ("Mädchen 漫画", 2.0)):
        tensors = {
            "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.full((1, 4), value),
            "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.full((4, 1), value),
        }
        save_file(tensors, folder / f"{name}.safetensors")
        entries.append(Entry(folder / f"{name}.safetensors", value / 2, None if value == 1 else 0.25))
    return GenerateRequest(
        prompt='a "cat", (red:1.2)\nSteps: 3, no: 1',
        negative="Wörter, blue\nand: green",
        width=64,
        height=96,
        seed=2**32 - 1,
        guidance=6.5,
        solver="Euler a",
        clip_skip=2,
        stack=tuple(entries),
    )


def test_a_picture_restores_its_request_exactly(tmp_path: Path, request_of_two: GenerateRequest) -> None:
    save_png(tmp_path / "x.png", PICTURE, request_of_two)
    restored = read_png(tmp_path / "x.png", folders=[tmp_path / "loras"])
    assert restored.request == request_of_two and restored.notes == ()


def test_a_picture_restores_how_weights_vary(tmp_path: Path, request_of_two: GenerateRequest) -> None:
    curve = Change(curve=window(0.2, 1 / 3), box=(0, 0.1, 0.5, 1))
    turn = replace(turns(2)[1], blocks=(0.0,) * 16 + (1 / 7,))
    one, other = request_of_two.stack
    varied = replace(request_of_two, stack=(replace(one, change=curve), replace(other, change=turn)))
    save_png(tmp_path / "x.png", PICTURE, varied)
    restored = read_png(tmp_path / "x.png", folders=[tmp_path / "loras"])
    assert restored.request == varied and restored.notes == ()
    text = parameters(varied, PICTURE.size)
    assert "<lora:ink:0.5:start=0.2:end=0.3333333333333333:box=0,0.1,0.5,1>" in text
    assert read_parameters(text, folders=[tmp_path / "loras"]).request == varied


def masked(request: GenerateRequest, mask: Path) -> GenerateRequest:
    """The request whose first adapter counts where a soft disc is bright."""
    Image.radial_gradient("L").resize((600, 400)).save(mask)
    return replace(request, stack=(replace(request.stack[0], change=Change(mask=mask)),))


def test_a_picture_carries_its_masks(tmp_path: Path, request_of_two: GenerateRequest) -> None:
    request, masks = masked(request_of_two, tmp_path / "left.png"), Masks(tmp_path / "masks")
    save_png(tmp_path / "x.png", PICTURE, request)
    with Image.open(tmp_path / "x.png") as picture:
        assert all(str(tmp_path) not in text for text in picture.info.values())
    for _ in range(2):
        restored = read_png(tmp_path / "x.png", folders=[tmp_path / "loras"], keep_mask=masks.keep)
        (mask,) = masks.folder.iterdir()
        (change,) = (entry.change for entry in restored.request.stack)
        assert change.mask == mask and restored.notes == ()
        assert torch.equal(change.area(64, 96), request.stack[0].change.area(64, 96))
        save_png(tmp_path / "x.png", PICTURE, restored.request)  # and on from picture to picture


@pytest.mark.parametrize("damage", [None, 5, "no base64 !", "bm8gcGljdHVyZQ=="])
def test_a_mask_that_cannot_be_read_is_a_note(
    tmp_path: Path, request_of_two: GenerateRequest, damage: object
) -> None:
    save_png(tmp_path / "x.png", PICTURE, masked(request_of_two, tmp_path / "left.png"))
    with Image.open(tmp_path / "x.png") as picture:
        told = json.loads(picture.info["sdlora"])
    told["stack"][0]["mask"] = damage
    info = PngImagePlugin.PngInfo()
    info.add_text("sdlora", json.dumps(told))
    PICTURE.save(tmp_path / "y.png", pnginfo=info)
    masks = Masks(tmp_path / "masks")
    restored = read_png(tmp_path / "y.png", folders=[tmp_path / "loras"], keep_mask=masks.keep)
    assert restored.request.stack == (request_of_two.stack[0],)
    assert restored.notes == ('The mask "left.png" of the adapter "ink" is not in the picture.',)


def test_a_renamed_adapter_is_found_by_its_hash(tmp_path: Path, request_of_two: GenerateRequest) -> None:
    save_png(tmp_path / "x.png", PICTURE, request_of_two)
    moved = request_of_two.stack[0].file.rename(tmp_path / "loras" / "other.safetensors")
    restored = read_png(tmp_path / "x.png", folders=[tmp_path / "loras"])
    assert restored.request.stack[0].file == moved


def test_an_adapter_that_is_not_here_is_named(tmp_path: Path, request_of_two: GenerateRequest) -> None:
    save_png(tmp_path / "x.png", PICTURE, request_of_two)
    restored = read_png(tmp_path / "x.png")
    assert restored.request == replace(request_of_two, stack=())
    assert len(restored.notes) == 2 and '"ink"' in restored.notes[0]


def test_no_path_of_this_machine_is_written(tmp_path: Path, request_of_two: GenerateRequest) -> None:
    save_png(tmp_path / "x.png", PICTURE, replace(request_of_two, base=str(tmp_path / "sd15.safetensors")))
    with Image.open(tmp_path / "x.png") as picture:
        assert all(str(tmp_path) not in text for text in picture.info.values())


def test_the_json_of_a_request_gives_it_back(request_of_two: GenerateRequest) -> None:
    assert GenerateRequest.from_json(request_of_two.to_json()) == request_of_two


def test_the_text_is_a1111s(tmp_path: Path) -> None:
    request = GenerateRequest(prompt="a cat", negative="blue", guidance=7.0, seed=5)
    lines = parameters(request, (512, 768), model_hash="6ce0161689abcdef").split("\n")
    assert lines[:2] == ["a cat", "Negative prompt: blue"]
    assert lines[2].startswith(
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.0, Seed: 5, Size: 512x768, "
        "Model hash: 6ce0161689, Model: builtin, RNG: CPU, Version: sdlora "
    )


def test_our_text_restores_the_request_without_the_json(request_of_two: GenerateRequest) -> None:
    folder = request_of_two.stack[0].file.parent
    text = parameters(request_of_two, PICTURE.size)
    assert 'Lora hashes: "ink: ' in text
    assert read_parameters(text, folders=[folder]).request == request_of_two


def test_a_foreign_text_is_read_with_notes_on_the_rest() -> None:
    text = (
        "masterpiece, a cat\nsecond line\nNegative prompt: bad hands,\nlowres\n"
        "Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
        'Model hash: 6ce0161689, Model: v1-5, Denoising strength: 0.7, Clip skip: 2, Hires prompt: "a, b: c"'
    )
    restored = read_parameters(text)
    assert restored.request == GenerateRequest(
        prompt="masterpiece, a cat\nsecond line",
        negative="bad hands,\nlowres",
        steps=25,
        guidance=7.0,
        seed=965400086,
        width=512,
        height=768,
        solver="DPM++ 2M Karras",
        clip_skip=2,
    )
    assert restored.notes == (
        'It was made with the model "v1-5".',
        "Not used here: Denoising strength, Hires prompt.",
    )


def test_settings_out_of_range_become_notes() -> None:
    restored = read_parameters("a\nSteps: 99999, Sampler: Restart, CFG scale: nan, Seed: -1, Size: axb")
    assert restored.request == GenerateRequest(prompt="a") and len(restored.notes) == 6


@pytest.mark.parametrize("text", ["", "a cat", "https://civitai.com/images/123", "Steps: 20, Seed: 1"])
def test_what_holds_no_settings_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no settings"):
        read_parameters(text)


def test_picture_two_of_a_request_has_the_next_seed() -> None:
    assert picture_request(GenerateRequest(seed=5, count=4), 2) == GenerateRequest(seed=7, count=1)


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": 3}',
        '{"unknown": 1}',
        '{"stack": [{"name": "../../etc/passwd"}]}',
        '{"stack": 5}',
        '{"steps": 1e999}',
        "[" * 100_000,
        '{"stack": [{"name": "a", "hash": "", "weight": NaN}]}',
        '{"stack": [{"name": "a", "hash": "", "weight": 1e999}]}',
        '{"stack": [{"name": "a", "weight": 1}]}',
        '{"stack": [{"name": "a", "hash": "", "weight": 1, "change": "box"}]}',
        '{"stack": [{"name": "a", "hash": "", "weight": 1, "change": {"box": [0, 0, 1, 1]}}]}',
        '{"stack": [{"name": "a", "hash": "", "weight": 1, "change": {"curve": "9@9"}}]}',
    ],
)
def test_a_hostile_json_gives_way_to_the_plain_text(tmp_path: Path, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("sdlora", text)
    info.add_text("parameters", "a cat\nSteps: 3, Sampler: Euler, Seed: 4")
    PICTURE.save(tmp_path / "x.png", pnginfo=info)
    assert read_png(tmp_path / "x.png").request.prompt == "a cat"


def test_a_request_that_is_no_json_is_refused() -> None:
    for text in ("", "5", '{"stack": [3]}', '{"steps": 0}', json.dumps({"stack": {"file": "x"}})):
        with pytest.raises(ConfigError):
            GenerateRequest.from_json(text)


def test_files_that_say_nothing_are_refused_in_a_sentence(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "plain.png")
    with pytest.raises(UserError, match="does not say how it was made"):
        read_png(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="cannot be read as a picture"):
        read_png(tmp_path / "text.png")


def test_a_text_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * (64 << 20)))
    PICTURE.save(tmp_path / "bomb.png", pnginfo=info)
    with pytest.raises(UserError):
        read_png(tmp_path / "bomb.png")
