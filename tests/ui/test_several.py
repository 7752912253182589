"""A sweep in the page: values are chosen, all runs are trained in one pass, and one is taken along."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sdlora.config import TrainConfig
from sdlora.service.studio import Studio
from tests.service.conftest import studio as studio  # the same home
from tests.ui.conftest import Server, open_tab
from tests.ui.test_form import drawn, raw
from ui.several import Several, around

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE = 90_000  # milliseconds


@pytest.mark.parametrize(
    ("path", "value", "offered"),
    [
        ("optimizer.lr", 3e-4, ["0.00015", "0.0003", "0.0006"]),
        ("adapter.rank", 16, ["8", "16", "32"]),
        ("adapter.rank", 1, ["1", "2"]),
        ("loop.seed", 7, ["7", "8", "9"]),
        ("adapter.rank", None, []),  # the kind has none
    ],
)
def test_values_around_the_present_one_are_offered(path: str, value: object, offered: list[str]) -> None:
    assert around(path, value) == offered


@pytest.mark.parametrize(
    ("words", "found"),
    [("", ["zibbo"] * 3), ("minka, rex", ["zibbo", "minka", "rex"]), (", rex", ["zibbo", "", "rex"])],
)
def test_datasets_have_the_word_above_or_one_each(studio: Studio, words: str, found: list[str]) -> None:
    form = asyncio.run(drawn(TrainConfig))
    told = {"data.folder": "a", "data.captions.trigger": "zibbo", "several.datasets": ["b", "c"]}
    configs = Several(studio, form).configs({**raw(form), **told, "several.triggers": words})
    assert [config.data.captions.trigger for config in configs] == found
    assert [config.data.folder for config in configs] == ["a", "b", "c"]


@pytest.mark.browser
@pytest.mark.slow
def test_a_sweep_is_trained_compared_and_its_best_taken_to_generate(
    page: "Page", server: Server, image_folder: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    page.locator("#new-dataset :is(input, textarea)").fill("balls")
    page.get_by_role("button", name="Create", exact=True).click()
    page.get_by_text("balls is there").wait_for()
    page.set_input_files("#upload input[type=file]", sorted(image_folder.iterdir()))
    page.locator(".picture").nth(5).wait_for()
    page.get_by_role("button", name="Train with this dataset").click()
    page.get_by_text("It fits").wait_for()
    (tmp_path / "few.toml").write_text("[loop]\nsteps = 4\n[preview]\nevery = 4\nsteps = 2\n")
    page.get_by_text("These settings as a file").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load settings (.toml)").click()
    chooser.value.set_files(tmp_path / "few.toml")
    expect(page.locator("[id='opt-loop.steps'] input")).to_have_value("4")
    page.locator("[id='opt-output.name'] :is(input, textarea)").fill("ball")
    page.get_by_text("Compare settings, or teach several").click()
    page.get_by_label("Compare", exact=True).click()
    page.get_by_role("option", name="Learning rate", exact=True).click()
    values = page.locator("#several-first-values textarea, #several-first-values input")
    expect(values).to_have_value("0.00125, 0.0025, 0.005")
    values.fill("1e-3, what")
    page.locator("#plan .bad").wait_for()
    values.fill("1e-3, 1e-4")
    page.get_by_text("2 runs are trained in one pass").wait_for()
    page.get_by_role("button", name="Train these 2 together").click()
    page.locator("#grid li").nth(1).wait_for()
    page.locator("#compare").get_by_text("All 2 have ended").wait_for(timeout=PATIENCE)
    expect(page.locator("#grid img")).to_have_count(2)
    expect(page.locator("#losses polyline")).to_have_count(2)
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download the comparison").click()
    assert saved.value.path().read_bytes() == (server.home / "runs/ball-lr-1e-3/comparison.png").read_bytes()
    page.get_by_label("Use Learning rate 0.0001 in Generate").click()
    page.get_by_label("Weight of ball-lr-1e-4", exact=True).wait_for()
    open_tab(page, "Runs")
    expect(page.locator("#runs li")).to_have_count(2)
