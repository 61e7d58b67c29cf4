"""Who may ask: the bearer token, and, where there is none, requests of this machine's own programs only."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from gworker.errors import AuthenticationError, InvalidDefinition
from gworker.http.exchange import Exchange
from gworker.http.problems import Problem

TOKEN_VARIABLE = "GWORKER_TOKEN"  # noqa: S105 - the name of a variable
OPEN_PATHS = frozenset(("/livez",))
_REALM = 'Bearer realm="gworker"'


def read_token(file: str | os.PathLike[str] | None = None) -> str | None:
    """The token from a file, or from the environment (GWORKER_TOKEN); None where neither has one.

    Raises InvalidDefinition for a file that cannot be read or holds no token.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDefinition(f"the token file {os.fspath(file)!r} cannot be read: {error}") from error
    return check_token(token, f"the token file {os.fspath(file)!r}")


def check_token(token: str, where: str = "token") -> str:
    """`token` if a header can carry it. Raises InvalidDefinition, which does not show it."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidDefinition(
            f"{where} holds no token: write one word of letters, digits and signs, for example what "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' prints"
        )
    return token


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that binds to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_binding(host: str, *, open_to_all: bool) -> None:
    """Raise InvalidDefinition where a server that asks for no token could be reached by others."""
    if open_to_all and not is_loopback(host):
        raise InvalidDefinition(
            f"host={host!r} can be reached from other machines, and no token was given: anybody could call the app. "
            f"Set {TOKEN_VARIABLE}, give a token file, or bind to 127.0.0.1"
        )


class Guard:
    """Decides about one request. Raises AuthenticationError (401) or Problem (403)."""

    def __init__(self, token: str | None, cors_origins: Collection[str], allowed_hosts: Sequence[str]) -> None:
        self._token = None if token is None else token.encode()
        self._origins = frozenset(cors_origins)
        self._hosts = frozenset(host.lower() for host in allowed_hosts)

    @property
    def asks_for_token(self) -> bool:
        """Whether there is a token."""
        return self._token is not None

    def check(self, exchange: Exchange) -> None:
        """Let the request pass, or raise."""
        if exchange.scope["path"] in OPEN_PATHS:
            return
        if self._token is not None:
            self._check_token(exchange, self._token)
        else:
            self._check_origin(exchange)

    def _check_token(self, exchange: Exchange, token: bytes) -> None:
        given = exchange.headers.get(b"authorization", b"")
        scheme, _, credentials = given.partition(b" ")
        if scheme.lower() != b"bearer":
            raise AuthenticationError("no token: send it as Authorization: Bearer <token>")
        if not hmac.compare_digest(credentials.strip(), token):
            raise AuthenticationError("the token is not the gateway's")

    def _check_origin(self, exchange: Exchange) -> None:
        """Without a token, a web page in a browser on this machine must not reach the app behind its user's back."""
        host = exchange.headers.get(b"host", b"").decode("latin-1").lower()
        name = _host_name(host)
        if host and not is_loopback(name) and name not in self._hosts:
            raise Problem(
                403,
                "forbidden-host",
                "The host is not served",
                f"Host: {host[:80]} is not an address of this machine. Without a token only loopback addresses are "
                "served, so that no web page can reach them by a name of its own; set a token, or name the host in "
                "allowed_hosts",
            )
        origin = exchange.headers.get(b"origin")
        if origin is None:
            return
        text = origin.decode("latin-1")
        if text in self._origins or "*" in self._origins or urlsplit(text).netloc.lower() == host:
            return
        raise Problem(
            403,
            "forbidden-origin",
            "The origin may not call",
            f"Origin: {text[:80]} is another site's page. Name it in cors_origins, or set a token",
        )


def _host_name(host: str) -> str:
    """`host` without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] or host if host.count(":") == 1 else host


def challenge(error: AuthenticationError) -> str:
    """The WWW-Authenticate header that goes with a refusal (RFC 6750)."""
    return _REALM if "no token" in str(error) else f'{_REALM}, error="invalid_token"'
