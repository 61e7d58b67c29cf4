"""The machine and the software that something was measured, or diagnosed, on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """This machine. `cores` are those this process may use."""

    system: str
    cpu: str
    cores: int
    memory_gb: float | None
    gpus: tuple[str, ...]

    @classmethod
    def here(cls) -> Machine:
        """What this process runs on."""
        return cls(
            system=f"{platform.system()} {platform.machine()}",
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gb=_memory_gb(),
            gpus=tuple(gpus_of_the_driver()),
        )

    def __str__(self) -> str:
        memory = "" if self.memory_gb is None else f", {self.memory_gb:.0f} GB"
        gpus = f", {', '.join(self.gpus)}" if self.gpus else ""
        return f"{self.system}, {self.cores} cores ({self.cpu}){memory}{gpus}"


def _cpu() -> str:
    def named() -> Iterator[str]:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                yield line.partition(":")[2].strip()

    try:
        return next(named(), "") or platform.processor() or "unknown"
    except OSError:
        return platform.processor() or "unknown"


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


def packages(*names: str) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpus_of_the_driver() -> list[str]:
    """The GPUs that the machine's driver knows."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return []
    done = subprocess.run(  # noqa: S603  # a fixed command
        [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=False
    )
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
