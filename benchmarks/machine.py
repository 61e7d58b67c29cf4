"""The machine a benchmark runs on, the versions that it measures, and whether the machine has something else to do."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import psutil

from gworker.cli.machine import Machine, packages

PACKAGES = ("gworker", "ray", "torch", "sentence-transformers", "numpy", "fastapi", "uvicorn", "litserve", "mosec")
# A share of all cores that something else may take without a warning.
QUIET = 0.1


def describe() -> dict[str, str | int | float]:
    """Processor, cores, memory and kernel."""
    here = Machine.here()
    return {
        "cpu": here.cpu,
        "cores": here.cores,
        "memory_gb": round(here.memory_gb or 0.0, 1),
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Python and every package that is measured; a package that is missing says so."""
    found = {"python": platform.python_version(), **dict.fromkeys(PACKAGES, "not installed"), **packages(*PACKAGES)}
    if commit := _commit():
        found["gworker"] += f" ({commit})"
    return found


def busy() -> float:
    """The share of all cores that is in use while this process does nothing for a second."""
    return float(psutil.cpu_percent(interval=1.0)) / 100


def _commit() -> str:
    """The commit that is measured, with a plus where files have been changed since; empty outside a repository."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty=+", "--exclude", "*"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip()
