"""An adapter that was trained on packed weights says what is lost when it meets the full ones."""

import re
from pathlib import Path

import pytest
import torch

from sdlora.adapters.lora import Lora
from sdlora.contracts import Layer
from sdlora.network import codec
from sdlora.network.attach import module_of
from sdlora.network.rounding import STORAGE, norms, told
from sdlora.network.stack import Entry
from tests.conftest import TinyModel

LAYER = Layer("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")


@pytest.fixture(autouse=True)
def tiny_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdlora.network.rounding.SMALLEST", 1024)


@pytest.fixture
def adapter(tiny_sd1: TinyModel) -> Lora:
    outputs, inputs = module_of(tiny_sd1.family, LAYER).weight.shape
    return Lora(torch.randn(2, inputs) / 100, torch.randn(outputs, 2) / 10, alpha=2.0)


def saved(path: Path, adapter: Lora, storage: str) -> Entry:
    codec.save(path, {LAYER: adapter}, family_name="sd1", metadata={STORAGE: storage}, dtype="fp32")
    return Entry(path)


def test_only_adapters_of_packed_weights_say_so(tiny_sd1: TinyModel, adapter: Lora, tmp_path: Path) -> None:
    entries = [saved(tmp_path / f"{word}.safetensors", adapter, word) for word in ("full", "fp8", "nf4")]
    said = list(told(tiny_sd1.family, entries))
    assert [text.partition(" was")[0] for text in said] == ["fp8.safetensors", "nf4.safetensors"]
    off = [float(re.search(r"are ([\d.]+)% away", text)[1]) for text in said]
    assert 2 < off[0] < 4 and 7 < off[1] < 12


def test_the_change_is_measured_against_the_weight(tiny_sd1: TinyModel, adapter: Lora) -> None:
    weight = module_of(tiny_sd1.family, LAYER).weight
    _, change = norms(tiny_sd1.family, {LAYER: adapter}, "fp8")
    assert change == pytest.approx(float(adapter.delta(weight).detach().norm() / weight.norm()), rel=1e-4)
