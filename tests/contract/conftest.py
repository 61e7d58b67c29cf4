"""What the contract suite shares: the lane that calls travel on, and the app of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import gworker as gw


@pytest.fixture(scope="module", params=["direct", "ray"])
def lane(request: pytest.FixtureRequest, ray_cluster: None) -> Iterator[str]:
    """The lane that calls travel on: every test of the contract runs once on each."""
    os.environ["GWORKER_LANE"] = request.param
    yield str(request.param)
    del os.environ["GWORKER_LANE"]


@pytest.fixture(scope="module")
def module_app(request: pytest.FixtureRequest, lane: str) -> Iterator[gw.App]:
    """The `app` of the test module, stopped when its tests are done: its classes keep their workers between tests."""
    app: gw.App = request.module.app
    yield app
    app.stop(drain=False)
