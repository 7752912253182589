"""The page as a process of its own on the tiny model, and a real browser before it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.conftest import TinyModel


@dataclass
class Server:
    """A running page; `home` is its data folder."""

    home: Path
    environment: dict[str, str]
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = field(default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """The page answers."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = [sys.executable, "-m", "ui", "--port", str(self.port), "--device", "cpu"]
        with (self.home / "page.log").open("ab") as log:
            self.process = subprocess.Popen(words, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        for _ in range(600):
            try:
                urlopen(self.url, timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.home / "page.log").read_text()
                time.sleep(0.2)
        pytest.fail("the page does not start")

    def kill(self) -> None:
        """The page is gone, as if the machine had pulled it away."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_sd1: "TinyModel") -> Iterator[Server]:
    """A page with an empty home."""
    home = tmp_path_factory.mktemp("home")
    variables = {
        "SDLORA_HOME": str(home),
        "SDLORA_BUILTIN": str(tiny_sd1.folder),
        "GRADIO_TEMP_DIR": str(home / "uploads"),
        "OMP_NUM_THREADS": "1",
    }
    made = Server(home, {**os.environ, **variables})
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def browser(chromium: str) -> "Iterator[Browser]":
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: "Browser", server: Server) -> "Iterator[Page]":
    """A fresh visit, which must end without an error in the console and without asking another machine."""
    with browser.new_context(viewport={"width": 1400, "height": 950}) as context:
        opened = context.new_page()
        wrong: list[str] = []
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
        opened.on("request", lambda asked: None if _is_ours(asked.url) else wrong.append(asked.url))
        visit(opened, server)
        yield opened
        assert wrong == []


def visit(page: "Page", server: Server, query: str = "") -> None:
    """The page is there and has its first answer."""
    page.goto(server.url + query)
    page.wait_for_selector("[role=tab]")
    page.wait_for_selector("#health :is(h2, .title)", state="attached")


def open_tab(page: "Page", name: str) -> None:
    """The tab is shown."""
    page.get_by_role("tab", name=name, exact=True).click()
    page.wait_for_timeout(300)


def _is_ours(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))
