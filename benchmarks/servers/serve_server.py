"""Ray Serve with one replica: `python serve_server.py echo|embed PORT`.

With `RAY_SERVE_THROUGHPUT_OPTIMIZED=1` the replica listens as well, on `RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT`; where
that is PORT, Ray Serve's proxy takes the next one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

import minilm
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Echo:
    async def __call__(self, request: Request) -> dict[str, int]:
        return {"result": (await request.json())["x"]}


@serve.deployment(max_ongoing_requests=128, ray_actor_options={"num_cpus": 0})
class Embedder:
    def __init__(self) -> None:
        self.model = minilm.load()

    @serve.batch(max_batch_size=minilm.MAX_BATCH_SIZE, batch_wait_timeout_s=minilm.WAIT_MS / 1000)
    async def embed(self, texts: list[str]) -> list[dict[str, Any]]:
        return minilm.embed(self.model, texts)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return await self.embed((await request.json())["text"])


DEPLOYMENTS = {"echo": Echo, "embed": Embedder}

if __name__ == "__main__":
    which, port = sys.argv[1:]
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    direct = os.environ.get("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT") == port
    serve.start(http_options={"host": "127.0.0.1", "port": int(port) + direct})
    serve.run(DEPLOYMENTS[which].bind(), route_prefix=f"/{which}", blocking=False)
    signal.pause()
