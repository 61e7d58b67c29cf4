"""Every benchmark, one after another, each in a process of its own; then RESULTS.md.

    python benchmarks [--quick] [--only calls,http_echo] [--rounds N] [--table]

Each writes its JSON, which becomes part of results.json, and RESULTS.md is made from that. One that fails or takes too
long says so there, with the rounds that it has finished. `--only` renews some and leaves the others as they are;
`--table` measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from apart import stop
from figures import Report, results, verdicts

HERE = Path(__file__).parent
# In the order of RESULTS.md; what takes longer than its limit in seconds is ended.
LIMITS_S = {
    "calls": 420,
    "arrays": 240,
    "http_echo": 240,
    "http_batching": 300,
    "batching": 600,
    "streaming": 240,
    "weights": 240,
    "fairness": 300,
    "recovery": 180,
    "updates": 180,
    "scheduling": 180,
    "control": 180,
}
RESULTS = HERE / "results.json"


def measure(name: str, flags: list[str]) -> dict[str, Any]:
    """Run one benchmark; what it has written, with the reason under "ended" if it did not come to its end."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", file.name, *flags]
        process = subprocess.Popen(command, start_new_session=True)
        ended = ""
        try:
            if code := process.wait(LIMITS_S[name]):
                ended = f"ended with code {code}"
        except subprocess.TimeoutExpired:
            ended = f"took longer than {LIMITS_S[name]} s"
        finally:
            stop(process)
        written: dict[str, Any] = json.loads(Path(file.name).read_bytes() or b"{}")
    if "rows" not in written:
        return {"name": name, "ended": ended or "did not write a report of the harness"}
    return {**written, "ended": ended}


def main() -> int:
    """Run what is asked for, and write RESULTS.md."""
    given = _arguments()
    found: dict[str, Any] = json.loads(RESULTS.read_bytes()) if RESULTS.exists() else {}
    there = [name for name in LIMITS_S if (HERE / f"{name}.py").exists()]
    chosen = [] if given.table else there if given.only is None else given.only
    if unknown := set(chosen) - set(there):
        sys.exit(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    flags = [*(["--quick"] if given.quick else []), *(["--rounds", str(given.rounds)] if given.rounds else [])]
    started = time.monotonic()
    for name in chosen:
        print(f"\n==== {name} ====", flush=True)
        found[name] = measure(name, flags)
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    reports = {name: found[name] for name in there if name in found}
    (HERE / "RESULTS.md").write_text(results(reports), encoding="utf-8")
    judged = [
        verdict for report in reports.values() if "rows" in report for _, verdict in verdicts(Report.read(report))
    ]
    met, missed = (sum(verdict.met is met for verdict in judged) for met in (True, False))
    print(f"\nMeasured {', '.join(chosen) or 'nothing'} in {time.monotonic() - started:.0f} s.", end=" ")
    print(f"Promises: {met} met, {missed} missed, {len(judged) - met - missed} not measured.", end=" ")
    print(f"See {os.path.relpath(HERE / 'RESULTS.md')}.")
    return int(any(found[name]["ended"] for name in chosen))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, for a first look")
    parser.add_argument("--only", type=lambda names: names.split(","), metavar="NAMES", help="benchmarks, with commas")
    parser.add_argument("--rounds", type=int, help="how often each contender is measured")
    parser.add_argument("--table", action="store_true", help="write RESULTS.md from results.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
