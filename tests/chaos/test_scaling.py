"""Pools that grow and shrink under floods of calls, on a cluster that does not have room for everybody."""

from __future__ import annotations

import time
from typing import Any

import pytest

import gworker as gw
from tests.chaos.account import Book, Burst, Receipt, audit
from tests.chaos.conftest import pool_when, serving, watched

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]


def test_a_burst_takes_a_pool_from_nothing_to_its_most_and_back_without_losing_a_call(
    app: Any, book: Book, gate: Any, gone: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, max_workers=3, scaledown_window_s=0.5)
    @gw.concurrent(max_inputs=4)
    class Bursty:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                gate.wait()
            return receipt

    calls = Burst(Bursty().work.spawn, 300)
    with watched(app, "Bursty") as seen:
        three = serving(app, "Bursty", 3)
        gate.open()
        outcomes = calls.outcomes()
    audit(book, outcomes)
    assert book.starts().keys() == {*three}
    assert max(pool.desired for pool in seen) == 3
    pool = pool_when(app, "Bursty", lambda pool: not pool.workers, timeout_s=10.0)
    assert (pool.desired, pool.ready, pool.restarts) == (0, 0, 0)
    assert eventually(lambda: gone(*three))


def test_a_class_that_calls_another_leaves_room_for_it(
    app: Any, book: Book, ledger: Any, tmp_path: Any, eventually: Any
) -> None:
    inner_book = Book(tmp_path / "inner")

    @app.cls(cpu=0.1, resources={"accelerator_type:H100": 1}, max_workers=4)
    class Outer:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                assert Inner().work.remote(number).number == number
            return receipt

    @app.cls(cpu=0.1, resources={"accelerator_type:H100": 1}, max_workers=4)
    class Inner:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with inner_book.execution(number) as receipt:
                time.sleep(0.01)
            return receipt

    # There is room for two. Were both of them outer ones, each would wait for an inner one for ever.
    with watched(app, "Outer") as seen:
        outcomes = Burst(Outer().work.spawn, 40).outcomes()
    audit(book, outcomes)
    assert sorted(execution.number for execution in inner_book.all()) == list(range(40))
    assert max(pool.ready + pool.starting for pool in seen) == 1
    assert len(inner_book.starts()) == 1
