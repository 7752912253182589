#!/usr/bin/env python3
"""Starts sdlora from nothing but a Python 3.10 to 3.13.

  python3 launch.py [OPTIONS]        make .venv beside this file, install what is missing, start the page
  python3 launch.py test [OPTIONS]   the same, then run the tests; OPTIONS are pytest's

  --here        use the packages of the Python that runs this, its torch included, and make no .venv
  --no-browser  do not open the page in a browser

All other OPTIONS are the page's own (--port, --listen, ...), and paths in them start at this folder.
SDLORA_TORCH_INDEX=URL takes torch from another index, for AMD https://download.pytorch.org/whl/rocm7.2;
it is remembered until .venv is deleted.
"""

# Only the standard library, and only what Python 3.6 can parse: an old Python must say that it is old.
# A stamp, written last, says that an installation is whole; the next start mends whatever has none.

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from urllib.request import urlopen

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

ROOT = Path(__file__).resolve().parent
LOCK = ROOT / "requirements.lock"
PYTHON = "{}.{}".format(*sys.version_info[:2])
STAMP = "sdlora.json"  # in the environment's folder
SETUPTOOLS = "setuptools>=77.0.3"  # builds sdlora itself; the same bound as in pyproject.toml
TORCH_WHEELS = "https://download.pytorch.org/whl/"
PYPI_BUILD = {"Linux": "cu130", "Windows": "cpu"}  # what a torch from PyPI is: its version does not say
PROBE_SECONDS = 5.0

# What pip's log says, and what that means to a person. The first that matches counts.
NETWORK = r"connection broken|connection error|Max retries exceeded|timed out|ProxyError|SSLError"
MACHINE = f"{platform.system()}, {platform.machine()}, Python {PYTHON}"
REASONS = (
    (r"No space left|Errno 28\b|not enough space", "the disk is full: it takes 2 GB, or 8 GB with CUDA."),
    (r"externally-managed-environment", "this Python belongs to the system: start without --here."),
    (r"Permission denied|Access is denied|Errno 13\b|Errno 30\b", "a folder cannot be written to."),
    (NETWORK, "a package index cannot be reached: check the network (HTTPS_PROXY names a proxy)."),
    (r"(found for|Cannot install) torch\b", f"PyTorch has no build for this machine ({MACHINE})."),
    (r"ResolutionImpossible", "these versions cannot be had, or not together. Given --here, try without."),
)


class Problem(Exception):
    """What failed and what to do, in words for a person."""


class Environment(NamedTuple):
    """The folder that packages are installed in, and its Python. `own`: it is ours, and may be made anew."""

    folder: Path
    python: Path
    own: bool


class Gpu(NamedTuple):
    """An NVIDIA GPU: its driver's major version and its compute capability."""

    driver: int
    capability: float


def main(words: Sequence[str]) -> int:
    """Installs what is missing, then becomes the page or the tests; the exit code is theirs, or 1."""
    if list(words[:1]) in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    rest = [word for word in words if word != "--here"]
    try:
        check_python()
        environment = choose(here=len(rest) < len(words))
        if rest[:1] == ["test"]:
            prepare(environment, ["test"])
            return become(environment.python, ["-m", "pytest", *rest[1:]])
        prepare(environment, [])
        return become(environment.python, ["-m", "ui", *page_options(rest)])
    except Problem as problem:
        return tell(str(problem))
    except OSError as error:
        return tell(f"{error.strerror or error}: {error.filename or ROOT}. Mend that, and start again.")
    except KeyboardInterrupt:
        return tell("stopped. The next start goes on from here.", 130)


def tell(sentence: str, code: int = 1) -> int:
    """Says the sentence on the error channel and returns `code`."""
    print(f"sdlora: {sentence}", file=sys.stderr)
    return code


