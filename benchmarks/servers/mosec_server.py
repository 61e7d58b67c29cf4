"""mosec with one worker: `python mosec_server.py echo|embed PORT`."""

from __future__ import annotations

import os
import sys
from typing import Any

import minilm
from mosec import Server, Worker


class Echo(Worker):
    def forward(self, data: dict[str, int]) -> dict[str, int]:
        return {"result": data["x"]}


class Embedder(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = minilm.load()

    def forward(self, data: list[dict[str, str]]) -> list[dict[str, Any]]:
        return minilm.embed(self.model, [each["text"] for each in data])


if __name__ == "__main__":
    which, port = sys.argv[1:]
    options = {"ADDRESS": "127.0.0.1", "PORT": port, "LOG_LEVEL": "error", "TIMEOUT": "30000"}
    os.environ.update({f"MOSEC_{name}": value for name, value in options.items()})
    server = Server()
    if which == "echo":
        server.append_worker(Echo, route="/echo")
    else:
        server.append_worker(
            Embedder, max_batch_size=minilm.MAX_BATCH_SIZE, max_wait_time=minilm.WAIT_MS, route="/embed"
        )
    server.run()
