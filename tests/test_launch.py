"""launch.py, driven as a person drives it: real pip, real environments, packages of a few bytes.

Making an environment takes seconds, so most tests work on a copy of one.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = "import sys, gizmo; print('page', *sys.argv[1:], 'gizmo', gizmo.version)"
BACKEND = """
import shutil
def build_editable(folder, config_settings=None, metadata_directory=None):
    return shutil.copy("toy-1.0-py3-none-any.whl", folder).rpartition("/")[2]
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def write_wheel(folder: Path, name: str, version: str, code: str = "", metadata: str = "") -> None:
    """`folder` has a wheel of one module that holds `code` and its `version`."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n{code}\n")
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


class Project:
    """A checkout with our launch.py, a page of one line, and an index of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stamp = folder / ".venv" / "sdlora.json"

    def start(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        with self.begin(*words, **environ) as child:
            told = child.communicate(timeout=120)
        return subprocess.CompletedProcess(child.args, child.returncode, *told)

    def begin(self, *words: str, python: str = sys.executable, **environ: str) -> subprocess.Popen[str]:
        """A start under way, in a process group of its own and in another folder."""
        return subprocess.Popen(
            [python, str(self.folder / "launch.py"), *words],
            env=self.environ(**environ),
            cwd=self.folder.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def environ(self, **changes: str) -> dict[str, str]:
        """The variables of a machine whose only index is the project's folder of wheels."""
        theirs = ("PIP_", "PYTHON", "DISPLAY", "WAYLAND_DISPLAY")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        wheels = str(self.folder / "wheels")
        index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "PIP_CONFIG_FILE": os.devnull}
        return {**kept, **index, "SDLORA_TORCH_INDEX": "", "TMPDIR": str(self.folder.parent), **changes}

    def pin(self, version: str) -> None:
        lock = f"gizmo=={version}\nprobe==1.0\npytest==1.0\ntorch==2.13.0\nsetuptools==84.0\n"
        (self.folder / "requirements.lock").write_text(lock)

    def site(self) -> Path:
        return next((self.folder / ".venv").glob("[Ll]ib/**/site-packages"))


def make_project(folder: Path) -> Project:
    for name in ("ui", "wheels"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "launch.py", folder)
    (folder / "ui" / "__main__.py").write_text(PAGE)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    needs = "Requires-Dist: gizmo\nRequires-Dist: torch\nProvides-Extra: test\n"
    needs += "Requires-Dist: probe; extra == 'test'\nRequires-Dist: pytest; extra == 'test'\n"
    write_wheel(folder, "toy", "1.0", metadata=needs)
    for name, version in (("gizmo", "1.0"), ("gizmo", "1.1"), ("probe", "1.0"), ("torch", "2.13.0+cpu")):
        write_wheel(folder / "wheels", name, version)
    write_wheel(folder / "wheels", "setuptools", "84.0")
    write_wheel(folder / "wheels", "pytest", "1.0", "import sys, probe; print('tests', *sys.argv[1:])")
    project = Project(folder)
    project.pin("1.0")
    return project


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """A project that was never started."""
    return make_project(tmp_path / "project")


@pytest.fixture(scope="module")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, subprocess.CompletedProcess[str]]:
    project = make_project(tmp_path_factory.mktemp("launch") / "project")
    return project, project.start("--port", "7861")


@pytest.fixture
def installed(first_start: tuple[Project, object], tmp_path: Path) -> Project:
    """A project whose first start went well."""

    def copy(source: str, target: str) -> None:
        if "/site-packages/pip/" in source:  # a thousand files that no test changes in place
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    folder = tmp_path / "installed"
    shutil.copytree(first_start[0].folder, folder, symlinks=True, copy_function=copy)
    return Project(folder)


