"""What went wrong with a request, as RFC 9457 problem details.

A `Problem` is raised by whoever finds a fault and sent by the edge. Beside the members of the RFC it has `code`, which
programs can match, and `retryable`: whether the same request can succeed if it is sent again.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic_core import to_json

from gworker.errors import (
    GWorkerError,
    PoolUnavailable,
    QueueFull,
    RemoteError,
    RemoteTraceback,
    StartupFailed,
    Unschedulable,
)

MEDIA_TYPE = b"application/problem+json"

# When to come back, in seconds. A pool that failed to start is tried once more every 60 s.
_RETRY_AFTER_S: dict[type[GWorkerError], int] = {
    QueueFull: 1,
    PoolUnavailable: 2,
    StartupFailed: 60,
    Unschedulable: 60,
}
# What RFC 9110 calls them; Python's names differ between its versions.
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}
_TRACEBACK = "Traceback (most recent call last)"


class Problem(Exception):  # noqa: N818 - the name of the RFC
    """One problem: an HTTP status, a code, a title for people, and what was wrong with this request in particular.

    `headers` go into the answer; `members` are further members of the document.
    """

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        *,
        retryable: bool = False,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.retryable = retryable
        self.headers = dict(headers or {})
        self.members = members

    def document(self, request_id: str) -> dict[str, Any]:
        """The members of the problem document, those that are empty left out."""
        return {
            "type": f"urn:gworker:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": f"urn:gworker:request:{request_id}",
            "code": self.code,
            "retryable": self.retryable,
            **self.members,
        }

    def body(self, request_id: str) -> bytes:
        """The document as JSON."""
        return to_json(self.document(request_id), inf_nan_mode="null", serialize_unknown=True)


def problem_of(error: BaseException, *, debug: bool = False) -> Problem:
    """The problem that an exception amounts to. Tracebacks are told only with `debug`."""
    if isinstance(error, Problem):
        return error
    members = {"traceback": _traceback(error)} if debug else {}
    status = getattr(error, "http_status", None)
    if not isinstance(status, int) or not 400 <= status <= 599:
        status = 500
    if isinstance(error, GWorkerError) and not isinstance(error, RemoteError):
        name = type(error).__name__
        wait_s = next((seconds for kind, seconds in _RETRY_AFTER_S.items() if isinstance(error, kind)), None)
        headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
        title = _words(name)
        return Problem(
            status,
            _kebab(name),
            title,
            _detail(str(error), debug) or title,
            retryable=error.retryable,
            headers=headers,
            **members,
        )
    kind = error.type_name if isinstance(error, RemoteError) else type(error).__name__
    message = error.message if isinstance(error, RemoteError) else str(error)
    retryable = getattr(error, "retryable", False) is True
    return Problem(
        status,
        "method-raised",
        "The method raised an exception",
        f"{kind}: {_detail(message, debug)}" if message else kind,
        retryable=retryable,
        headers={"Retry-After": "1"} if status in (429, 503) else {},
        **members,
    )


def without_traceback(text: str) -> str:
    """`text` with nothing left of the traceback in it, if there is one, but its last line: what was raised."""
    head, found, rest = text.partition(_TRACEBACK)
    if not found:
        return text
    last = rest.rstrip().rpartition("\n")[2].strip()
    return f"{head.rstrip(' :-' + chr(10))}: {last}" if head.strip() else last


def _detail(text: str, debug: bool) -> str:
    return text if debug else without_traceback(text)


def _traceback(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, RemoteTraceback):
        return cause.text
    if isinstance(error, RemoteError):
        return error.traceback
    return "".join(traceback.format_exception(error))


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


def _words(name: str) -> str:
    return _kebab(name).replace("-", " ").capitalize()


# --- what is wrong with a request --------------------------------------------------------------------------------


def status_problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Problem:
    """A problem that is told by its HTTP status alone."""
    title = _TITLES.get(status) or HTTPStatus(status).phrase
    return Problem(status, title.lower().replace(" ", "-"), title, detail, headers=headers)


def invalid(errors: list[dict[str, str]]) -> Problem:
    """Arguments that do not fit the method: each error has a `pointer` to the field and a `detail`."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where = first["pointer"].removeprefix("#/") or "body"
    return Problem(
        422,
        "invalid-arguments",
        "The arguments do not fit the method",
        f"{where}: {first['detail']}{more}",
        errors=errors,
    )
