"""The page of formats says what is measured now."""

import os
from pathlib import Path

import pytest

from sdlora.network.codec import AdapterFile, save
from tests.adapters.lycoris_modules import WRITTEN
from tests.network import oracle
from tests.network.formats import PAGE, document


@pytest.fixture(scope="module")
def page() -> str:
    return document()


def test_the_page_is_fresh(page: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == page, "run python -m tests.network.formats"


def test_every_kind_is_exact_in_kohyas_keys(page: str) -> None:
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    kinds = [row for row in rows if len(row) == 8 and row[0] != "| kind"]
    assert len(kinds) == 12 and all(row[2] == row[3] == row[4] == "exact" for row in kinds)


def test_all_that_lycoris_writes_is_exact(page: str) -> None:
    rows = page.partition("## What LyCORIS writes")[2].partition("Where LyCORIS")[0].splitlines()
    assert [row.endswith("| exact |") for row in rows if row.startswith("| ")][2:] == [True] * len(WRITTEN)


@pytest.mark.skipif("SDLORA_FIXTURES" not in os.environ, reason="SDLORA_FIXTURES names no adapter files")
@pytest.mark.parametrize("name", ["kohya-sd15-r2", "kohya-sd15-locon-r1", "kohya-sdxl-r1"])
def test_files_written_again_have_sd_scripts_keys(name: str, tmp_path: Path) -> None:
    family = oracle.sdxl() if "sdxl" in name else oracle.sd15()
    file = AdapterFile.open(Path(os.environ["SDLORA_FIXTURES"]) / f"{name}.safetensors")
    again = save(tmp_path / "x", file.resolve(family).adapters, family_name=family.name)
    assert set(again.container.entries) == set(file.container.entries)
    entries = file.container.entries
    assert all(again.container.entries[key].shape == entries[key].shape for key in entries)
