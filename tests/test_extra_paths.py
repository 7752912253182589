"""ComfyUI's file of folders means here what it means there."""

import os
from pathlib import Path

import pytest

from sdlora.errors import ConfigError
from sdlora.extra_paths import Extra, read


def test_sections_lines_and_bases_become_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBUI", str(tmp_path / "webui"))
    file = tmp_path / "extra_model_paths.yaml"
    file.write_text(
        """
a111:
    base_path: $WEBUI
    checkpoints: models/Stable-diffusion
    loras: |
        models/Lora
        models/LyCORIS
    configs: models/Stable-diffusion
comfyui:
    base_path: ../comfy
    is_default: true
    checkpoints: models/checkpoints/
unused:
lone:
    loras: loras
    clip: /clip
"""
    )
    webui, beside = tmp_path / "webui", tmp_path.parent / "comfy"
    assert read(file) == (
        Extra("checkpoints", webui / "models/Stable-diffusion", False),
        Extra("loras", webui / "models/Lora", False),
        Extra("loras", webui / "models/LyCORIS", False),
        Extra("configs", webui / "models/Stable-diffusion", False),
        Extra("checkpoints", Path(os.path.normpath(beside)) / "models/checkpoints", True),
        Extra("loras", tmp_path / "loras", False),
        Extra("clip", Path("/clip"), False),
    )


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "a: b", "a:\n  loras: 3", "a:\n  loras: [x]", "\udcff"])
def test_another_form_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "paths.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"paths\.yaml") as error:
        read(file)
    assert error.value.hint and "\n" not in str(error.value.message)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.yaml")