@pytest.fixture
def launch(tmp_path: Path) -> ModuleType:
    """launch.py as a module, for what cannot be had as a process: other machines, other Pythons."""
    spec = importlib.util.spec_from_file_location("launch", ROOT / "launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def says_one_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> bool:
    told = [line for line in done.stderr.splitlines() if line.startswith("sdlora: ")]
    calm = done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    return calm and len(told) == 1 and all(part in told[0] for part in parts)


def test_the_first_start_installs_and_becomes_the_page(first_start: tuple[Project, object]) -> None:
    project, done = first_start
    assert isinstance(done, subprocess.CompletedProcess) and done.returncode == 0, done.stderr
    assert "installing" in done.stdout and done.stdout.endswith("page --port 7861 gizmo 1.0\n")
    stamp = json.loads(project.stamp.read_text())
    assert (stamp["torch"], stamp["extras"]) == ("2.13.0+cpu", [])


def test_the_second_start_installs_nothing(installed: Project) -> None:
    began = time.monotonic()
    assert installed.start().stdout == "page gizmo 1.0\n"
    assert time.monotonic() - began < 2


def test_tests_bring_their_extras_and_keep_them(installed: Project) -> None:
    assert installed.start("test", "-k", "x").stdout.endswith("tests -k x\n")
    assert installed.start().stdout == "page gizmo 1.0\n"


def test_a_new_lock_is_installed(installed: Project) -> None:
    installed.pin("1.1")
    assert installed.start().stdout.endswith("page gizmo 1.1\n")


def test_a_killed_installation_is_finished_by_the_next_start(installed: Project) -> None:
    installed.pin("1.1")
    with installed.begin() as child:
        while child.poll() is None and "lock" in json.loads(installed.stamp.read_text() or "{}"):
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert installed.start().stdout.endswith("page gizmo 1.1\n")


def test_a_half_written_package_is_installed_again(installed: Project) -> None:
    (installed.site() / "gizmo.py").unlink()
    (installed.site() / "gizmo-1.0.dist-info" / "RECORD").unlink()
    (installed.site() / "~izmo").mkdir()
    installed.stamp.unlink()
    done = installed.start()
    assert done.stdout.endswith("page gizmo 1.0\n"), done.stderr
    assert not list(installed.site().glob("~*"))


@pytest.mark.parametrize("damage", ["no python", "cut stamp"])
def test_a_damaged_environment_is_mended(installed: Project, damage: str) -> None:
    if damage == "no python":
        (installed.folder / ".venv" / "bin" / "python").unlink()
    else:
        installed.stamp.write_text('{"lock": "')
    assert installed.start().stdout.endswith("page gizmo 1.0\n")


def test_a_missing_version_is_told_and_mended(installed: Project) -> None:
    installed.pin("9.9")
    assert says_one_sentence(installed.start(), "gizmo==9.9", "The next start goes on from here.")
    installed.pin("1.1")
    assert installed.start().stdout.endswith("page gizmo 1.1\n")


def test_a_missing_network_is_told(installed: Project) -> None:
    installed.pin("1.1")
    closed = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": ""}
    done = installed.start(PIP_RETRIES="0", **closed)
    assert says_one_sentence(done, "cannot be reached: check the network")


def test_a_torch_that_does_not_start_is_told(installed: Project) -> None:
    (installed.site() / "torch.py").write_text("raise ImportError('libgomp is missing')")
    installed.stamp.unlink()
    assert says_one_sentence(installed.start(), "torch does not start", "libgomp is missing")


def test_a_folder_that_cannot_be_made_is_told(fresh: Project) -> None:
    (fresh.folder / ".venv").write_text("in the way")
    assert says_one_sentence(fresh.start(), str(fresh.folder / ".venv"))


def test_two_starts_at_once_install_once(installed: Project) -> None:
    installed.pin("1.1")
    both = [installed.begin(), installed.begin()]
    told = [child.communicate(timeout=120)[0] for child in both]
    assert [child.returncode for child in both] == [0, 0]
    assert sum("installing. This" in text for text in told) == 1


def test_here_keeps_the_torch_that_is_there(fresh: Project, installed: Project) -> None:
    """The other project's environment plays the person's own, with a newer torch than the lock's."""
    python = str(installed.folder / ".venv" / "bin" / "python")
    write_wheel(fresh.folder / "wheels", "torch", "9.9")
    command = [python, "-m", "pip", "install", "--quiet", "torch==9.9"]
    subprocess.run(command, env=fresh.environ(), check=True)
    installed.stamp.unlink()
    assert fresh.start("--here", "test", python=python).stdout.endswith("tests\n")
    assert json.loads(installed.stamp.read_text())["torch"] == "9.9"
    assert not (fresh.folder / ".venv").exists()
    assert fresh.start("--here", python=python).stdout == "page gizmo 1.0\n"
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "gizmo"], check=True)
    assert fresh.start("--here", python=python).stdout.endswith("page gizmo 1.0\n")


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 14, 0)])
def test_a_python_out_of_range_is_told(
    launch: ModuleType,
    version: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert launch.main([]) == 1
    assert capsys.readouterr().err.startswith("sdlora: Python 3.10 to 3.13 is needed; this is ")


def test_a_debian_without_venv_is_told(
    launch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert launch.main([]) == 1
    assert "sudo apt install python3-venv" in capsys.readouterr().err


@pytest.mark.parametrize(
    "system, gpu, build",
    [
        ("Linux", None, "cpu"),
        ("Linux", (580, 9.0), "cu130"),
        ("Windows", (581, 12.0), "cu130"),
        ("Linux", (570, 8.6), "cu126"),  # the driver is too old for CUDA 13
        ("Linux", (580, 6.1), "cu126"),  # so is the GPU: Pascal
        ("Darwin", None, "cpu"),
    ],
)
def test_the_build_of_torch_follows_the_gpu(
    launch: ModuleType, system: str, gpu: tuple[int, float] | None, build: str
) -> None:
    assert launch.wanted_build(system, gpu and launch.Gpu(*gpu)) == build


def test_a_gpu_is_found_by_its_driver(
    launch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '580.159.03, 9.0'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.find_gpu() == (580, 9.0)
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert launch.find_gpu() is None


@pytest.mark.parametrize("within_reach, again", [(True, True), (False, False)])
def test_a_new_gpu_asks_for_another_torch_if_it_can_be_had(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch, within_reach: bool, again: bool
) -> None:
    monkeypatch.delenv("SDLORA_TORCH_INDEX", raising=False)
    monkeypatch.setattr(launch, "find_gpu", lambda: launch.Gpu(580, 9.0))
    monkeypatch.setattr(launch, "reachable", lambda url: within_reach)
    assert launch.outdated_build({"torch": "2.13.0+cpu", "index": None}) is again
    assert launch.outdated_build({"torch": "2.13.0+cu130", "index": None}) is False
    assert launch.outdated_build({"torch": "2.13.0+cpu", "index": "chosen by the person"}) is False


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/torch/" else 404)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[str]:
    """The address of a package index that has torch."""
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_index_is_asked_before_pip_is(launch: ModuleType, index: str) -> None:
    assert launch.torch_index(index) == ["--extra-index-url", index]
    assert launch.torch_index("") == []


def test_a_silent_index_is_given_up_soon(launch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        began = time.monotonic()
        assert not launch.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - began < 2


def test_a_wrong_index_of_the_person_is_told(installed: Project) -> None:
    wrong = "http://127.0.0.1:9/whl"
    assert says_one_sentence(installed.start(SDLORA_TORCH_INDEX=wrong), f"SDLORA_TORCH_INDEX = {wrong}")
    assert installed.start().stdout == "page gizmo 1.0\n"


@pytest.mark.parametrize(
    "environ, words, opens",
    [
        ({"DISPLAY": ":0"}, [], True),
        ({"DISPLAY": ":0"}, ["--no-browser"], False),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "far away"}, [], False),
        ({}, [], False),
    ],
)
def test_a_browser_opens_where_a_person_sees_it(
    launch: ModuleType,
    environ: dict[str, str],
    words: list[str],
    opens: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert launch.page_options(words) == (["--inbrowser"] if opens else [])
