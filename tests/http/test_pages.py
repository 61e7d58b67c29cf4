"""Health, metrics, status, the status page, and the documentation."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest

import gworker as gw
from gworker.observe.status import MethodTimes, PoolStatus, WorkerStatus
from gworker.observe.times import Histogram, Times


def pool(name: str = "Model", **changes: Any) -> PoolStatus:
    values: dict[str, Any] = {
        "name": name, "class_name": name, "state": "READY", "desired": 1, "ready": 1, "starting": 0, "pending": 0,
        "draining": 0, "queued": 0, "running": 0, "restarts": 0,
    }  # fmt: skip
    return PoolStatus(**values | changes)


@pytest.fixture
def client(fake: Any, serve: Any) -> Any:
    @fake.app.cls()
    class Model:
        @gw.method()
        async def double(self, x: int) -> int:
            return 2 * x

    return serve(fake.app)


def test_livez_says_that_the_gateway_lives_whatever_the_app_does(client: Any, fake: Any) -> None:
    fake.status_error = TimeoutError("the controller is gone")
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.head("/livez").status_code == 200


def test_readyz_is_ready_when_each_pool_can_serve_or_rests(client: Any, fake: Any) -> None:
    fake.pools = (pool("A"), pool("B", desired=0, ready=0))
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert [(p["pool"], p["ready"]) for p in answer.json()["pools"]] == [("A", True), ("B", True)]


def test_readyz_says_which_pool_is_not_and_why(client: Any, fake: Any, problem: Any) -> None:
    fake.pools = (pool("A"), pool("B", ready=0, state="FAILED", waiting_for="needs GPU H100 x1"))
    answer = client.get("/readyz")
    document = problem(answer, 503, "not-ready")
    assert document["detail"] == "B: needs GPU H100 x1"
    assert [p["ready"] for p in document["pools"]] == [True, False]
    assert answer.headers["retry-after"] == "2"


def test_readyz_says_that_the_app_does_not_answer(client: Any, fake: Any, problem: Any) -> None:
    fake.status_error = TimeoutError("the controller is gone")
    problem(client.get("/readyz"), 503, "pool-unavailable")


def test_metrics_are_prometheus_s_text_of_pools_and_requests(client: Any, fake: Any) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    times = Times(Histogram([0.0002, 0.3]), Histogram([0.003]), Histogram([2.0, 1000.0]))
    known = (MethodTimes.of("double", times),)
    # An update has two of one name for a while.
    fake.pools = (pool("Model", queued=3, running=2, restarts=1, times=known), pool("Next", times=known))
    client.post("/v1/Model/double", json={"x": 1})
    client.post("/v1/Model/double", json={"x": "one"})
    client.get("/anything/at/all")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (s.name, *(v for k, v in sorted(s.labels.items()) if k != "app")): s.value
        for family in text_string_to_metric_families(answer.text)
        for s in family.samples
    }
    assert samples["gworker_workers_desired", "Model"] == 1
    assert samples["gworker_workers", "Model", "ready"] == 1
    assert samples["gworker_inputs", "Model", "queued"] == 3
    assert samples["gworker_restarts_total", "Model"] == 1
    queue, waits, runs = "gworker_queue_time_seconds", "gworker_batch_wait_seconds", "gworker_run_time_seconds"
    assert samples[f"{queue}_bucket", "0.00025", "double", "Model"] == 1
    assert samples[f"{queue}_bucket", "0.25", "double", "Model"] == 1
    assert samples[f"{queue}_bucket", "+Inf", "double", "Model"] == samples[f"{queue}_count", "double", "Model"] == 2
    assert samples[f"{queue}_sum", "double", "Model"] == pytest.approx(0.3002)
    assert samples[f"{waits}_bucket", "0.005", "double", "Model"] == samples[f"{waits}_count", "double", "Next"] == 1
    assert (
        samples[f"{runs}_bucket", "500.0", "double", "Model"] == 1 and samples[f"{runs}_count", "double", "Model"] == 2
    )
    assert samples["gworker_http_requests_total", "Model.double", "200"] == 1
    assert samples["gworker_http_requests_total", "Model.double", "422"] == 1
    assert samples["gworker_http_requests_total", "other", "404"] == 1
    assert samples["gworker_http_request_duration_seconds_count", "Model.double"] == 2
    assert samples["gworker_http_requests_in_flight",] == 1


def test_metrics_go_on_when_the_app_does_not_answer(client: Any, fake: Any) -> None:
    fake.status_error = TimeoutError("the controller is gone")
    assert "gworker_http_requests_in_flight" in client.get("/metrics").text


def test_status_is_the_app_s_as_json_without_tracebacks(client: Any, fake: Any) -> None:
    trace = "failed to start:\nTraceback (most recent call last):\n  secret.py\nValueError: no model"
    worker = WorkerStatus("Model-1", "BACKOFF", None, None, 1.0, reason=trace)
    fake.pools = (pool(workers=(worker,)),)
    fake.events = (gw.Event(1, dt.datetime.now(dt.timezone.utc), "Model", "Model-1", "failed", trace),)
    document = client.get("/v1/status").json()
    assert document["pools"][0]["workers"][0]["reason"] == "failed to start: ValueError: no model"
    assert "secret" not in str(document)
    assert document["gateway"]["in_flight"] == 1
    assert len(document["gateway"]["requests_per_s"]) == 59


def test_many_who_ask_for_the_status_wear_nothing_out(client: Any, fake: Any) -> None:
    asked = []
    real = fake.app.status
    fake.app.status = lambda: asked.append(1) or real()
    client.app_status = None
    for _ in range(20):
        client.get("/readyz")
    assert len(asked) <= 2


def test_the_page_is_one_file_that_nothing_else_can_run_in(client: Any) -> None:
    answer = client.get("/", headers={"Accept": "text/html"})
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r"""(?:src|href)=["']https?:""", answer.text)
    assert "innerHTML" not in answer.text and " style=" not in answer.text
    for needed in ('<html lang="en">', "<main>", "aria-live", "prefers-color-scheme", 'name="viewport"'):
        assert needed in answer.text


def test_with_a_token_a_browser_gets_the_page_that_asks_for_it(fake: Any, serve: Any) -> None:
    client = serve(fake.app, token="sesame")
    answer = client.get("/", headers={"Accept": "text/html,*/*"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="gworker"'
    assert "showModal" in answer.text and fake.app.name not in answer.text


def test_the_lines_of_the_page_are_what_was_called() -> None:
    from gworker.http.metrics import STEP_S, STEPS, History

    history = History()
    for now, took, failed in [
        (1000.0, 0.010, False),
        (1000.5, 0.030, True),
        (1000.9, 0.020, False),
        (1004.1, 0.5, False),
    ]:
        history.add(now, took, failed)
    lines = history.lines(1006.0)
    assert len(lines["requests_per_s"]) == STEPS - 1
    assert lines["requests_per_s"][-3:] == [3 / STEP_S, 0.0, 1 / STEP_S]
    assert lines["errors_per_s"][-3:] == [1 / STEP_S, 0.0, 0.0]
    assert lines["p50_ms"][-3:] == [20.0, None, 500.0]
    assert history.lines(5000.0)["requests_per_s"] == [0.0] * (STEPS - 1)
