"""The page: its tabs, how they lead to one another, and the server that shows them."""

import argparse
import os
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by Gradio when it is imported

import gradio as gr

from sdlora.errors import SdloraError
from sdlora.home import ELSEWHERE, Home, name_elsewhere
from sdlora.service.studio import Studio
from ui import draft, guard
from ui.about_tab import AboutTab
from ui.adapters_tab import AdaptersTab
from ui.datasets_tab import DatasetsTab
from ui.generate_tab import GenerateTab
from ui.handling import told
from ui.runs_tab import RunsTab
from ui.theme import ICON, css, scripts, theme
from ui.train_tab import TrainTab

Updates = dict[Any, Any]  # Any: gradio's components and their updates

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # Any: gradio's arguments


class Page:
    """The tabs of `studio`, and the ways between them."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        gr.HTML(_masthead(studio.machine.title))
        with gr.Tabs(selected="datasets", overflow_behavior="wrap") as self.tabs:
            with gr.Tab("Datasets", id="datasets") as self.datasets_door:
                self.datasets = DatasetsTab(studio)
            with gr.Tab("Train", id="train") as self.train_door:
                self.train = TrainTab(studio)
            with gr.Tab("Runs", id="runs"):
                self.runs = RunsTab(studio)
            with gr.Tab("Generate", id="generate") as self.generate_door:
                self.generate = GenerateTab(studio)
            with gr.Tab("Adapters", id="adapters") as self.adapters_door:
                self.adapters = AdaptersTab(studio)
            with gr.Tab("About", id="about") as self.about_door:
                self.about = AboutTab(studio)

    def connect(self, blocks: gr.Blocks) -> None:
        """Each tab leads to the next, and shows what is true when it is opened."""
        train, generate = self.train, self.generate
        everything = train.form.components
        shown = [*self.datasets.shown, *everything.values(), *generate.refreshed, *self.runs.shown]
        kept = draft.keep({"train": everything, "generate": generate.draft})
        blocks.load(
            told(self._open), [self.datasets.base, *train.recipe, kept],
            list(dict.fromkeys([self.tabs, *shown, *generate.draft.values()])), **_QUIET,
        )  # fmt: skip
        self.datasets.train.click(
            told(self._to_train), [self.datasets.chosen, *train.words], [self.tabs, *train.sourced], **_QUIET
        )
        self.train_door.select(told(train.sources), None, train.sourced, **_QUIET).then(
            told(train.check), None, train.checked, inputs_kwargs=train.inputs, **_QUIET
        )
        train.start.click(
            told(self._start), None, [self.tabs, *self.runs.shown], inputs_kwargs=train.inputs,
            validator=train.valid, **_QUIET,
        )  # fmt: skip
        self.runs.again.click(
            told(self._again), self.runs.chosen, [self.tabs, *everything.values()], **_QUIET
        )
        using = [generate.rows, generate.form.components["base"]]
        added = [self.tabs, generate.rows, generate.pick]
        self.runs.use.click(told(self._use), [self.runs.state, *using], added, **_QUIET)
        self.runs.compare.grid.apply(told(self._use_run), using, added, **_QUIET)
        self.adapters.use.click(told(self._use), [self.adapters.chosen, *using], added, **_QUIET)
        self.adapters.run.click(
            told(self._to_run), self.adapters.chosen, [self.tabs, *self.runs.shown], **_QUIET
        )
        self.adapters.again.click(
            told(self._as_made), self.adapters.chosen, [self.tabs, *everything.values()], **_QUIET
        )
        self.adapters.bench.take.click(
            told(self.adapters.bench.taken), generate.rows, self.adapters.bench.rows, **_QUIET
        )
        self.generate_door.select(told(generate.start_over), None, generate.refreshed, **_QUIET)
        self.about_door.select(told(self.about.show), None, self.about.shown, **_QUIET)
        self.adapters_door.select(
            told(self.adapters.show), self.adapters.chosen, self.adapters.inspector, **_QUIET
        )

    def _open(
        self, base: str, name: str, subject: str, model: str, kept: object, request: gr.Request
    ) -> Updates:
        """What a fresh or reloaded page shows; `/?tab=runs` opens a tab."""
        wanted = request.query_params.get("tab", "")
        drafts = draft.parts(kept)
        return {
            **({self.tabs: gr.Tabs(selected=wanted)} if wanted else {}),
            **self.datasets.refresh(None, base),
            **self.train.choose(name, subject, model),
            **(self.train.resume(drafts["train"]) if drafts else {}),
            **self.generate.start_over(),
            **(self.generate.resume(drafts["generate"]) if drafts else {}),
            **self.runs.show(""),
        }

    def _to_train(self, dataset: str, *words: str) -> Updates:
        suited = self.train.suit(str(self.studio.datasets.folder(dataset)), *words)
        return {self.tabs: gr.Tabs(selected="train"), **self.train.sources(dataset), **suited}

    def _start(self, **raw: object) -> Updates:
        return {self.tabs: gr.Tabs(selected="runs"), **self.runs.show(self.train.begin(**raw))}

    def _again(self, name: str) -> Updates:
        return {self.tabs: gr.Tabs(selected="train"), **self.train.again(name)}

    def _to_run(self, file: str) -> Updates:
        name = self.studio.library.adapter(Path(file)).run
        return {self.tabs: gr.Tabs(selected="runs"), **self.runs.show(name)}

    def _as_made(self, file: str) -> Updates:
        recipe = self.studio.recipe(Path(file))
        return {self.tabs: gr.Tabs(selected="train"), **self.train.form.show_config(recipe)}

    def _use_run(self, rows: dict[str, Any], model: str, event: gr.EventData) -> Updates:  # Any: as below
        return self._use(event.file, rows, model)

    def _use(self, file: str, rows: dict[str, Any], model: str) -> Updates:  # Any: the widget's JSON
        return {self.tabs: gr.Tabs(selected="generate"), **self.generate.add(file, rows, model)}


def build_app(studio: Studio) -> gr.Blocks:
    """The whole page over `studio`."""
    blocks = gr.Blocks(title="sdlora", analytics_enabled=False)
    with blocks:
        Page(studio).connect(blocks)
    return blocks


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until it is interrupted; 2 for a mistake of the person who started it."""
    try:
        return serve(_parser().parse_args(arguments))
    except SdloraError as error:
        sys.stderr.write(f"sdlora: {error}\n")
        return error.exit_code


