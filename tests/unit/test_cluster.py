"""Which Ray is used where one has ended without saying so: Ray itself would try for a quarter of an hour."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gworker.errors import NotFound
from gworker.router import cluster


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """What a Ray that is there looks like from here."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, listening: socket.socket) -> list[dict[str, Any]]:
    """What `ray.init` is called with; the last cluster of this machine has left the address of `listening`."""
    found: list[dict[str, Any]] = []
    host, port = listening.getsockname()
    monkeypatch.setattr(cluster.services, "find_bootstrap_address", lambda folder: f"{host}:{port}")
    monkeypatch.setattr(cluster.services, "find_gcs_addresses", set)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **options: found.append(options))
    monkeypatch.setattr(cluster, "is_ours_alone", lambda: True)
    monkeypatch.setattr(cluster, "_started_here", False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


def test_a_cluster_that_is_there_is_attached_to(begun: list[dict[str, Any]]) -> None:
    cluster.have_ray()
    cluster.attach()
    assert [options.get("address") for options in begun] == [None, "auto"]


def test_where_one_has_gone_a_new_one_is_started(
    begun: list[dict[str, Any]], listening: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    listening.close()
    cluster.have_ray()
    assert [options.get("address") for options in begun] == ["local"]
    assert "is gone: a new one is started" in caplog.text


def test_where_one_has_gone_no_app_is_deployed(begun: list[dict[str, Any]], listening: socket.socket) -> None:
    listening.close()
    with pytest.raises(NotFound, match="no Ray cluster was found"):
        cluster.attach()
    assert begun == []


def test_an_address_that_was_given_is_left_to_ray(
    begun: list[dict[str, Any]], listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening.close()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    cluster.have_ray()
    cluster.attach()
    assert [options.get("address") for options in begun] == [None, "10.0.0.1:6379"]


@pytest.mark.parametrize("left", [None, "", "nonsense", "host:"])
def test_where_nothing_is_left_ray_decides(
    begun: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, left: str | None
) -> None:
    monkeypatch.setattr(cluster.services, "find_bootstrap_address", lambda folder: left)
    cluster.have_ray()
    assert begun[0].get("address") is None
