"""What a worker's process does with freed memory. In processes of their own: malloc is told once for all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gworker.worker.memory import _is_glibc, keep_freed_memory

pytestmark = pytest.mark.skipif(not _is_glibc(), reason="these settings are glibc's")

# Batches on a thread, as a worker runs them: some arrays at a time, freed together. Huge pages would hide the faults.
SCRIPT = """
import resource, sys, threading
from gworker.worker.memory import keep_freed_memory

print(keep_freed_memory())

def batch():
    arrays = [bytearray(8 << 20) for _ in range(4)]

def batches():
    for _ in range(5):
        batch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        batch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=batches)
thread.start()
thread.join()
"""


def test_what_one_batch_has_freed_the_next_one_uses_without_paging_it_in_anew() -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    ended = subprocess.run([sys.executable, "-c", SCRIPT], env=clean, capture_output=True, text=True, check=True)
    done, faults = ended.stdout.split()
    assert done == "True"
    assert int(faults) < 1000, "one batch alone has 8,192 pages"


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_ARENA_MAX", "2"), ("MALLOC_TOP_PAD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.perturb=1")],
)
def test_settings_that_a_user_has_made_for_malloc_stay(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert keep_freed_memory() is False
