"""gworker's gateway before one worker: `python gworker_server.py echo|embed PORT`; either is there."""

from __future__ import annotations

import logging
import sys
from typing import Any

import minilm
import ray

import gworker as gw
from gworker.http import create_gateway, serve

app = gw.App("bench-http")


@app.cls(max_workers=1, min_workers=1, cpu=0)
@gw.concurrent(max_inputs=256)
class Echo:
    @gw.method()
    async def echo(self, x: int) -> int:
        return x


@app.cls(max_workers=1, cpu=0, scaledown_window_s=3600)
@gw.concurrent(max_inputs=128)
class Embedder:
    @gw.on_enter()
    def load(self) -> None:
        self.model = minilm.load()

    @gw.method()
    @gw.batched(max_batch_size=minilm.MAX_BATCH_SIZE, wait_ms=minilm.WAIT_MS)
    def embed(self, text: list[str]) -> list[dict[str, Any]]:
        return minilm.embed(self.model, text)


if __name__ == "__main__":
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    with app.run():
        serve(create_gateway(app), port=int(sys.argv[2]), drain_s=1)
