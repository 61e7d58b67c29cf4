"""LitServe with one worker and one HTTP process: `python litserve_server.py echo|embed PORT`."""

from __future__ import annotations

import sys
from typing import Any

import litserve
import minilm


class Echo(litserve.LitAPI):
    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: dict[str, int]) -> int:
        return request["x"]

    def predict(self, x: int) -> int:
        return x

    def encode_response(self, output: int) -> dict[str, int]:
        return {"result": output}


class Embedder(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = minilm.load()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        return minilm.embed(self.model, texts)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    which, port = sys.argv[1:]
    if which == "echo":
        api = Echo(api_path="/echo")
    else:
        api = Embedder(api_path="/embed", max_batch_size=minilm.MAX_BATCH_SIZE, batch_timeout=minilm.WAIT_MS / 1000)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(
        host="127.0.0.1",
        port=int(port),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
