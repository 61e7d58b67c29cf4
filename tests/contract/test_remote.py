"""The plain ways to call: remote, aio, spawn, local."""

from __future__ import annotations

from typing import Any

import pytest

import gworker as gw

pytestmark = pytest.mark.cluster


async def test_every_way_to_call_a_method_gives_its_result(lane: str, app: Any) -> None:
    @app.cls()
    class Doubler:
        @gw.method()
        def double(self, x: int) -> int:
            return 2 * x

    double = Doubler().double
    assert double.remote(1) == 2
    assert await double.remote.aio(2) == 4
    call = double.spawn(3)
    assert call.get() == 6
    assert await call == 6
    assert list(double.map([1, 2, 3])) == [2, 4, 6]
    assert double.local(5) == 10
