"""Whatever a person hands to the command line by mistake is told in one sentence that names it.

Exit code 2 where the person can mend it, no traceback, no file damaged. The words of a case may hold {place},
a folder where everything that the table names has been broken once.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdlora.cli import main
from tests import breakage
from tests.conftest import TinyModel
from tests.pictures import make_folder

SMALL = "--loop.batch_size 1 --adapter.rank 1 --preview.every -1"
TRAIN = f"train pics --run {{place}}/new-run {SMALL}"

# what is typed, and what the sentence must name
DATASETS = {
    "train {place}/cut-off": ("cut-off", "a.png is cut off"),
    "train {place}/garbled": ("garbled", "a.jpg is damaged"),
    "train {place}/giant": ("giant", "a.png", "100 million pixels"),
    "train {place}/empty": ("empty", "holds no images", "Put PNG"),
    "train {place}/nowhere": ("nowhere", "There is no folder"),
    "train {place}/emptu": ("emptu", "There is no folder", 'Did you mean "empty"?'),
    "train {place}/empty --data.captions.trigger a --data.captions.trigger b": ("Several trigger words",),
    "train {place}/empty --loop.device cuda:77": ("cuda:77", "It has: cpu"),
    "merge good good --rank 4 --output {place}/o.safetensors": ("--rank", "--method svd"),
    "train {place}/cut-off/a.png": ("a.png", "is a file, not a folder"),
    "train": ("No dataset was named", "sdlora train FOLDER"),
}
BASES = {
    "generate x --base {place}/base.ckpt": ("base.ckpt", "pickled", ".safetensors"),
    "generate x --base {place}/lying.safetensors": ("lying.safetensors", "damaged"),
    "generate x --base {place}/nothing.bin": ("nothing.bin", "There is no model"),
    "generate x --base ink": ("ink", "There is no model", "builtin"),
    "generate x --base {place}/good.safetensors": ("good.safetensors", "is an adapter"),
    "generate x --base owner/name": ("owner/name", "not on this machine", "HF_HUB_OFFLINE"),
    "generate x --base {place}/empty": ("empty", "no model_index.json"),
    "generate x --base {place}/no-vae": ("no-vae", "lacks its sub-folder vae"),
    "generate x --base {place}/no-config": ("no-config/unet/config.json", "lacks its file"),
    "generate x --base {place}/half-loaded": (breakage.WEIGHTS, "is incomplete", "Download"),
    "generate x --base {place}/bad-index": ("bad-index/model_index.json", "damaged"),
    "generate x --base {place}/bad-vocabulary": ("vocab.json", "damaged"),
    "generate x --base {place}/no-merges": ("merges.txt", "lacks its file"),
    "generate x --base {place}/odd-vae": ("odd-vae", "configuration"),
    f"{TRAIN} --base {{place}}/base.ckpt": ("base.ckpt", "pickled"),
}
ADAPTERS = {
    "generate x --adapter {place}/cut.safetensors:0.8": ("cut.safetensors", "cut short"),
    "generate x --adapter {place}/lying.safetensors": ("lying.safetensors", "shorter than its header"),
    "generate x --adapter {place}/shapes.safetensors": ("shapes.safetensors", "another size than its shape"),
    "generate x --adapter {place}/base.ckpt": ("base.ckpt", "is a pickle"),
    "generate x --adapter {place}/foreign.safetensors": ("foreign.safetensors", "no kind of adapter"),
    "generate x --adapter {place}/xl.safetensors": ("Diffusion XL", "Diffusion 1.x", "xl.safetensors"),
    "generate x --adapter {place}/nowhere:0.8": ("nowhere", "There is no adapter"),
    "generate <lora:goood:1>": ("goood", '"<lora:good>"'),
    "inspect {place}/cut.safetensors": ("cut.safetensors", "cut short"),
    "inspect {place}/base.ckpt": ("base.ckpt", "is a pickle"),
    "inspect {place}/empty": ("empty", "There is no adapter", "safetensors"),
    "inspect good --pictures {place}/good.safetensors/x": ("x", "a file is in the way"),
    "inspect goo": ("goo", 'Did you mean "good"?'),
    "generate x --adapter good:1e99": ('"1e99"', "-100 to 100"),
    "generate x --adapter good:1:-inf": ('"-inf"', "-100 to 100"),
    "merge good:nan --output {place}/o.safetensors": ('"nan"', "no number"),
    "merge good {place}/good.safetensors --output {place}/good.safetensors": ("would be overwritten",),
    "resize good --rank 1 --output {place}/models/Lora/good.safetensors": ("would be overwritten",),
    "merge good {place}/xl.safetensors --output {place}/o.safetensors": ("XL", "1.x"),
    "merge {place}/foreign.safetensors --output {place}/o.safetensors": ("foreign.safetensors", "foo.bar"),
    "merge good --method svd --rank -1 --output {place}/o.safetensors": ("rank = -1", "at least 0"),
    "merge good --method ties --density 7 --output {place}/o.safetensors": ("density = 7", "from 0 to 1"),
    "merge good --method ti --output {place}/o.safetensors": ("'ti'", "ties"),
    "resize {place}/good.safetensors --energy nan --output {place}/o.safetensors": ("energy = nan",),
    "resize {place}/good.safetensors --ratio -1 --output {place}/o.safetensors": ("ratio = -1",),
    "resize {place}/cut.safetensors --rank 1 --output {place}/o.safetensors": ("cut.safetensors",),
    "extract builtin --base builtin --rank 0 --output {place}/o.safetensors": ("rank = 0", "at least 1"),
    "extract builtin --base builtin --output {place}/o.safetensors": ("do not differ",),
    "bake good --output {place}/empty": ("empty", "exists already"),
    "compare good {place}/xl.safetensors": ("good.safetensors", "xl.safetensors", "of one base"),
    "compare good nowhere": ("nowhere", "There is no adapter"),
}
PLACES = {
    "generate x --steps 1 --output {place}/picture.jpg": ("picture.jpg", "picture.png"),
    "generate x --steps 1 --output {place}/good.safetensors/a.png": ("a.png", "a file is in the way"),
    "generate x --steps 1 --output {place}/folder.png": ("folder.png", "no file that can be replaced"),
    f"generate x --steps 1 --output {{place}}/{'n' * 300}.png": ("the name is too long",),
    f"{TRAIN} --output {{place}}/good.safetensors/a.safetensors": ("a.safetensors", "a file is in the way"),
    f"{TRAIN} --output {{place}}/adapter": ("adapter.safetensors",),
    "merge good --output {place}/base.ckpt": ("base.ckpt", "base.safetensors"),
    f"train pics --run {{place}}/good.safetensors {SMALL}": ("good.safetensors", "is a file"),
    f"train pics --run {{place}}/good.safetensors/run {SMALL}": ("good.safetensors/run", "in the way"),
    f"train pics --run {{place}}/cut-off {SMALL}": ("cut-off", "is not empty"),
    f"train pics --run {{place}}/whole {SMALL}": ("whole", "holds a run already"),
}
WORDS = {
    "trian": ('"trian"', 'Did you mean "train"?'),
    "../train": ('"../train"', 'Did you mean "train"?'),
    "zip": ('"zip"', "Commands: train"),
    "train pics --bogus 1": ("--bogus",),
    "train pics --network_dim 8": ("--network_dim is --adapter.rank here",),
    "train pics --enable_bucket": ("Leave it out",),
    "train pics --loop.stepz 1": ("loop.stepz", 'Did you mean "loop.steps"?'),
    "train pics --loop.steps many": ("loop.steps = 'many'", "a whole number"),
    "train pics --loop.steps 0": ("loop.steps = 0", "out of range"),
    "train pics --optimizer.lr inf": ("optimizer.lr = 'inf'", "finite"),
    "train pics --adapter.kind lorra": ("lorra", 'Did you mean "lora"?'),
    "train pics --data.flip maybe": ("data.flip = 'maybe'", "true or false"),
    "train pics --preset quik": ("quik", 'Did you mean "quick"?'),
    "train pics --output.author '\udcff'": ("output.author", "is not text"),
    f"{TRAIN} --loop.device toaster": ("toaster", "cpu"),
    f"{TRAIN} --adapter.targets nothing.here": ("nothing.here", "matches no layer", "attention"),
    "train pics --config {place}/nowhere.toml": ("nowhere.toml", "No such file"),
    "train pics --config {place}/torn.toml": ("torn.toml", "line 1"),
    "train pics --config {place}/latin.toml": ("latin.toml", "UTF-8"),
    "train pics --config {place}/unknown.toml": ("loop.stepz", "loop.steps"),
    "train pics --config {place}/type.toml": ("loop.steps = 'x'", "a whole number"),
    "train pics --config {place}/range.toml": ("loop.steps = -4", "out of range"),
    "generate": ("prompt", "sdlora generate --help"),
    "generate x y": ("y", "sdlora generate --help"),
    "generate x --width 65": ("width = 65", "multiple of 8", "64"),
    "generate x --size big": ('"big"', "512x768"),
    "generate x --size 99999x64": ("width = 99999", "4,096"),
    "generate x --solver 'Euler q'": ("Euler q", '"Euler a"'),
    "generate x --steps -1": ("steps = -1", "from 1"),
    "generate x --guidance nan": ("guidance", "finite"),
    "generate x --device cuda:99": ("cuda:99", "has no device"),
    "generate '\udcff'": ("prompt", "is not text"),
    "generate x --loop.steps 3": ("--loop.steps", "does not take"),
    "options --tomll": ("--tomll",),
}
RUNS = {
    "resume nowhere": ("nowhere", "holds no run"),
    "resume ../../etc": ("etc", "holds no run"),
    "resume {place}/empty": ("empty", "holds no run", "config.toml"),
    "resume {place}/whole --adapter.rank 4": ("adapter.rank", "cannot change"),
    "resume {place}/whole --loop.steps 1": ("loop.steps = 1", "has done 2 steps"),
    "resume {place}/other-images": ("0-red.png or its caption", "1-green.png is gone"),
    "resume {place}/other-base": ("base.model was 'builtin'", "begin a new run"),
    "resume {place}/torn-config": ("torn-config/config.toml", "not valid TOML"),
    "resume {place}/binary-config": ("binary-config/config.toml", "not valid TOML"),
    "resume {place}/torn-json": ("step-000002 is damaged", "state.json", "Delete its folder"),
    "resume {place}/no-json": ("step-000002 is damaged", "state.json cannot be read"),
    "resume {place}/torn-state": ("step-000002 is damaged", "state.safetensors"),
    "resume {place}/no-state": ("step-000002 is damaged", "state.safetensors cannot be read"),
}


@pytest.fixture(scope="module")
def place(
    tiny_sd1: TinyModel, tiny_sdxl: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A home with one good adapter, one finished run, and everything that the table names, broken."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDLORA_HOME", str(place))
        patch.setenv("SDLORA_BUILTIN", str(tiny_sd1.folder))
        make_folder(place / "datasets" / "pics")
        breakage.adapters(place, tiny_sd1, tiny_sdxl)
        breakage.images(place)
        breakage.bases(place, tiny_sd1.folder)
        breakage.texts(place)
        arguments = shlex.split(f"train pics --run {place}/whole --loop.steps 2 {SMALL}")
        assert main(arguments) == 0
        breakage.runs(place, tiny_sd1.folder)
        yield place


def told(capsys: pytest.CaptureFixture[str], words: str, place: Path) -> tuple[int, str]:
    """The exit code and the sentence of a command, whose other output is only progress."""
    capsys.readouterr()
    code = main([word.format(place=place) for word in shlex.split(words)])
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out
    return code, output.err.splitlines()[-1] if output.err else ""


TABLE = {**DATASETS, **BASES, **ADAPTERS, **PLACES, **WORDS, **RUNS}


@pytest.mark.parametrize("words", TABLE)
def test_a_mistake_is_one_sentence_that_names_it(
    words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, sentence = told(capsys, words, place)
    shutil.rmtree(place / "new-run", ignore_errors=True)
    assert code == 2
    assert sentence.startswith("sdlora: ")
    for part in TABLE[words]:
        assert part in sentence


@pytest.mark.parametrize(
    "words",
    [
        "train {place}/empty",
        "resume {place}/empty",
        "generate x --base {place}/empty",
        "inspect {place}/empty",
        "merge nowhere --output {place}/o.safetensors",
        "resize {place}/empty --output {place}/o.safetensors",
        "extract {place}/empty --base builtin --output {place}/o.safetensors",
        "bake nowhere --output {place}/baked",
        "compare good nowhere",
        "options --tomll",
        "trian",
    ],
)
def test_a_failure_is_one_json_line_for_machines(
    words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(place=place) for word in shlex.split(words)] + ["--json"]) == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["type"] == "Error"
    assert last["error"] and "--json" not in last["error"]


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("model_index.json", "model_index.json"),
        ("unet/config.json", "config.json"),
        (breakage.WEIGHTS, "unet"),
        ("tokenizer/merges.txt", "merges.txt"),
    ],
)
def test_a_built_in_base_that_lacks_a_file_says_how_to_restore_it(
    part: str,
    named: str,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = shutil.copytree(os.environ["SDLORA_BUILTIN"], tmp_path / "builtin")
    (base / part).unlink()
    monkeypatch.setenv("SDLORA_BUILTIN", str(base))
    code, sentence = told(capsys, "generate x", place)
    assert code == 2
    assert named in sentence and str(base) in sentence and "Restore it" in sentence


def test_what_is_wrong_with_single_images_is_told_and_the_rest_is_used(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(place / "datasets/pics", tmp_path / "mixed")
    shutil.copy(place / "cut-off/a.png", images / "a.png")
    (images / "0-red.txt").write_bytes("café".encode("latin-1"))
    assert main(shlex.split(f"train {images} --run {tmp_path}/run --loop.steps 1 {SMALL}")) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert any("a.png is cut off" in note for note in notes)
    assert any("0-red.txt is not UTF-8 and was read as Latin-1" in note for note in notes)


@pytest.mark.parametrize("name", ["../../outside", 'a b:*?"<>|', "..", "CON", "é" * 200])
def test_no_name_of_an_adapter_leaves_the_runs(name: str, tmp_path: Path) -> None:
    from sdlora.config import OutputSpec, TrainConfig
    from sdlora.training.run import Run

    run = Run.create(TrainConfig(output=OutputSpec(name=name)), tmp_path / "runs")
    assert run.path.parent == tmp_path / "runs"
    assert run.adapter.parent == run.path
    assert run.config.output.name == name


def test_a_finished_run_says_so_and_stays_as_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = next((place / "whole").glob("*.safetensors"))
    before = adapter.read_bytes()
    assert main(["resume", str(place / "whole")]) == 0
    assert "All 2 steps of this run were done already." in capsys.readouterr().err
    assert adapter.read_bytes() == before


def test_foreign_files_in_a_run_folder_are_left_alone(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "whole", tmp_path / "run")
    (run / "checkpoints/step-abc").mkdir()
    (run / "commands/notes.json").write_text("{")
    (run / "events.jsonl").write_bytes(b'\x00\xff junk\n{"a": 1}\n')
    assert main(["resume", str(run)]) == 0
    assert (run / "commands/notes.json").read_text() == "{"


def test_two_runs_on_one_folder_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys,time\nfrom pathlib import Path\nfrom sdlora.files import held_lock\n"
        "from sdlora.errors import RunError\n"
        "with held_lock(Path(sys.argv[1]), RunError('x')):\n    print(flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", code, str(place / "whole/lock")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        exit_code, sentence = told(capsys, "resume {place}/whole", place)
        holder.kill()
    assert exit_code == 2
    assert "whole is being trained already" in sentence


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on a file's size")
def test_a_disk_that_fills_up_while_saving_loses_nothing(place: Path, tmp_path: Path) -> None:
    words = f"train pics --run {tmp_path}/run --loop.steps 2 {SMALL}"
    # 24 KiB hold the configuration and the events, but no adapter
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (24 << 10, resource.RLIM_INFINITY))\n"
    )
    ended = sdlora(words, code=code)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Could not write" in ended.stderr.splitlines()[-1] and "Free some space" in ended.stderr
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.tmp"))
    assert sdlora(f"resume {tmp_path}/run").returncode == 0


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    code, sentence = told(capsys, f"train pics --run {tmp_path}/run {SMALL}", place)
    tmp_path.chmod(0o700)
    assert code == 1
    assert str(tmp_path) in sentence and "not writable" in sentence


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT between processes")
@pytest.mark.parametrize("phase", ["", "loading the base", "from step", "loss"])
def test_ctrl_c_is_no_failure_in_any_phase(phase: str, place: Path, tmp_path: Path) -> None:
    words = f"train pics --run {tmp_path}/run --loop.steps 100000 --loop.save_every 100000 {SMALL}"
    child = start(words)
    assert child.stderr is not None
    told = ""
    while phase and phase not in told:
        line = child.stderr.readline()
        assert line, told
        told += line
    if not phase:
        time.sleep(0.5)  # while modules are imported
    child.send_signal(signal.SIGINT)
    told += child.communicate(timeout=60)[1]
    assert child.returncode == 130, told
    assert "Traceback" not in told
    if phase == "loss":
        assert list((tmp_path / "run/checkpoints").glob("step-*/state.json"))


def start(words: str, *, code: str = "") -> "subprocess.Popen[str]":
    """`sdlora` with these words in a process of its own, after `code`."""
    program = f"{code}import sys\nfrom sdlora.cli import main\nsys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", program, *shlex.split(words)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def sdlora(words: str, *, code: str = "") -> "subprocess.CompletedProcess[str]":
    child = start(words, code=code)
    output, errors = child.communicate(timeout=120)
    return subprocess.CompletedProcess(child.args, child.returncode, output, errors)
