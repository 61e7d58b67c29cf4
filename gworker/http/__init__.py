"""The HTTP server in front of an app: one POST route for each method, health, metrics, and a status page."""

from __future__ import annotations

from gworker.http.gateway import create_gateway
from gworker.http.server import GatewayServer, serve

__all__ = ["GatewayServer", "create_gateway", "serve"]
