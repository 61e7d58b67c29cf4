"""HTTP echo: gworker's gateway, a bare FastAPI route, Ray Serve, LitServe and mosec.

Requests per second and the p50 of one at 1 and 32 connections, and the CPU time that all processes of the server take
for one. Each server has one replica or worker that does nothing; FastAPI answers by itself. All have JSON in and out.
Ray Serve is measured three times: as it is; with `RAY_SERVE_THROUGHPUT_OPTIMIZED=1` at the same address, its proxy's;
and at the port that its only replica has of its own in that mode, with neither proxy nor router before it.
The load comes from one process, which takes 10 µs for a request: where it is busy all the time nevertheless, there are
no figures.
"""

from __future__ import annotations

from figures import Row, times
from harness import Benchmark
from http_peers import contenders

CONNECTIONS = (1, 32)


def rows(connections: int) -> list[Row]:
    """What is measured at so many connections."""
    promised = [times(10, peer, at_least=True) for peer in ("Ray Serve", "Ray Serve (throughput)")]
    promised.append(times(0.6, "FastAPI", at_least=True))
    name = f"{connections} connection{'s' if connections > 1 else ''}"
    return [
        Row(
            f"req_s_{connections}",
            f"{name}: requests/s",
            "",
            tuple(promised) if connections == 32 else (),
            more_is_better=True,
        ),
        Row(f"p50_ms_{connections}", f"{name}: p50", "ms"),
        Row(f"p99_ms_{connections}", f"{name}: p99", "ms"),
        Row(f"cpu_us_{connections}", f"{name}: CPU of the server for one", "µs"),
    ]


def main() -> None:
    """Run the benchmark."""
    bench = Benchmark(__doc__, [row for n in CONNECTIONS for row in rows(n)], rounds=3)
    bench.run(contenders("echo", [b'{"x": 5}'], 1.0 if bench.quick else 2.0), CONNECTIONS)
    bench.finish()


if __name__ == "__main__":
    main()
