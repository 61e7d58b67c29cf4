"""The snippets of docs/guide.md run, in order, in one process, as the page says they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.guide, pytest.mark.slow]


def test_every_snippet_of_the_guide_document_runs_in_order(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guide.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(snippets) > 10
    script = tmp_path / "guide.py"
    script.write_text("\n".join(snippets))
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}
    ran = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]


def test_the_quickstart_prints_what_its_comments_promise() -> None:
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "one call:       44.0" in ran.stdout
    assert "many, in order: [32.0, 37.0, 69.0, 53.0]" in ran.stdout
    assert "streamed:       b a t c h" in ran.stdout
