"""The machine is told in words, whoever made its GPU."""

import platform
from pathlib import Path

import pytest
import torch

from sdlora.service.machine import Gpu, Machine


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a GPU; the folder that holds what AMD's driver would tell."""
    monkeypatch.setattr(Machine, "command", ("no-such-program",))
    monkeypatch.setattr(Machine, "cards", tmp_path)
    return tmp_path


def test_nvidias_program_tells_of_its_cards(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "command", ("echo", "NVIDIA H200, 1024, 24"))
    assert Machine().gpus() == (Gpu("NVIDIA H200", 1 << 30, 24 << 20),)
    assert Machine().room() == (1 << 30, 1000 << 20)


def test_amds_driver_tells_of_its_cards(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = nothing / "card1" / "device"
    card.mkdir(parents=True)
    (card / "mem_info_vram_total").write_text("17163091968\n")
    (card / "mem_info_vram_used").write_text("163091968\n")
    assert Machine().gpus() == ()  # this torch does not compute on them
    monkeypatch.setattr(torch.version, "hip", "7.2")
    assert Machine().room("cuda:0") == (17163091968, 17000000000)
    assert Machine().title == "AMD GPU, 17 GB (17 free)"


def test_without_a_card_the_processor_computes(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Machine().title.startswith("No GPU found, using the processor")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert Machine().title.startswith("Apple GPU")
