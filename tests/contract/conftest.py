"""What the contract suite shares: the app of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import gworker as gw


@pytest.fixture(scope="module")
def module_app(request: pytest.FixtureRequest, lane: str) -> Iterator[gw.App]:
    """The `app` of the test module, stopped when its tests are done: its classes keep their workers between tests."""
    app: gw.App = request.module.app
    yield app
    app.stop(drain=False)
