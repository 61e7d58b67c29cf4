"""The calls of this process that wait for a worker: bounded in number and bytes, in the order they were made.

A call is counted by the thread that makes it (`admit`), stands in line once the router's loop has it (`append`), and
counts until it is sent (`take`) or has ended (`leave`). What a worker gave back stands at the head again (`put_back`).
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections import deque

from gworker.errors import GWorkerError, QueueFull, anew
from gworker.router.calls import RoutedCall

# Calls that ended while they waited behind others are swept out once so many more stand in line than wait.
_SWEEP = 64


class CallQueue:
    """The queue of one router. `admit`, `when_space` and `close` are for any thread, the rest for the router's loop."""

    def __init__(self, label: str, max_pending: int, max_pending_mb: float) -> None:
        self._label = label
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_mb * 1024 * 1024
        self._lock = threading.Lock()
        # Those that were counted, and those that count no more: the latter grow on the loop alone, and need no lock.
        self._counted = self._counted_bytes = 0
        self._left = self._left_bytes = 0
        self._space: list[concurrent.futures.Future[None]] = []
        self._closed: GWorkerError | None = None
        self._line: deque[RoutedCall] = deque()

    # --- from any thread ------------------------------------------------------------------------------------------

    def admit(self, call: RoutedCall) -> None:
        """Count a new call. Raises QueueFull when as many, or as many bytes, wait as may; once closed, the reason."""
        with self._lock:
            if self._closed is not None:
                raise anew(self._closed)
            count = self._counted - self._left
            if count >= self._max_pending:
                raise QueueFull(
                    f"{self._label}: {count} calls already wait in this process "
                    f"(max_pending={self._max_pending}). Slow down, use .map (it waits for room), or raise max_pending."
                )
            waiting_bytes = self._counted_bytes - self._left_bytes
            if count and waiting_bytes + call.nbytes > self._max_pending_bytes:
                raise QueueFull(
                    f"{self._label}: calls of {waiting_bytes / 2**20:.0f} MiB already wait in this process "
                    f"(max_pending_mb={self._max_pending_bytes / 2**20:g}). Slow down, use .map, or raise the limit."
                )
            self._count_in(call)

    def when_space(self) -> concurrent.futures.Future[None]:
        """Ends when a call has left the queue; for those that would rather wait than meet QueueFull."""
        space = promise()
        with self._lock:
            self._space.append(space)
            # Whichever of the two comes later sees the other: the last call that leaves, or this.
            if self._counted == self._left or self._closed is not None:
                self._space.remove(space)
                space.set_result(None)
        return space

    def close(self, reason: GWorkerError) -> None:
        """Admit no call any more."""
        with self._lock:
            self._closed = reason

    # --- on the router's loop -------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many calls stand in line and have not ended."""
        return min(len(self._line), self._counted - self._left)

    def calls(self) -> list[RoutedCall]:
        """The calls that stand in line and have not ended."""
        return [call for call in self._line if not call.over]

    def append(self, call: RoutedCall) -> None:
        """Stand in line, at the end."""
        self._line.append(call)

    def put_back(self, calls: list[RoutedCall]) -> None:
        """Put calls back at the head, in the order they were made, whatever the limits."""
        with self._lock:
            for call in calls:
                if not call.queued:
                    self._count_in(call)
        head: list[RoutedCall] = []
        for call in sorted(calls, key=lambda c: c.number):
            while self._line and self._line[0].number < call.number:
                head.append(self._line.popleft())
            head.append(call)
        self._line.extendleft(reversed(head))

    def next(self) -> RoutedCall | None:
        """The call at the head, which stays there; those that have ended are dropped."""
        while self._line and self._line[0].over:
            self._line.popleft()
        return self._line[0] if self._line else None

    def take(self) -> RoutedCall:
        """The call at the head, which is no longer in the queue."""
        call = self._line.popleft()
        self.leave(call)
        return call

    def leave(self, call: RoutedCall) -> None:
        """A call waits no more. Tells those that wait for space."""
        if not call.queued:
            return
        call.queued = False
        self._left += 1
        self._left_bytes += call.nbytes
        if self._space:
            with self._lock:
                space, self._space = self._space, []
            for each in space:
                each.set_result(None)
        if len(self._line) > 2 * (self._counted - self._left) + _SWEEP:
            self._line = deque(self.calls())

    def clear(self) -> None:
        """Keep no call; all have ended."""
        self._line.clear()

    def _count_in(self, call: RoutedCall) -> None:
        call.queued = True
        self._counted += 1
        self._counted_bytes += call.nbytes


def promise() -> concurrent.futures.Future[None]:
    """A future that only the router ends: giving up waiting for it does not cancel it."""
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    return future
