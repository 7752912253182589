"""Every screen can be used by everyone: axe finds nothing, in light and in dark, and on a phone."""

from typing import TYPE_CHECKING

import pytest

from sdlora.config import TrainConfig
from sdlora.events import PreviewSaved, RunEnded
from sdlora.generation.png import save_png
from sdlora.generation.request import GenerateRequest
from sdlora.options import build
from sdlora.training.run import Run
from tests.network.test_stack import saved
from tests.pictures import draw, make_folder
from tests.service.test_runs import started, step
from tests.ui.conftest import Server, open_tab, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.conftest import TinyModel

pytestmark = [pytest.mark.browser, pytest.mark.slow]
TABS = ("Datasets", "Train", "Runs", "Generate", "Adapters", "About")


def violations(page: "Page") -> list[str]:
    """What axe finds on what is shown."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:300]}" for rule in found for node in rule["nodes"]]


@pytest.fixture(scope="module")
def full(server: Server, tiny_sd1: "TinyModel") -> Server:
    """The page with a dataset, two runs, an adapter and a picture."""
    make_folder(server.home / "datasets" / "balls")
    (server.home / "datasets" / "balls" / "0-red.txt").unlink()
    saved(tiny_sd1.family, server.home / "models" / "Lora" / "ink.safetensors")
    picture = server.home / "outputs" / "txt2img-images" / "2026-01-01" / "00001-7.png"
    picture.parent.mkdir(parents=True)
    save_png(picture, draw((64, 64), "red"), GenerateRequest.of({"prompt": "a cat", "seed": 7}))
    failed, running = (Run.create(build(TrainConfig, {}), server.home / "runs") for _ in range(2))
    failed.report(started(), RunEnded(outcome="failed", step=0, error="It broke.", hint="Mend it."))
    draw((64, 64), "teal").save(running.path / "previews" / "step-000000-0.png")
    seen = PreviewSaved(step=0, index=0, prompt="a cat", file="previews/step-000000-0.png")
    running.report(started(), seen, *(step(number, 1 / number) for number in range(1, 50)))
    return server


def test_axe_finds_nothing_on_empty_screens(browser: "Browser", server: Server) -> None:
    assert audited(browser, server, "light") == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_full_screens(browser: "Browser", full: Server, scheme: str) -> None:
    assert audited(browser, full, scheme) == {}


def audited(browser: "Browser", server: Server, scheme: str) -> dict[str, list[str]]:
    """Tab -> what axe finds on it."""
    found = {}
    with browser.new_context(viewport={"width": 1400, "height": 950}) as context:
        page = context.new_page()
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
        visit(page, server)
        for tab in TABS:
            open_tab(page, tab)
            if page.locator("#library button.card:visible").count():
                page.locator("#library button.card").first.click()
                page.locator("#adapter-card h2").wait_for()
                page.locator("#merge-add input").click()
                page.get_by_role("option", name="ink").click()
            unfolded(page)
            found[tab] = violations(page)
    return {tab: each for tab, each in found.items() if each}


def unfolded(page: "Page") -> None:
    """Everything that can be opened on the tab is open, row of a mix included."""
    page.wait_for_timeout(300)
    page.evaluate("document.querySelectorAll('button.label-wrap:not(.open)').forEach((each) => each.click())")
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.wait_for_timeout(300)


def test_a_phone_shows_every_tab_without_sideways_scrolling(browser: "Browser", full: Server) -> None:
    with browser.new_context(viewport={"width": 390, "height": 844}) as context:
        page = context.new_page()
        for tab in TABS:
            visit(page, full, f"?tab={tab.lower()}")
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
