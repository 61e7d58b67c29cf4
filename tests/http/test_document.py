"""What docs/http.md shows is what happens: its app is served, and each of its curl commands answers as it says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gworker.http import GatewayServer, create_gateway

pytestmark = pytest.mark.cluster

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "http.md"


def commands() -> list[tuple[str, str]]:
    """Each command of the document with the output it promises."""
    blocks = re.findall(r"^```console\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    found = []
    for block in blocks:
        command, _, output = block.partition("\n")
        found.append((command.removeprefix("$ "), output))
    return found


def test_each_command_answers_as_the_document_says(ray_cluster: None, monkeypatch: Any) -> None:
    assert shutil.which("curl"), "the commands of the document need curl"
    monkeypatch.delenv("GWORKER_TOKEN", raising=False)
    (source,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)
    app = namespace["app"]
    assert len(commands()) >= 7
    try:
        with GatewayServer(create_gateway(app), port=0, drain_s=1) as server:
            for command, promised in commands():
                command = command.replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl --noproxy '*' ")
                ran = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
                pattern = ".*?".join(re.escape(part) for part in promised.strip().split("..."))
                assert re.fullmatch(pattern, ran.stdout.strip(), re.DOTALL), f"{command}\n{ran.stdout}"
    finally:
        app.stop(drain=False)
