"""The machine in words for the page, without starting CUDA in the web process."""

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

_FRESH_SECONDS = 5.0


@dataclass(frozen=True)
class Gpu:
    """One card; memory in bytes."""

    name: str
    total: int
    used: int


@dataclass
class Machine:
    """What this machine computes with: what nvidia-smi, or the driver of AMD's cards, tells of them.

    It is remembered for seconds.
    """

    command: ClassVar[tuple[str, ...]] = (
        "nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits",
    )  # fmt: skip
    cards: ClassVar[Path] = Path("/sys/class/drm")  # a folder for each, of AMD's with its memory in bytes
    _gpus: tuple[Gpu, ...] = ()
    _asked: float = field(default=-_FRESH_SECONDS)

    def gpus(self) -> tuple[Gpu, ...]:
        """The cards; none where there is no driver."""
        if time.monotonic() - self._asked > _FRESH_SECONDS:
            self._gpus, self._asked = self._nvidia() or self._amd(), time.monotonic()
        return self._gpus

    @property
    def title(self) -> str:
        """One line: the first card and its memory, Apple's GPU, or the processor."""
        gpus = self.gpus()
        if not gpus and (platform.system(), platform.machine()) == ("Darwin", "arm64"):
            return f"Apple GPU ({os.cpu_count()} cores beside it)"
        if not gpus:
            return f"No GPU found, using the processor ({os.cpu_count()} cores)"
        first, more = gpus[0], len(gpus) - 1
        also = f" and {more} more" if more else ""
        return f"{first.name}, {first.total / 1e9:.0f} GB ({(first.total - first.used) / 1e9:.0f} free){also}"

    def room(self, device: str = "auto") -> tuple[int, int]:
        """Bytes in all and free on the device that an option names; (0, 0) where unknown."""
        number = int(device.partition(":")[2] or 0) if device != "cpu" else 0
        if device != "cpu" and number < len(gpus := self.gpus()):
            return gpus[number].total, gpus[number].total - gpus[number].used
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            page = os.sysconf("SC_PAGE_SIZE")
            return os.sysconf("SC_PHYS_PAGES") * page, _available() or os.sysconf("SC_AVPHYS_PAGES") * page
        return 0, 0

    def _amd(self) -> tuple[Gpu, ...]:
        # a torch without ROCm does not compute on them
        if not torch.version.hip:
            return ()
        found = []
        for total in sorted(self.cards.glob("card*/device/mem_info_vram_total")):
            used = total.with_name("mem_info_vram_used")
            found.append(Gpu("AMD GPU", int(total.read_text()), int(used.read_text())))
        return tuple(found)

    def _nvidia(self) -> tuple[Gpu, ...]:
        if shutil.which(self.command[0]) is None:
            return ()
        try:
            answer = subprocess.run(self.command, capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            return ()
        rows = [line.rsplit(",", 2) for line in answer.stdout.splitlines() if line.count(",") >= 2]
        mebibyte = 1 << 20
        return tuple(
            Gpu(name.strip(), int(total) * mebibyte, int(used) * mebibyte)
            for name, total, used in rows
            if total.strip().isdigit() and used.strip().isdigit()
        )


def _available() -> int:
    """Linux's own figure of memory that a program can have; 0 elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