def check_python() -> None:
    """Raises Problem unless this Python is one that every dependency supports."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        other = "py -3.12 launch.py" if os.name == "nt" else "python3.12 launch.py"
        this = f"this is {platform.python_version()} ({sys.executable})"
        raise Problem(f"Python 3.10 to 3.13 is needed; {this}. Start it with another one, as in: {other}")


def choose(here: bool) -> Environment:
    """The environment of the Python that runs this, or .venv beside this file, made or not."""
    if here:
        return Environment(Path(sys.prefix), Path(sys.executable), own=False)
    folder = ROOT / ".venv"
    return Environment(folder, folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), own=True)


def prepare(environment: Environment, extras: Sequence[str]) -> None:
    """Every locked dependency, with those of `extras`, is installed: at once where the stamp says so."""
    if not ready(environment, extras):
        with alone(environment):
            if not ready(environment, extras):  # the start that we waited for may have done it
                install(environment, extras)


def ready(environment: Environment, extras: Sequence[str]) -> bool:
    """Whether the stamp tells of a whole installation of this lock, for this Python and this machine."""
    stamp = read_stamp(environment)
    if not (stamp.items() >= subject(environment).items() and set(extras) <= set(stamp["extras"])):
        return False
    return not environment.own or (environment.python.exists() and not outdated_build(stamp))


def subject(environment: Environment) -> "Dict[str, str]":
    """What an installation is made for: another Python, lock, or change of a foreign environment ends it."""
    packages = "" if environment.own else repr(sorted(installed().items()))
    return {"lock": hashlib.sha256(LOCK.read_bytes() + packages.encode()).hexdigest(), "python": PYTHON}


def outdated_build(stamp: "Dict[str, Any]") -> bool:
    """Whether torch is of another build than this machine needs, and the right one is within reach."""
    asked = os.environ.get("SDLORA_TORCH_INDEX")
    if asked is not None or stamp["index"] is not None:  # a person's choice outranks ours
        return asked is not None and asked != stamp["index"]
    wanted, got = wanted_build(platform.system(), find_gpu()), build_of(stamp["torch"])
    if wanted in (got, "cpu"):  # every build computes on the CPU too
        return False
    if not reachable(TORCH_WHEELS + wanted):
        tell(f"this machine's GPU needs torch's {wanted} build, which is out of reach: going on with {got}.")
        return False
    return True


def read_stamp(environment: Environment) -> "Dict[str, Any]":
    """What the stamp says; nothing if there is none or it is damaged."""
    try:
        found = json.loads((environment.folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_stamp(environment: Environment, **facts: object) -> None:
    """The stamp says `facts`. Without `lock` among them it says that an installation is under way."""
    # Another's environment may be read-only; then every start asks pip, which takes seconds.
    with suppress(*(() if environment.own else (OSError,))):
        (environment.folder / STAMP).write_text(json.dumps(facts), encoding="utf-8")


@contextmanager
def alone(environment: Environment) -> "Iterator[None]":
    """No other start installs into .venv meanwhile; waits for one that does. A crash frees the lock."""
    if not environment.own:
        yield
        return
    with open(f"{environment.folder}.lock", "a") as file:
        if not try_lock(file.fileno()):
            tell("another start is installing; waiting for it.")
            while not try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def try_lock(descriptor: int) -> bool:
    """Takes the lock of an open file until it is closed; False if another process has it."""
    with suppress(OSError):
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def install(environment: Environment, extras: Sequence[str]) -> None:
    """The environment holds torch, the locked dependencies and sdlora itself; the stamp is written last."""
    before = read_stamp(environment)
    asked = os.environ.get("SDLORA_TORCH_INDEX", before.get("index"))
    extras = sorted({*extras, *before.get("extras", ())})
    keep = not environment.own and "torch" in installed()
    torch = [] if keep else ["torch", *torch_index(asked)]
    if environment.own:
        make(environment, anew="lock" in before and outdated_build(before))
    write_stamp(environment, index=asked, extras=extras)
    print("sdlora: installing. This takes some minutes, the first time only.", flush=True)
    with constraints(environment) as pins:
        # Torch goes first and alone: only it may come from PyTorch's index.
        pip(environment, pins, SETUPTOOLS, *torch)
        project = ".[{}]".format(",".join(extras)) if extras else "."
        pip(environment, pins, "--no-build-isolation", "--editable", project)
    made = {"torch": check_torch(environment), "index": asked, "extras": extras}
    write_stamp(environment, **made, **subject(environment))


def make(environment: Environment, anew: bool) -> None:
    """The folder holds a Python of our version with pip, and no half-installed package."""
    code = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    if not anew and ask(environment.python, "-I", "-c", code) == (True, PYTHON):
        return remove_halves(environment.folder)
    if Path(sys.prefix).resolve() == environment.folder.resolve():
        raise Problem("the .venv must be made anew: start with the Python outside of it.")
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise Problem(
            "this Python cannot make environments. On Debian and Ubuntu: sudo apt install python3-venv "
            f"(python{PYTHON}-venv for a Python that is not the system's own). Then start again."
        )
    fine, told = ask(sys.executable, "-m", "venv", "--clear", str(environment.folder))
    if not fine:
        raise Problem(f"{environment.folder} cannot be made: {told}")


def remove_halves(folder: Path) -> None:
    """Traces of packages that an interrupted pip left half-written are gone: pip installs those again."""
    for packages in folder.glob("[Ll]ib*/**/site-packages"):
        for info in packages.glob("*.dist-info"):
            if not (info / "RECORD").exists():  # pip writes it last
                shutil.rmtree(str(info))
        for leftover in packages.glob("~*"):  # what pip moved aside while it replaced a package
            shutil.rmtree(str(leftover), ignore_errors=True)


@contextmanager
def constraints(environment: Environment) -> "Iterator[str]":
    """The path of the pins for pip: the lock, or for --here what it says of packages not yet there."""
    if environment.own:
        yield str(LOCK)
        return
    have = installed()
    if "torch" not in have and importlib.util.find_spec("torch"):
        raise Problem("torch can be imported, but pip does not know it: start without --here.")
    with tempfile.TemporaryDirectory(prefix="sdlora-") as folder:
        path = Path(folder, "requirements.lock")
        path.write_text(free_pins(LOCK.read_text(encoding="utf-8"), have), encoding="utf-8")
        yield str(path)


def free_pins(lock: str, have: "Dict[str, str]") -> str:
    """The lock's lines for packages that are not there, and torch exactly as it is."""
    kept = [line for line in lock.splitlines() if canonical(line.split("==")[0]) not in have]
    return "\n".join(kept + [f"torch=={have[name]}" for name in ["torch"] if name in have])


