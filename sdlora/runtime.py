"""The machine: devices, number formats, kernels that repeat their bits, seeds, memory, leases, processes.

Nothing else in the library asks what hardware there is.
"""

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora.errors import ConfigError, DeviceBusy, OutOfMemory, SdloraError, first_line
from sdlora.files import held_lock

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_TEXT = 1024  # bytes of a text that processes exchange


@dataclass(frozen=True)
class Processes:
    """Processes that compute together, each on a device of its own; this one is `rank` (from 0) of `count`.

    `card` is the CUDA device that is this one's, where there are such.
    """

    rank: int = 0
    count: int = 1
    card: int = 0
    _hosts: Any = None  # torch's group of the hosts, which has no type

    @classmethod
    def joined(cls) -> "Processes":
        """Those that `accelerate launch` or `torchrun` started, once all are there; else this one alone.

        Raises SdloraError when they cannot be connected.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        from accelerate import PartialState

        try:
            state = PartialState(cpu=not torch.cuda.is_available())
            # hosts wait for one another while the first draws previews
            hosts = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=1))
        except (RuntimeError, ValueError) as error:
            raise SdloraError(
                f"The processes that are to train together cannot be connected: {first_line(error)}.",
                "Start them with `accelerate launch`, or unset WORLD_SIZE to train with one.",
            ) from error
        return cls(state.process_index, state.num_processes, state.device.index or 0, hosts)

    def exchange(self, text: str) -> list[str]:
        """The texts of all processes, in the order of ranks; only their first kilobyte is told.

        Waits for all. Raises RuntimeError when one has gone.
        """
        if self.count == 1:
            return [text]
        sent = torch.frombuffer(bytearray(text.encode()[:_TEXT].ljust(_TEXT, b"\0")), dtype=torch.uint8)
        got = [torch.empty_like(sent) for _ in range(self.count)]
        torch.distributed.all_gather(got, sent, group=self._hosts)
        return [one.numpy().tobytes().rstrip(b"\0").decode(errors="ignore") for one in got]

    def average(self, tensor: Tensor) -> None:
        """`tensor` holds its mean over all processes; a device waits for the others, its host does not."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor, group=self._group(tensor))
            tensor /= self.count

    def spread(self, tensor: Tensor) -> None:
        """`tensor` holds what it holds in the first process."""
        if self.count > 1:
            torch.distributed.broadcast(tensor, 0, group=self._group(tensor))

    def leave(self) -> None:
        """The connections to the other processes are closed."""
        if self.count > 1:
            torch.distributed.destroy_process_group()

    def _group(self, tensor: Tensor) -> Any:  # Any: as above
        return self._hosts if tensor.device.type == "cpu" else None


ALONE = Processes()


@dataclass(frozen=True)
class Runtime:
    """The device to compute on, and the number format of the base on it.

    Adapters, their gradients and losses are fp32 whatever `dtype` is: layers cast them where they meet, which
    is less work than autocast and the same on every device.
    """

    device: torch.device
    dtype: torch.dtype
    processes: Processes = ALONE

    @classmethod
    def choose(
        cls, device: str = "auto", precision: str = "auto", *, processes: Processes = ALONE
    ) -> "Runtime":
        """The best device there is, or the one named; the fastest safe number format on it, or the one named.

        `processes` are those that compute the same work on devices of their own. Raises ConfigError when this
        machine has no such device.
        """
        chosen = _device(device, processes.card)
        dtype = _DTYPES[precision] if precision != "auto" else _best_dtype(chosen)
        return cls(chosen, dtype, processes)

    @property
    def title(self) -> str:
        """The device in words, e.g. "NVIDIA H200" or "CPU, 8 threads"; "2 x ..." of as many processes."""
        return f"{self.processes.count} x {self._one}" if self.processes.count > 1 else self._one

    @property
    def _one(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type == "cpu":
            return f"CPU, {torch.get_num_threads()} threads"
        return self.device.type.upper()

    @property
    def precision(self) -> str:
        """The option's word for `dtype`."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)

    def peak_bytes(self) -> int:
        """The most memory that this process has held on the device so far; 0 where that is not known."""
        if self.device.type == "cuda":
            # reserved, because a captured graph's memory is not counted as allocated
            return torch.cuda.max_memory_reserved(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        return _peak_resident_bytes()

    def free_bytes(self) -> int:
        """The memory of the device that nobody holds; all of it where that is not known."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return self.total_bytes()

    def total_bytes(self) -> int:
        """The memory of the device; for a CPU that of the machine; 0 where that is not known."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        if self.device.type == "mps":
            return torch.mps.recommended_max_memory()
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if "SC_PHYS_PAGES" not in names:
            return 0
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def seed(seed: int, step: int) -> None:
    """Whatever torch draws from now on is a function of (seed, step), on every device."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, step), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little", signed=True))


