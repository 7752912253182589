"""One of everything that can be wrong with a file, for `test_bad_input.py`."""

import json
import shutil
import struct
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from sdlora.adapters.lora import LoraSpec
from sdlora.network.attach import create
from sdlora.network.codec import save
from tests.conftest import TinyModel
from tests.network.test_attach import awake

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def adapters(place: Path, sd1: TinyModel, sdxl: TinyModel) -> None:
    """`place` holds a good adapter, in models/Lora too, one for SDXL, and files that are none."""
    for name, tiny in (("good", sd1), ("xl", sdxl)):
        network = awake(create(tiny.family, LoraSpec(rank=1), seed=0))
        save(place / f"{name}.safetensors", network.adapters, family_name=tiny.family.name)
    good = (place / "good.safetensors").read_bytes()
    (place / "models/Lora").mkdir(parents=True)
    (place / "models/Lora/good.safetensors").write_bytes(good)
    (place / "cut.safetensors").write_bytes(good[:-100])
    (place / "lying.safetensors").write_bytes(struct.pack("<Q", 10**15) + good[8:])
    (place / "base.ckpt").write_bytes(b"PK\x03\x04 and so on")
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    header[next(key for key in header if key != "__metadata__")]["shape"] = [10**6, 10**6]
    text = json.dumps(header).encode()
    (place / "shapes.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + good[8 + length :])
    save_file({"foo.bar": torch.zeros(3)}, place / "foreign.safetensors")


def images(place: Path) -> None:
    """`place` holds folders of images that cannot be used."""
    for name in ("cut-off", "garbled", "giant", "empty", "folder.png"):
        (place / name).mkdir()
    whole = (place / "datasets/pics/0-red.png").read_bytes()
    (place / "cut-off/a.png").write_bytes(whole[: len(whole) // 2])
    (place / "garbled/a.jpg").write_bytes(bytes(range(256)))
    Image.new("1", (30_000, 30_000)).save(place / "giant/a.png")


def bases(place: Path, base: Path) -> None:
    """`place` holds copies of `base`, each lacking or garbling one thing."""
    broken = ("no-vae", "no-config", "half-loaded", "bad-index", "bad-vocabulary", "no-merges", "odd-vae")
    for name in broken:
        shutil.copytree(base, place / name)
    shutil.rmtree(place / "no-vae/vae")
    (place / "no-config/unet/config.json").unlink()
    _shorten(place / "half-loaded" / WEIGHTS, 1000)
    (place / "bad-index/model_index.json").write_text('{"a')
    (place / "bad-vocabulary/tokenizer/vocab.json").write_text('{"a')
    (place / "no-merges/tokenizer/merges.txt").unlink()
    (place / "odd-vae/vae/config.json").write_text('{"block_out_channels": 3}')


def texts(place: Path) -> None:
    """`place` holds TOML files that no run can be told by."""
    texts = {"torn": "[loop\n", "unknown": "stepz = 1", "type": 'steps = "x"', "range": "steps = -4"}
    for name, text in texts.items():
        (place / f"{name}.toml").write_text(text if name == "torn" else f"[loop]\n{text}")
    (place / "latin.toml").write_bytes('[output]\nauthor = "é"'.encode("latin-1"))


def runs(place: Path, base: Path) -> None:
    """`place` holds copies of its finished run `whole`, each with one thing changed or broken."""
    names = ("other-images", "other-base", "torn-config", "binary-config")
    for name in (*names, "torn-json", "no-json", "torn-state", "no-state"):
        shutil.copytree(place / "whole", place / name)
    images = shutil.copytree(place / "datasets/pics", place / "datasets/changed")
    (images / "0-red.txt").write_text("another caption")
    (images / "1-green.png").unlink()
    _edit(place / "other-images/config.toml", str(place / "datasets/pics"), str(images))
    _edit(place / "other-base/config.toml", '"builtin"', f'"{place / "models/other"}"')
    shutil.copytree(base, place / "models/other")
    (place / "torn-config/config.toml").write_text("[loop")
    (place / "binary-config/config.toml").write_bytes(b"\xff\xfe\x00")
    last = "checkpoints/step-000002"
    (place / "torn-json" / last / "state.json").write_text("{")
    (place / "no-json" / last / "state.json").unlink()
    _shorten(place / "torn-state" / last / "state.safetensors", 9)
    (place / "no-state" / last / "state.safetensors").unlink()


def _shorten(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