def installed() -> "Dict[str, str]":
    """The versions of the packages of the Python that runs this, by name."""
    from importlib.metadata import distributions  # not in the Pythons that only get as far as check_python

    return {canonical(found.metadata["Name"] or ""): found.version for found in distributions()}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def pip(environment: Environment, pins: str, *arguments: str) -> None:
    """pip has installed `arguments`. Raises Problem with the reason; what was installed by then stays."""
    descriptor, log = tempfile.mkstemp(prefix="sdlora-install-", suffix=".log")
    os.close(descriptor)
    isolated = ["-I"] if environment.own else []  # PYTHONPATH and the user's own packages are not in .venv
    command = [str(environment.python), *isolated, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["--log", log, "install", "-c", pins, *arguments]
    environ = dict(os.environ, PIP_USER="0") if environment.own else None
    if subprocess.call(command, cwd=str(ROOT), env=environ):
        raise Problem(f"{explain(Path(log).read_text(encoding='utf-8', errors='replace'))} Full log: {log}")
    os.unlink(log)


def explain(log: str) -> str:
    """Why pip failed and what to do, from its log."""
    errors = re.findall(r"ERROR: +(?!Exception:|ResolutionImpossible:)(\S.*?)[.\s]*$", log, re.MULTILINE)
    told = errors[-1:] + sorted(set(re.findall(r"\(constraint\) (\S+)", log)))
    reason = next((text for pattern, text in REASONS if re.search(pattern, log)), "pip could not finish.")
    return f"the installation failed: {reason} pip: {'; '.join(told)}. The next start goes on from here."


def check_torch(environment: Environment) -> str:
    """The version of the torch in the environment. Raises Problem if it cannot be imported."""
    code = "import torch, importlib.metadata as known; print(known.version('torch'))"
    fine, told = ask(environment.python, "-c", code)
    if not fine:
        advice = "Install Microsoft's Visual C++ Redistributable, or d" if os.name == "nt" else "D"
        raise Problem(f"torch does not start: {told}. {advice}elete .venv; then start again.")
    return told


def ask(program: object, *arguments: str) -> "Tuple[bool, str]":
    """Whether a program ended well, and the last line it printed."""
    try:
        told, fine = subprocess.check_output([str(program), *arguments], stderr=subprocess.STDOUT), True
    except subprocess.CalledProcessError as error:
        told, fine = error.output, False
    except OSError as error:
        return False, str(error)
    return fine, (told.decode(errors="replace").strip().splitlines() or [""])[-1]


def find_gpu() -> "Optional[Gpu]":
    """The NVIDIA GPU that a working driver tells of last."""
    smi = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    fine, told = ask(smi, "--query-gpu=driver_version,compute_cap", "--format=csv,noheader")
    found = re.match(r"(\d+)[\d.]*, *(\d+\.\d+)$", told) if fine else None
    return Gpu(int(found.group(1)), float(found.group(2))) if found else None


def wanted_build(system: str, gpu: "Optional[Gpu]") -> str:
    """The build of torch 2.13 for a machine (PyTorch's RELEASE.md): CUDA 13 needs driver 580 and Turing."""
    if gpu is None or system == "Darwin":
        return "cpu"
    return "cu130" if gpu.driver >= 580 and gpu.capability >= 7.5 else "cu126"


def build_of(version: str) -> str:
    """The build that a version of torch names after its "+", or PyPI's."""
    return version.partition("+")[2] or PYPI_BUILD.get(platform.system(), "cpu")


def torch_index(asked: "Optional[str]") -> "List[str]":
    """pip's arguments for the index that has the right torch; none if it is out of reach or not needed.

    An index that does not answer costs pip 8 to 90 seconds of retries, so it is tried here first.
    """
    url = TORCH_WHEELS + wanted_build(platform.system(), find_gpu()) if asked is None else asked
    if not url or (asked is None and platform.system() == "Darwin"):
        return []
    if reachable(url):
        return ["--extra-index-url", url]
    if asked is not None:
        raise Problem(f"SDLORA_TORCH_INDEX = {asked} cannot be reached. Correct it, or set it to nothing.")
    tell(f"{url} cannot be reached; taking the torch that pip finds elsewhere, whatever its build.")
    return []


def reachable(index: str) -> bool:
    """Whether a package index answers within five seconds, name look-up included. A folder always does."""
    answers: List[bool] = []

    def look() -> None:
        with suppress(OSError, ValueError, HTTPException), urlopen(f"{index}/torch/", timeout=PROBE_SECONDS):
            answers.append(True)

    thread = threading.Thread(target=look, daemon=True)  # a name look-up obeys no timeout
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answers) or not index.startswith("http")


def page_options(words: "Sequence[str]") -> "List[str]":
    """The page's options; it is told to open a browser where there is a screen."""
    rest = [word for word in words if word != "--no-browser"]
    decided = len(rest) < len(words) or not {"--inbrowser", "--autolaunch", "--help"}.isdisjoint(rest)
    return rest if decided or not has_screen() else [*rest, "--inbrowser"]


def has_screen() -> bool:
    """Whether the person who starts us would see a browser opened here."""
    screens = {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    away = {"SSH_CONNECTION", "CI"} & set(os.environ)
    return not away and (bool(screens) or sys.platform in ("win32", "darwin"))


def become(python: Path, arguments: "Sequence[str]") -> int:
    """This process is Python with `arguments`, in our folder; returns only on Windows, with its exit code."""
    path = os.environ.get("PYTHONPATH")
    environ = dict(os.environ, PYTHONPATH=str(ROOT) + (os.pathsep + path if path else ""))
    sys.stdout.flush()
    if os.name == "nt":  # where exec would give the prompt back at once
        return subprocess.call([str(python), *arguments], cwd=str(ROOT), env=environ)
    os.chdir(str(ROOT))
    os.execve(str(python), [str(python), *arguments], environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
