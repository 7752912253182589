"""Models come from the Hub with progress, go on where they ended, and are then used without a network.

The Hub is a small server of the test's own.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from sdlora.base import hub as base_hub
from sdlora.base.hub import cached, choose, is_id
from sdlora.config import TrainConfig
from sdlora.errors import Cancelled, ModelError, StorageError
from sdlora.events import Phase
from sdlora.loading import describe, load_family
from sdlora.options import build
from sdlora.training.loop import train
from sdlora.training.run import Run
from tests.conftest import TinyModel
from tests.original import write_original

COMMIT = "1" * 40
UNET = "unet/diffusion_pytorch_model.safetensors"
SCRIPT = """
import sys
from sdlora.base import hub
print(hub.fetch(sys.argv[1], check=lambda files, name: None))
"""


def refused(model: str) -> str:
    """The sentence with which the model is refused."""
    with pytest.raises(ModelError) as error:
        load_family(model, device="cpu", dtype=torch.float32)
    assert error.value.hint
    return error.value.message


def fetch(model: str, *, on_bytes: base_hub.OnBytes = lambda done, total: None) -> Path:
    """The folder or file of a Hub id, whatever it holds."""
    return base_hub.fetch(model, check=lambda files, name: None, on_bytes=on_bytes)


@dataclass
class Hub:
    """A server of one model's files, and what it was asked for: method, path, first byte, token."""

    files: dict[str, bytes]
    breaks: int = 0  # how many downloads of the UNet break off after eleven megabytes
    asked: list[tuple[str, str, int, str]] = field(default_factory=list)
    endpoint: str = ""
    sent: int = 0  # bytes of files

    def tree(self) -> list[dict[str, object]]:
        """What it tells of every file."""
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.files.items()
        ]

    def downloads(self) -> list[str]:
        """The names of the files whose contents were asked for."""
        return [
            path.partition(COMMIT)[2][1:]
            for verb, path, *_ in self.asked
            if verb == "GET" and "/resolve/" in path
        ]


