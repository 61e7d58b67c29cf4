"""Run, deploy and operate: the commands on a real Ray."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

FLEET = """
    from __future__ import annotations

    import logging
    import os
    import sys

    import gworker as gw
    import words

    app = gw.App(words.APP)

    @app.cls(cpu=0.1, max_workers=2)
    @gw.concurrent(max_inputs=16)
    class Embedder:
        threshold: float = gw.parameter(default=0.5)

        @gw.on_enter()
        def load(self):
            print("the model is loaded")

        @gw.on_exit()
        def leave(self):
            with open(words.FOLDER + "/exits", "a") as exits:
                exits.write(f"{os.getpid()}\\n")

        @gw.method()
        def embed(self, texts: list[str], loud: bool = False) -> dict:
            \"\"\"Turn texts into what they are.\"\"\"
            print("embedding", len(texts))
            logging.getLogger("mine").warning("a warning of %s", texts[0])
            return {"texts": [t.upper() if loud else t for t in texts], "threshold": self.threshold}

        @gw.method()
        @gw.batched(max_batch_size=4, wait_ms=5)
        def length(self, text: list[str]) -> list[int]:
            return [words.length(t) for t in text]

        @gw.method()
        def measure(self, text: str) -> int:
            return words.length(text)

        @gw.method()
        def count(self, n: int = 3):
            yield from range(n)

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    @app.cls(cpu=0.1)
    class Caller:
        @gw.method()
        def through(self, text: str) -> int:
            return Embedder().length.remote(text)

    print("what a module prints is no result")
"""
WORDS = """
    def length(text):
        if not text:
            raise ValueError("an empty text")
        return len(text)
