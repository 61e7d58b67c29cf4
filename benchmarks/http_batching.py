"""HTTP with batching: all-MiniLM-L6-v2 behind gworker, Ray Serve, LitServe and mosec, one text a request.

64 connections, each with one request after another: sentences of the World Factbook. All have batches of at most 32
texts, wait 10 ms at most for more, and give the model half of the machine's cores; what is measured besides the model
is how well the batches are filled while the last one runs, and what is spent on HTTP and JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

from figures import Row
from harness import Benchmark
from http_peers import contenders

CONNECTIONS = 64
TEXTS = Path(__file__).parents[1] / "examples" / "data" / "world_factbook.txt"
ROWS = [
    Row(f"req_s_{CONNECTIONS}", "texts/s", "", more_is_better=True),
    Row(f"p50_ms_{CONNECTIONS}", "p50", "ms"),
    Row(f"p99_ms_{CONNECTIONS}", "p99", "ms"),
    Row(f"batch_{CONNECTIONS}", "texts in a batch, mean", "", more_is_better=True),
    Row(f"cpu_us_{CONNECTIONS}", "CPU for one", "µs"),
]


def main() -> None:
    """Run the benchmark."""
    bench = Benchmark(__doc__, ROWS, rounds=3)
    bodies = [json.dumps({"text": text}).encode() for text in TEXTS.read_text(encoding="utf-8").splitlines()]
    servers = contenders(
        "embed", bodies, 3.0 if bench.quick else 8.0, without=["FastAPI", "Ray Serve (throughput, direct)"]
    )
    bench.run(servers, [CONNECTIONS])
    bench.finish()


if __name__ == "__main__":
    main()
