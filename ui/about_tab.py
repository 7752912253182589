"""About: where everything lies, what this machine is, and what leaves it (nothing)."""

import platform
from html import escape
from importlib.metadata import version

import gradio as gr

from sdlora import __version__
from sdlora.service.studio import Studio
from ui.markup import facts

_PARTS = ("torch", "diffusers", "transformers", "accelerate", "gradio")


def draw(studio: Studio) -> None:
    """The tab's layout."""
    with gr.Row(elem_classes="split", equal_height=False):
        with gr.Column(elem_classes="box", min_width=330):
            gr.HTML("<h2>Folders</h2>" + _folders(studio))
        with gr.Column(elem_classes="box", min_width=330):
            gr.HTML(f"<h2>This machine</h2>{facts(_machine(studio))}<h2>Privacy</h2>{_PRIVACY}")


_PRIVACY = """<p>Nothing leaves this machine: no telemetry, no fonts or scripts from elsewhere. What you have
filled in and not sent is kept by your browser, for when the page is reloaded. Models and adapters are read
from safetensors files only, which cannot run programs.</p>"""


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
