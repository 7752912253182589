"""Every screen can be used by everyone: axe finds nothing of ours, in light and in dark, and on a phone."""

from typing import TYPE_CHECKING

import pytest

from tests.ui.conftest import Server, open_tab, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
TABS = ("Datasets", "Train", "Runs", "Generate", "Adapters", "About")

# What Gradio 6.31 draws itself and gives us no way to mend: rule -> part of the element.
GRADIOS: dict[str, str] = {}


def violations(page: "Page") -> list[str]:
    """What axe finds besides Gradio's own."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:300]}"
        for rule in found
        for node in rule["nodes"]
        if GRADIOS.get(rule["id"], "\0") not in node["html"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_of_ours(browser: "Browser", server: Server, scheme: str) -> None:
    with browser.new_context(viewport={"width": 1400, "height": 950}) as context:
        page = context.new_page()
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
        visit(page, server)
        found = {}
        for tab in TABS:
            open_tab(page, tab)
            found[tab] = violations(page)
        assert {tab: each for tab, each in found.items() if each} == {}


def test_a_phone_shows_every_tab_without_sideways_scrolling(browser: "Browser", server: Server) -> None:
    with browser.new_context(viewport={"width": 390, "height": 844}) as context:
        page = context.new_page()
        for tab in TABS:
            visit(page, server, f"?tab={tab.lower()}")
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