def span(asked: str) -> tuple[int, int | None]:
    """First byte, and the one after the last, of "bytes=0-100"; None for all that follow."""
    first, _, last = asked.removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1 if last else None


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            start, end = span(self.headers.get("Range", "bytes=0-"))
            hub.asked.append((self.command, path, start, self.headers.get("Authorization", "")))
            if path.startswith(("/api/models/gated/model",)):
                self.answer(b"{}", status=403, **{"X-Error-Code": "GatedRepo"})
            elif path.startswith("/api/models/tiny/model/tree/"):
                self.answer(json.dumps(hub.tree()).encode())
            elif path.startswith("/api/models/tiny/model"):
                self.answer(json.dumps({"id": "tiny/model", "sha": COMMIT, "siblings": []}).encode())
            elif path.startswith("/tiny/model/resolve/"):
                self.content(path.removeprefix(f"/tiny/model/resolve/{COMMIT}/"), start, end)
            else:
                self.answer(b"{}", status=404, **{"X-Error-Code": "RepoNotFound"})

        def content(self, name: str, start: int, end: int | None) -> None:
            content = hub.files[name]
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            part = content[start:end]
            if part != content:
                headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            breaks = name == UNET and self.command == "GET" and hub.breaks > 0
            hub.breaks -= breaks
            hub.sent += len(part) if self.command == "GET" else 0
            self.answer(part, status=200 if part == content else 206, breaks=breaks, **headers)

        def answer(self, body: bytes, *, status: int = 200, breaks: bool = False, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: 11 << 20] if breaks else body)
            self.close_connection = breaks

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub(tiny_sd1: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that holds the tiny model as tiny/model, and files that nobody needs; the cache is empty."""
    folder = tiny_sd1.folder
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    hub = Hub({**files, "README.md": b"x", "unet/diffusion_pytorch_model.bin": b"x" * 1000})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    # huggingface_hub has read its variables already
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    url = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_is_fetched_once_with_progress(hub: Hub, tiny_sd1: TinyModel) -> None:
    told: list[tuple[int, int]] = []
    path = fetch("tiny/model", on_bytes=lambda done, total: told.append((done, total)))
    fetched = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert fetched <= {str(p.relative_to(tiny_sd1.folder)) for p in tiny_sd1.folder.rglob("*")}
    weights = [name for name in fetched if name.endswith(".safetensors")]
    assert told[-1][0] == told[-1][1] == sum(len(hub.files[name]) for name in weights)
    family = load_family("tiny/model", device="cpu", dtype=torch.float32)
    assert family.hash == tiny_sd1.family.hash
    hub.asked.clear()
    assert fetch("tiny/model") == cached("tiny/model") == path and not hub.asked


@pytest.mark.parametrize(
    ("file", "before", "after", "sentence"),
    [
        (
            "unet/config.json",
            b'"in_channels": 4',
            b'"in_channels": 9',
            "tiny/model is an inpainting model: its UNet takes 9 channels instead of 4.",
        ),
        (  # as SDXL's refiner has it
            "model_index.json",
            b'"text_encoder": [',
            b'"text_encoder": [null, null], "was": [',
            "tiny/model is of no known family: it holds unet, vae.",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_its_weights_are_fetched(
    hub: Hub, file: str, before: bytes, after: bytes, sentence: str
) -> None:
    assert before in hub.files[file]
    hub.files[file] = hub.files[file].replace(before, after)
    assert refused("tiny/model") == sentence
    assert not [name for name in hub.downloads() if name.endswith(".safetensors")]


SD1 = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3),
    "first_stage_model.decoder.conv_in.bias": (512,),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
}


@pytest.mark.parametrize(
    "shapes",
    [
        SD1,
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 320)},
        {"double_blocks.0.img_attn.qkv.weight": (8, 8)},
        {"decoder.up.0.block.0.conv1.weight": (8, 8)},
        {"nothing.that.is.known": (1,)},
    ],
    ids=["inpainting", "adapter", "flux", "vae", "nothing"],
)
def test_a_single_file_is_refused_by_its_header_as_one_that_is_here(
    hub: Hub, tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"filler": torch.zeros(1 << 18), **{k: torch.zeros(s) for k, s in shapes.items()}}, path)
    hub.files = {path.name: path.read_bytes()}
    assert refused("tiny/model") == refused(str(path)).replace(str(path), "tiny/model")
    assert hub.sent < len(hub.files[path.name]) / 5


def test_a_single_file_is_fetched(hub: Hub, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    path = write_original(tiny_sd1.folder, tmp_path / "x.safetensors", family="sd1")
    hub.files = {path.name: path.read_bytes()}
    assert fetch("tiny/model").read_bytes() == hub.files[path.name]
    hub.asked.clear()
    for name in ("tiny/model/x.safetensors", "tiny/model"):
        assert fetch(name) == cached(name) and not hub.asked


@pytest.mark.parametrize("beside", ["vae/diffusion_pytorch_model.safetensors", "offset-lora.safetensors"])
def test_what_another_program_fetched_is_not_taken_for_the_model(
    hub: Hub, tiny_sd1: TinyModel, beside: str
) -> None:
    snapshots = Path(constants.HF_HUB_CACHE) / "models--tiny--model"
    (snapshots / "refs").mkdir(parents=True)
    (snapshots / "refs" / "main").write_text(COMMIT)
    part = snapshots / "snapshots" / COMMIT / beside
    part.parent.mkdir(parents=True)
    save_file({"encoder.conv_in.weight": torch.zeros(2)}, part)
    assert cached("tiny/model") is None
    assert fetch("tiny/model").is_dir()


def test_a_single_file_of_another_form_is_told(hub: Hub) -> None:
    hub.files = {"x.safetensors": b"x" * 1000}
    assert refused("tiny/model") == (
        "tiny/model/x.safetensors is damaged: its header is no safetensors header."
    )


def test_a_broken_connection_goes_on_where_it_broke(hub: Hub) -> None:
    hub.breaks = 1
    path = fetch("tiny/model")
    assert (path / UNET).read_bytes() == hub.files[UNET]
    # huggingface_hub writes ten megabytes at a time
    starts = [start for verb, name, start, _ in hub.asked if name.endswith(UNET) and verb == "GET"]
    assert starts == [0, 10 << 20]


def test_after_an_interruption_only_missing_files_are_fetched(hub: Hub) -> None:
    kept = hub.files.pop(UNET)
    with pytest.raises(ModelError, match="pickled weights"):
        fetch("tiny/model")
    hub.files[UNET] = kept[:1000]  # what a full disk or a killed process leaves out
    path = fetch("tiny/model")
    assert cached("tiny/model") is None
    (path / UNET).unlink()
    hub.files[UNET] = kept
    hub.asked.clear()
    assert (fetch("tiny/model") / UNET).read_bytes() == kept
    assert hub.downloads() == [UNET]


def test_a_download_that_is_stopped_goes_on_the_next_time(hub: Hub) -> None:
    def stop(done: int, total: int) -> None:
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        fetch("tiny/model", on_bytes=stop)
    assert cached("tiny/model") is None
    assert (fetch("tiny/model") / UNET).read_bytes() == hub.files[UNET]


def test_a_run_tells_of_its_download_and_stops_during_it(
    hub: Hub, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDLORA_HOME", str(tmp_path))
    values = {"base.model": "tiny/model", "data.folder": str(image_folder), "loop.device": "cpu"}
    values |= {"loop.steps": 1, "preview.every": -1, "adapter.rank": 1}
    run = Run.create(build(TrainConfig, values), tmp_path / "runs")
    with monkeypatch.context() as stopped:
        stopped.setattr(Run, "told_to_stop", lambda self: True)
        assert train(run).outcome == "stopped"
    assert train(run).outcome == "finished"
    phases = [event for event in run.events()[0] if isinstance(event, Phase)]
    assert [p.done == p.total for p in phases if p.name.startswith("downloading the base")][-1]


def test_the_variables_of_the_hub_are_honoured(hub: Hub, tmp_path: Path) -> None:
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
    settings = {**os.environ, **variables, "HF_HUB_OFFLINE": "0"}
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, "tiny/model"]
    done = subprocess.run(words, env=settings, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(str(tmp_path / "home" / "hub")), done.stderr
    assert "Bearer hf_secret" in {token for *_, token in hub.asked}


@pytest.mark.parametrize(
    ("model", "constant", "sentence"),
    [
        ("no/such", {}, 'There is no model "no/such", neither here nor on the Hub.'),
        ("gated/model", {}, "gated/model is given out only to people who agreed to its terms."),
        ("tiny/model/none.safetensors", {}, "tiny/model on the Hub holds no file none.safetensors."),
        (
            "tiny/model",
            {"HF_HUB_OFFLINE": True},
            "tiny/model is not on this machine, and HF_HUB_OFFLINE is set.",
        ),
        ("tiny/model", {"ENDPOINT": "http://127.0.0.1:9"}, "tiny/model could not be downloaded: "),
    ],
)
def test_what_cannot_be_fetched_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, model: str, constant: dict[str, object], sentence: str
) -> None:
    for name, value in constant.items():
        monkeypatch.setattr(constants, name, value)
    with pytest.raises(ModelError) as error:
        fetch(model)
    assert error.value.message.startswith(sentence) and error.value.hint


def test_a_disk_that_is_too_small_is_told_before_the_download(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdlora.base.hub.free_bytes", lambda path: 1000)
    with pytest.raises(StorageError, match=r"needs 0\.0 GB, and .* has 0\.0 GB free"):
        fetch("tiny/model")
    assert not hub.downloads()


def test_a_model_that_is_not_here_yet_is_described_as_such() -> None:
    with pytest.raises(ModelError, match=r"not on this machine yet\. It is downloaded when it is first used"):
        describe("no-such/model")


FOLDER = ["model_index.json", "unet/config.json", "vae/config.json", "README.md", "tokenizer/vocab.json"]


def test_fp16_is_taken_where_there_is_a_choice() -> None:
    whole = "unet/diffusion_pytorch_model.safetensors"
    half = "unet/diffusion_pytorch_model.fp16.safetensors"
    shards = ["vae/diffusion_pytorch_model-00001-of-00001.safetensors"]
    index = ["vae/diffusion_pytorch_model.safetensors.index.json"]
    chosen = choose("a/b", [*FOLDER, whole, half, *shards, *index])
    assert set(chosen) == {*FOLDER, half, *shards, *index} - {"README.md"}


def test_pickled_weights_are_not_fetched() -> None:
    with pytest.raises(ModelError, match="pickled weights"):
        choose("a/b", [*FOLDER, "unet/diffusion_pytorch_model.bin"])


def test_a_model_without_a_unet_is_not_fetched() -> None:
    with pytest.raises(ModelError, match="a/b on the Hub has no UNet"):
        choose("a/b", ["model_index.json", "transformer/config.json", "vae/config.json", "a.safetensors"])


def test_of_several_single_files_one_must_be_named() -> None:
    assert choose("a/b", ["x.safetensors", "README.md"]) == ["x.safetensors"]
    with pytest.raises(ModelError, match=r"holds 2 models\. Name one of them, such as a/b/x\.safetensors"):
        choose("a/b", ["x.safetensors", "y.safetensors"])


@pytest.mark.parametrize("model", ["a/b", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a/b/c.safetensors"])
def test_ids_are_known_by_their_form(model: str) -> None:
    assert is_id(model) and not is_id("/" + model) and not is_id(model.partition("/")[0])