"""


@pytest.fixture
def fleet(gworker: Any) -> Any:
    gworker.write("fleet.py", FLEET)
    gworker.write("words.py", WORDS + f"    APP, FOLDER = 'fleet-{os.getpid()}', {str(gworker.folder)!r}")
    return gworker


@pytest.fixture
def deployed(fleet: Any, here: Callable[..., Any]) -> Any:
    name = f"deployed-{os.getpid()}"
    done = fleet("deploy", "fleet.py", "--name", name, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["classes"] == {
        "Embedder": ["embed", "length", "measure", "count", "pid"],
        "Caller": ["through"],
    }
    yield name
    here("stop", name, "--now")


def test_run_makes_one_call_and_leaves_only_its_result_on_standard_output(fleet: Any) -> None:
    done = fleet("run", "fleet.py::Embedder.embed", "--texts", '["a", "b"]', "--loud", "--threshold", "0.75")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"texts": ["A", "B"], "threshold": 0.75}
    assert "what a module prints is no result" in done.err
    assert len((fleet.folder / "exits").read_text().splitlines()) == 1  # the app was drained


def test_run_maps_lines_of_standard_input_and_what_fails_is_a_line_and_exit_code_1(fleet: Any) -> None:
    done = fleet("run", "fleet.py::Embedder.measure", "-", stdin='"a"\n{"text": "bcd"}\n\n""\n"ef"\n')
    assert done.code == 1
    assert [json.loads(line) for line in done.out.splitlines()] == [
        1, 3, {"error": {"type": "ValueError", "message": "an empty text"}}, 2,
    ]  # fmt: skip
    assert 'words.py", line 4, in length' in done.err and "1 of the calls failed" in done.err
    assert "4/" in done.err  # the progress bar
    assert "execution.py" not in done.err


def test_run_streams_a_generator_line_by_line(fleet: Any) -> None:
    done = fleet("run", "fleet.py::Embedder.count", "--n", "3")
    assert (done.code, done.out) == (0, "0\n1\n2\n")


def test_a_deployed_app_is_called_shown_scaled_logged_and_stopped_by_name(
    deployed: str, fleet: Any, here: Callable[..., Any], eventually: Any
) -> None:
    done = here("call", deployed, "Embedder.embed", "--texts", '["x"]', "--threshold", "0.25")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"texts": ["x"], "threshold": 0.25}
    assert here("call", deployed, "Caller.through", "hello").out == "5\n"  # the app under its other name
    assert here("call", deployed, "Embedder.count", "--n", "2").out == "0\n1\n"
    done = here("call", deployed, "Embedder.length", "--text", "")
    assert done.code == 1 and "ValueError: an empty text" in done.err and "controller" not in done.err

    apps = {app["name"]: app for app in json.loads(here("status", "--json").out)}
    assert {pool["class_name"] for pool in apps[deployed]["pools"]} == {"Embedder", "Caller"}
    shown = here("status", deployed).out
    assert f"app {deployed} (running)" in shown and "Embedder-1" in shown

    scaled = here("scale", deployed, "Embedder", "--min", "2", "--max", "3", "--json")
    assert json.loads(scaled.out) == {"app": deployed, "class": "Embedder", "min_workers": 2, "max_workers": 3}

    def ready() -> int:
        pools = json.loads(here("status", deployed, "--json").out)["pools"]
        return int(next(p["ready"] for p in pools if p["class_name"] == "Embedder"))

    eventually(lambda: ready() == 2)
    done = here("scale", deployed, "Embedder", "--max", "1")
    assert done.code == 2 and "min_workers=2 is greater than max_workers=1" in done.err
    assert here("scale", deployed, "Embedder", "--min", "0", "--max", "1").out.endswith("Embedder: 0 to 1 workers\n")
    eventually(lambda: ready() == 1)

    lines = [json.loads(line) for line in here("logs", deployed, "--json").out.splitlines()]
    said = {line["text"]: line for line in lines}
    assert said["the model is loaded"]["call"] == ""
    assert said["embedding 1"]["worker"] == "Embedder-1" and said["embedding 1"]["stream"] == "out"
    assert said["a warning of x"]["call"] == said["embedding 1"]["call"] != ""
    assert said["a warning of x"]["stream"] == "err"
    assert "embedding 1" in here("logs", deployed, "Embedder").out
    assert "embedding" not in here("logs", deployed, "Caller").out
    assert len(here("logs", deployed, "-n", "1").out.splitlines()) == 1

    done = here("stop", deployed)
    assert (done.code, done.out) == (0, f"stopped {deployed}\n")
    assert len((fleet.folder / "exits").read_text().splitlines()) >= 2
    assert "embedding 1" in here("logs", deployed).out  # what was said stays
    assert here("status", deployed).code == 3


def test_a_class_is_scaled_from_python_and_a_controller_that_is_replaced_keeps_its_bounds(
    make_app: Callable[[], Any], eventually: Any
) -> None:
    import ray

    import gworker as gw

    app = make_app()

    @app.cls(cpu=0.1, scaledown_window_s=0)
    class Echo:
        @gw.method()
        def echo(self, x: int) -> int:
            return x

    with pytest.raises(gw.InvalidDefinition, match="min_workers='2'"):
        Echo.scale(min_workers="2")
    with pytest.raises(gw.InvalidDefinition, match="write min_workers"):
        Echo.scale()
    app.deploy()

    def bounds() -> tuple[int, int]:
        pool = app.status().pool("Echo")
        return pool.desired, pool.ready

    Echo.scale(min_workers=2)
    eventually(lambda: bounds() == (2, 2))
    ray.kill(app.client().controller, no_restart=False)

    def is_back() -> bool:
        with contextlib.suppress(ray.exceptions.RayError):
            return any(event.action == "controller restarted" for event in app.status().events)
        return False

    eventually(is_back)
    eventually(lambda: bounds() == (2, 2))
    with pytest.raises(gw.InvalidDefinition, match="greater than"):
        Echo.scale(max_workers=1)
    Echo.scale(min_workers=0, max_workers=1)
    eventually(lambda: bounds() == (0, 0))
    assert Echo().echo.remote(3) == 3
    app.deploy()  # the bounds are those of the code again
    Echo.scale(min_workers=3)


def test_what_is_not_there_is_exit_code_3_and_names_what_is(deployed: str, here: Callable[..., Any]) -> None:
    for command in (["status"], ["stop"], ["call", "Embedder.embed"], ["scale", "Embedder", "--min", "1"]):
        done = here(command[0], f"{deployed}x", *command[1:])
        assert done.code == 3
        assert f"(did you mean {deployed}?)" in done.err
    assert here("call", deployed, "Embeder.embed").code == 3
    assert here("call", deployed, "Embedder.embd").code == 2
    done = here("logs", "nobody")
    assert done.code == 3 and deployed not in done.out


def test_without_a_cluster_deploying_is_exit_code_3_and_says_how_to_start_one(fleet: Any) -> None:
    done = fleet("deploy", "fleet.py", RAY_ADDRESS="local")
    assert done.code == 3
    assert "ray start --head" in done.err
    done = fleet("doctor", "--json", RAY_ADDRESS="127.0.0.1:1")
    assert done.code == 1
    assert any(f["verdict"] == "wrong" and "cannot be reached" in f["found"] for f in json.loads(done.out)["findings"])


def test_the_doctor_shows_the_cluster(here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = {f["what"]: f["found"] for f in json.loads(here("doctor", "--json").out)["findings"]}
    assert found["Ray"].startswith(address)
    assert "A100, H100" in found["GPUs"]
