"""About: where everything lies, what this machine is, and what leaves it (nothing)."""

import platform
from html import escape
from importlib.metadata import version
from typing import Any

import gradio as gr

from sdlora import __version__
from sdlora.service.studio import Studio
from ui.handling import told
from ui.markup import facts, size

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments
_PARTS = ("torch", "diffusers", "transformers", "accelerate", "gradio")
_PRIVACY = """<p>Nothing leaves this machine: no telemetry, no fonts or scripts from elsewhere. What you have
filled in and not sent is kept by your browser, for when the page is reloaded. Models and adapters are read
from safetensors files only, which cannot run programs.</p>"""


class AboutTab:
    """The tab. `show` brings it up to date."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        with gr.Row(elem_classes="split", equal_height=False):
            with gr.Column(elem_classes="box", min_width=330):
                gr.HTML("<h2>Folders</h2>" + _folders(studio))
            with gr.Column(elem_classes="box", min_width=330):
                gr.HTML(f"<h2>This machine</h2>{facts(_machine(studio))}")
                gr.HTML("<h2>Adapters in memory</h2>")
                self.kept = gr.HTML(elem_id="adapters-kept")
                self.room = gr.Number(
                    studio.adapter_bytes / 1e9, label="At most, in GB", minimum=0, step=0.5,
                    info="Those used last are at hand at once. Until the server ends; to keep it, start "
                    "with --adapter-cache GB.", elem_id="adapter-room",
                )  # fmt: skip
                gr.HTML(f"<h2>Privacy</h2>{_PRIVACY}")
        self.room.change(told(self._set_room), self.room, None, **_QUIET)

    @property
    def shown(self) -> list[Any]:  # Any: gradio's components
        """Everything that `show` sets."""
        return [self.kept, self.room]

    def show(self) -> Updates:
        """What is true now."""
        files, held = self.studio.kept()
        words = f"{files} {'adapter' if files == 1 else 'adapters'}, {size(held)}" if files else "None now"
        return {self.kept: f"<p>{words}.</p>", self.room: self.studio.adapter_bytes / 1e9}

    def _set_room(self, gigabytes: float | None) -> None:
        if gigabytes is not None and gigabytes >= 0:
            self.studio.adapter_bytes = round(gigabytes * 1e9)


def _folders(studio: Studio) -> str:
    home = studio.home
    rows = [
        ("Datasets", home.datasets),
        *(("Base models", folder) for folder in home.model_folders),
        *(("Adapters", folder) for folder in home.adapter_folders),
        ("Runs", home.runs),
        ("Pictures", home.outputs),
        ("Cache, can be emptied", home.cache),
        ("Trash", home.trash),
    ]
    cells = "".join(
        f"<tr><th scope=row>{name}</th><td><code>{escape(str(path))}</code></td></tr>" for name, path in rows
    )
    hint = '<p class="dim">Others: start with --data-dir and its sisters, see --help.</p>'
    return f'<table class="plain">{cells}</table>{hint}'


def _machine(studio: Studio) -> list[tuple[str, str]]:
    versions = [(name, version(name)) for name in _PARTS]
    return [
        ("sdlora", __version__),
        ("Python", platform.python_version()),
        ("Device", studio.machine.title),
        *versions,
    ]
