"""The machine is chosen in words, seeds repeat, and what fails says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdlora import runtime
from sdlora.errors import ConfigError, DeviceBusy, OutOfMemory, SdloraError
from sdlora.runtime import Processes, Runtime


def test_the_cpu_computes_in_fp32() -> None:
    machine = Runtime.choose("cpu")
    assert (machine.device.type, machine.dtype, machine.precision) == ("cpu", torch.float32, "fp32")
    assert machine.title.startswith("CPU")
    assert 0 < machine.peak_bytes() < machine.total_bytes()


def test_a_named_precision_is_kept() -> None:
    assert Runtime.choose("cpu", "bf16").dtype == torch.bfloat16


@pytest.mark.parametrize(("newer", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_apples_gpus_compute_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, newer: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: newer)
    machine = Runtime.choose()
    assert (machine.device.type, machine.dtype) == ("mps", dtype)


def test_processes_that_cannot_be_connected_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # without all that a launcher sets besides
    with pytest.raises(SdloraError, match="cannot be connected: .*MASTER_ADDR"):
        Processes.joined()


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu:x"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Runtime.choose(name)
    assert name in caught.value.message and "cpu" in caught.value.hint


def test_random_numbers_are_a_function_of_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> float:
        runtime.seed(seed, step)
        return torch.rand(()).item()

    assert drawn(0, 1) == drawn(0, 1)
    assert len({drawn(0, 1), drawn(1, 0), drawn(0, 2), drawn(1, 1)}) == 4
    drawn(2**32 - 1, 10_000_000)


def test_deterministic_kernels_and_threads_hold_only_inside() -> None:
    threads = torch.get_num_threads()
    with runtime.kernels(deterministic=True, threads=1):
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == threads


def test_the_cpu_is_free_for_all() -> None:
    with runtime.lease(torch.device("cpu"), "a"), runtime.lease(torch.device("cpu"), "b"):
        pass


def test_a_leased_device_names_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = (
        "import time, torch\nfrom sdlora import runtime\n"
        "with runtime.lease(torch.device('mps'), 'the run red-panda'):\n"
        "    print(1, flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    busy = pytest.raises(DeviceBusy, match="in use by the run red-panda")
    with busy, runtime.lease(torch.device("mps"), "another"):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with runtime.lease(torch.device("mps"), "another"):
        pass


def test_a_failed_allocation_says_what_to_do() -> None:
    with pytest.raises(OutOfMemory) as caught, runtime.memory_told("Use a smaller batch."):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert caught.value.hint == "Use a smaller batch."


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shape"), runtime.memory_told(""):
        torch.ones(2).view(3)