def serve(arguments: argparse.Namespace) -> int:
    """Serves the page as `arguments` say. Raises UserError when they cannot be followed."""
    host, port = arguments.listen, arguments.port
    auth = guard.password(arguments.auth, listen=host, share=arguments.share, no_auth=arguments.no_auth)
    guard.check_port(host, port)
    home = _home(arguments)
    os.environ["SDLORA_HOME"] = str(home.root)  # for the processes that the studio starts
    studio = Studio(home, device=arguments.device, adapter_bytes=round(arguments.adapter_cache * 1e9))
    blocks = build_app(studio)
    blocks.queue(default_concurrency_limit=8, max_size=64)
    try:
        _, local, public = blocks.launch(
            server_name=host,
            server_port=port,
            auth=auth,
            share=arguments.share,
            inbrowser=arguments.autolaunch,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            footer_links=[],
            max_file_size="8gb",
            allowed_paths=[str(folder) for folder in studio.readable()],
            theme=theme(),
            css=css(),
            head=scripts(),
            favicon_path=ICON,
            app_kwargs={"middleware": guard.middleware(host=host, has_password=auth is not None)},
        )
        _say(f"sdlora is at {local.replace('0.0.0.0', '127.0.0.1')}")
        if public:
            _say(f"and for everyone at {public}")
        blocks.block_thread()
    finally:
        studio.close()
    return 0


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdlora ui", description="Start the web page.", allow_abbrev=False)
    add = parser.add_argument
    add("--listen", nargs="?", const="0.0.0.0", default="127.0.0.1", metavar="ADDRESS",
        help="answer other machines too; needs --auth")  # fmt: skip
    add("--port", "--server-port", "--server_port", type=int, default=7860)
    add("--share", action="store_true", help="a public address through gradio.live; needs --auth")
    add("--auth", "--gradio-auth", metavar="USER:PASSWORD", help="ask for these")
    add("--no-auth", action="store_true", help="no password even with --listen or --share")
    add("--autolaunch", "--inbrowser", action="store_true", help="open a browser")
    add("--device", default="auto", help="what draws: auto, cpu, cuda, cuda:1, mps")
    add("--adapter-cache", type=_gigabytes, metavar="GB", default=os.environ.get("SDLORA_ADAPTER_CACHE", "2"),
        help="memory for adapters that were used last; default 2, or SDLORA_ADAPTER_CACHE")  # fmt: skip
    folders = parser.add_argument_group("folders")
    for flag, text in {
        "--data-dir": "everything below, where it is not named itself",
        "--models-dir": "holds Stable-diffusion/ and Lora/, as in other tools",
        "--output-dir": "pictures",
        "--datasets-dir": "datasets",
    }.items():
        folders.add_argument(flag, type=Path, metavar="FOLDER", help=text)
    for flag, text in {
        "--ckpt-dir": "more base models; may be given several times",
        "--lora-dir": "more adapters; may be given several times",
        "--extra-model-paths-config": "ComfyUI's file of folders; extra_model_paths.yaml here is read anyway",
    }.items():
        folders.add_argument(flag, action="append", default=[], metavar="PATH", help=text)
    return parser


def _gigabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of gigabytes; write one such as 2')
    return number


def _home(arguments: argparse.Namespace) -> Home:
    for flag in ELSEWHERE:
        for path in getattr(arguments, flag[2:].replace("-", "_")):
            name_elsewhere(flag, path)
    root = arguments.data_dir.expanduser().resolve() if arguments.data_dir else Home.default().root
    named: dict[str, Path] = {}
    if arguments.models_dir:
        models = arguments.models_dir.expanduser().resolve()
        named |= {"models": models / "Stable-diffusion", "adapters": models / "Lora"}
    for part, folder in {
        "outputs": arguments.output_dir,
        "datasets": arguments.datasets_dir,
    }.items():
        if folder:
            named[part] = folder.expanduser().resolve()
    return Home.at(root, **named)


def _masthead(device: str) -> str:
    icon = ICON.read_text(encoding="utf-8").replace("<svg ", '<svg aria-hidden="true" ', 1)
    return f'<header class="masthead">{icon}<h1>sdlora</h1><p>{escape(device)}</p></header>'