def synchronize(device: torch.device) -> None:
    """All work that was handed to `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release(device: torch.device) -> None:
    """Memory that torch keeps for later is the device's again."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@contextlib.contextmanager
def kernels(*, deterministic: bool, threads: int = 0) -> Iterator[None]:
    """Inside, kernels give the same bits every time (or, if not `deterministic`, are the fastest known).

    `threads` fixes how many CPU threads share a sum, since the order of a sum decides its last bits; 0 leaves
    them. cuBLAS reads its part of this when it starts, so enter before the first CUDA work of the process.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]  # not in torch's stubs
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.use_deterministic_algorithms(deterministic)
        # filling fresh memory with NaN is a tool for finding bugs and costs a kernel each time
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as above
        # trying every kernel takes half a minute and, at 1024 pixels, all the memory of the card
        torch.backends.cudnn.benchmark = False
        torch.set_num_threads(threads or before[3])
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]  # as above
        torch.backends.cudnn.benchmark = before[2]
        torch.set_num_threads(before[3])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread, which is the quickest way through thousands of small tensors.

    A second one, where another program holds its core, comes a time slice late to each of them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def lease(device: torch.device, holder: str) -> Iterator[None]:
    """Inside, this process alone of ours computes on `device`; a CPU is free for all.

    Raises DeviceBusy, which names the `holder` that the other process gave.
    """
    if device.type == "cpu":
        yield
        return
    lock = Path(tempfile.gettempdir()) / f"sdlora-{_user()}" / f"{_identity(device)}.lock"
    note = lock.with_suffix(".txt")
    other = note.read_text(encoding="utf-8") if note.exists() else "another process"
    busy = DeviceBusy(
        f"{_name(device)} is in use by {other}.",
        "Wait until it has ended, stop it, or choose another device.",
    )
    with held_lock(lock, busy):
        note.write_text(holder, encoding="utf-8")
        yield


@contextlib.contextmanager
def allocating() -> Iterator[None]:
    """A failed allocation inside leaves as torch.OutOfMemoryError; of itself only CUDA's does."""
    try:
        yield
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "out of memory" not in str(error).lower():
            raise
        raise torch.OutOfMemoryError(str(error)) from error


@contextlib.contextmanager
def memory_told(advice: str) -> Iterator[None]:
    """A failed allocation inside leaves as OutOfMemory with `advice`."""
    try:
        with allocating():
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory("The device's memory did not suffice.", advice) from error


def require_device(name: str) -> None:
    """Raises ConfigError that says what there is when `name` is no device of this machine; starts none."""
    if name != "auto":
        _device(name, 0)


def _device(name: str, card: int) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", card)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f'"{name}" is no device.', f"This machine has: {', '.join(_present())}.") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", card)
    if str(device) not in _present():
        raise ConfigError(f'This machine has no device "{name}".', f"It has: {', '.join(_present())}.")
    return device


def _present() -> list[str]:
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def _best_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    if device.type == "mps":
        has_bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
    else:
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bf16 else torch.float16


def _identity(device: torch.device) -> str:
    """One name for one physical device, whatever CUDA_VISIBLE_DEVICES calls it."""
    if device.type != "cuda":
        return device.type
    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"


def _name(device: torch.device) -> str:
    return f"The device {device} ({Runtime(device, torch.float32).title})"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


def _peak_resident_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024
